"""What every bus must do.

Run it against your own::

    from execsafe.testing.bus_contract import BusContract


    class TestMyBus(BusContract):
        def make_bus(self, directory, *, messages_max=10_000, redeliver_after_s=60.0):
            return MyBus(directory, messages_max, redeliver_after_s)

        async def let_pass(self, bus, topic, group, seconds):
            my_clock.skip(seconds)

It needs pytest, hypothesis and anyio's pytest plugin, and runs on the event loops of your ``anyio_backend`` fixture.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execsafe.buses import BusDepth, ManagedBus, Message, dead_letter_topic, decode_fields
from execsafe.errors import CapacityExceeded, InvalidInput

_SOON_S: Final = 10.0  # what must happen at once has happened by then
_DUE_S: Final = 61.0  # and a redelivery is due
_STEPS: Final = st.lists(st.sampled_from(["publish", "read", "read", "ack", "ack_late", "wait"]), max_size=30)
_FINITE: Final = st.decimals(allow_nan=False, allow_infinity=False)
_VALUES: Final = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | _FINITE
_NAMES: Final = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
_EXAMPLES: Final = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow]
)


class BusContract:
    """The suite; subclass it with :meth:`make_bus` and :meth:`let_pass`."""

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    def make_bus(self, directory: Path, *, messages_max: int = 10_000, redeliver_after_s: float = 60.0) -> ManagedBus:
        """A bus, not yet open, with nothing on it that was not published under the same *directory*."""
        raise NotImplementedError

    async def let_pass(self, bus: ManagedBus, topic: str, group: str, seconds: float) -> None:
        """Bring about that what is pending for *group* was delivered *seconds* ago."""
        raise NotImplementedError

    @pytest.fixture
    async def bus(self, tmp_path: Path) -> AsyncIterator[ManagedBus]:
        """An open, empty bus."""
        async with self.make_bus(tmp_path) as bus:
            yield bus

    # --- delivery -----------------------------------------------------------------------------------

    async def test_every_group_gets_every_message_and_one_consumer_of_it_gets_each(self, bus: ManagedBus) -> None:
        """In the order in which they were published."""
        await bus.join_group("t", "a")
        await bus.join_group("t", "b")
        for number in range(4):
            await bus.publish("t", {"n": number})
        first = await bus.read("t", "a", "1", limit=3)
        rest = await bus.read("t", "a", "2", limit=3)
        assert _numbers([*first, *rest]) == ["0", "1", "2", "3"]
        assert _numbers(await bus.read("t", "b", "1", limit=9)) == ["0", "1", "2", "3"]

    async def test_a_group_that_comes_later_gets_what_is_kept(self, bus: ManagedBus) -> None:
        """Nothing is lost because the reader starts after the writer."""
        sent = [await bus.publish("t", {"n": number}) for number in range(3)]
        await bus.join_group("t", "late")
        await bus.join_group("t", "late")
        assert [message.id for message in await bus.read("t", "late", "1", limit=9)] == sent

    async def test_what_is_not_acknowledged_is_delivered_again(self, bus: ManagedBus) -> None:
        """To whoever reads first once it is due, and to nobody before."""
        sent = await bus.publish("t", {"n": 1})
        [one] = await bus.read("t", "g", "dies")
        await self.let_pass(bus, "t", "g", 30)
        assert await bus.read("t", "g", "other", wait_s=0) == []
        await self.let_pass(bus, "t", "g", _DUE_S)
        [again] = await bus.read("t", "g", "other", wait_s=0)
        assert (again.id, again.fields, again.published_at_ms) == (sent, one.fields, one.published_at_ms)
        assert (one.deliveries, again.deliveries) == (1, 2)
        assert await bus.read("t", "g", "third", wait_s=0) == []  # it begins anew

    async def test_what_is_due_comes_before_what_is_new(self, bus: ManagedBus) -> None:
        """And both together are at most what was asked for."""
        for number in range(3):
            await bus.publish("t", {"n": number})
        await bus.read("t", "g", "1", limit=2)
        await self.let_pass(bus, "t", "g", _DUE_S)
        await bus.publish("t", {"n": 3})
        assert _numbers(await bus.read("t", "g", "1", limit=3)) == ["0", "1", "2"]
        assert _numbers(await bus.read("t", "g", "1", limit=3)) == ["3"]

    async def test_what_is_acknowledged_never_comes_again(self, bus: ManagedBus) -> None:
        """Acknowledging it once more is nothing."""
        sent = await bus.publish("t", {"n": 1})
        await bus.read("t", "g", "1")
        assert await bus.ack("t", "g", sent)
        assert not await bus.ack("t", "g", sent)
        await self.let_pass(bus, "t", "g", _DUE_S)
        assert await bus.read("t", "g", "1", wait_s=0) == []

    async def test_a_reader_is_woken_by_the_message(self, bus: ManagedBus) -> None:
        """It does not wait until its time is over."""
        got: list[Message] = []

        async def read() -> None:
            got.extend(await bus.read("t", "g", "1", wait_s=100))

        begun = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.sleep(0.05)
            await bus.publish("t", {"n": 1})
        assert _numbers(got) == ["1"]
        assert anyio.current_time() - begun < _SOON_S

    async def test_a_reader_that_is_cancelled_takes_nothing_with_it(self, bus: ManagedBus) -> None:
        """Who waits for a message has none yet."""
        with anyio.move_on_after(0.05):
            await bus.read("t", "g", "1", wait_s=100)
        await bus.publish("t", {"n": 1})
        assert _numbers(await bus.read("t", "g", "2", wait_s=0)) == ["1"]

    async def test_many_consumers_of_a_group_share_its_messages(self, bus: ManagedBus) -> None:
        """Each message goes to one of them, whatever they do at the same time."""
        sent = [await bus.publish("t", {"n": number}) for number in range(40)]
        got: list[str] = []

        async def consume(name: str) -> None:
            while messages := await bus.read("t", "g", name, limit=3, wait_s=0):
                for message in messages:
                    got.append(message.id)
                    await bus.ack("t", "g", message.id)

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(consume, str(number))
        assert sorted(got) == sorted(sent)

    @given(payload=st.dictionaries(_NAMES, _VALUES, min_size=1, max_size=5))
    @_EXAMPLES
    async def test_fields_arrive_as_they_were_published(self, payload: dict[str, Any]) -> None:
        """None, numbers, text in all alphabets; see :func:`execsafe.buses.encode_fields`."""
        with tempfile.TemporaryDirectory() as name:
            async with self.make_bus(Path(name)) as bus:
                await bus.publish("t", payload)
                [message] = await bus.read("t", "g", "1")
        assert decode_fields(message.fields) == payload

    # --- dead letters -------------------------------------------------------------------------------

    async def test_a_dead_letter_says_why_and_is_pending_no_more(self, bus: ManagedBus) -> None:
        """Once, also where the answer to the first call was lost."""
        await bus.publish("t", {"symbol": None})
        [message] = await bus.read("t", "g", "1")
        for _ in range(2):
            await bus.dead_letter("g", message, "malformed")
        [letter] = await bus.read(dead_letter_topic("t"), "ops", "1", limit=9)
        assert decode_fields(letter.fields) == {
            "symbol": None,
            "dead_letter_reason": "malformed",
            "dead_letter_group": "g",
            "dead_letter_of": message.id,
        }
        assert (await bus.depth("t", "g")).pending == 0
        assert not await bus.ack("t", "g", message.id)

    # --- bounds -------------------------------------------------------------------------------------

    async def test_a_full_topic_refuses_what_it_would_have_to_forget_for(self, tmp_path: Path) -> None:
        """Delivered is not done; and what is done makes room, also behind something that is not."""
        async with self.make_bus(tmp_path, messages_max=3) as bus:
            for group in ("g", "slow"):
                await bus.join_group("t", group)
            for number in range(3):
                await bus.publish("t", {"n": number})
            read = await bus.read("t", "g", "1", limit=9)
            await bus.ack("t", "g", read[1].id)
            with pytest.raises(CapacityExceeded):
                await bus.publish("t", {"n": 3})
            await bus.read("t", "slow", "1", limit=9)
            with pytest.raises(CapacityExceeded):
                await bus.publish("t", {"n": 3})
            await bus.ack("t", "slow", read[1].id)
            await bus.publish("t", {"n": 3})
            with pytest.raises(CapacityExceeded):
                await bus.publish("t", {"n": 4})
            await self.let_pass(bus, "t", "g", _DUE_S)
            assert _numbers(await bus.read("t", "g", "1", limit=9)) == ["0", "2", "3"]

    async def test_a_topic_of_one_message_goes_on(self, tmp_path: Path) -> None:
        """The smallest bound there is."""
        async with self.make_bus(tmp_path, messages_max=1) as bus:
            await bus.join_group("t", "g")
            for number in range(3):
                await bus.publish("t", {"n": number})
                [message] = await bus.read("t", "g", "1")
                assert message.fields["n"] == str(number)
                await bus.ack("t", "g", message.id)

    async def test_a_topic_that_nobody_reads_keeps_its_latest_messages(self, tmp_path: Path) -> None:
        """For groups that come later."""
        async with self.make_bus(tmp_path, messages_max=3) as bus:
            for number in range(9):
                await bus.publish("t", {"n": number})
            assert _numbers(await bus.read("t", "late", "1", limit=9)) == ["6", "7", "8"]

    async def test_a_full_topic_of_dead_letters_moves_nothing(self, tmp_path: Path) -> None:
        """What cannot be put aside stays pending."""
        async with self.make_bus(tmp_path, messages_max=1) as bus:
            await bus.join_group(dead_letter_topic("t"), "ops")
            await bus.publish("t", {"n": 0})
            [first] = await bus.read("t", "g", "1")
            await bus.dead_letter("g", first, "malformed")
            await bus.publish("t", {"n": 1})
            [second] = await bus.read("t", "g", "1")
            with pytest.raises(CapacityExceeded):
                await bus.dead_letter("g", second, "malformed")
            assert (await bus.depth("t", "g")).pending == 1

    async def test_the_depth_counts_what_waits_and_what_is_pending(self, bus: ManagedBus) -> None:
        """A group that does not exist waits for everything; a topic that does not exist has nothing."""
        assert await bus.depth("nowhere", "g") == BusDepth(waiting=0, pending=0, kept=0)
        for number in range(5):
            await bus.publish("t", {"n": number})
        assert await bus.depth("t", "g") == BusDepth(waiting=5, pending=0, kept=5)
        [one, _] = await bus.read("t", "g", "1", limit=2)
        assert await bus.depth("t", "g") == BusDepth(waiting=3, pending=2, kept=5)
        await bus.ack("t", "g", one.id)
        depth = await bus.depth("t", "g")
        assert (depth.waiting, depth.pending) == (3, 1)

    # --- input --------------------------------------------------------------------------------------

    async def test_unknown_groups_topics_and_ids_are_nothing_to_acknowledge(self, bus: ManagedBus) -> None:
        """Whatever text they are."""
        await bus.publish("t", {"n": 1})
        assert not await bus.ack("nowhere", "g", "1-1")
        assert not await bus.ack("t", "g", "1-1")
        await bus.join_group("t", "g")
        for wrong in ("1-1", "x", "", "1-", "1-" + "9" * 50, "9" * 19 + "-" + "9" * 19, "1-1\n", "*", "-", "+"):
            assert not await bus.ack("t", "g", wrong)

    async def test_malformed_input_is_refused(self, bus: ManagedBus) -> None:
        """And nothing is published."""
        for name in ("", "a\n", "x" * 257, "\ud800"):
            with pytest.raises(InvalidInput):
                await bus.publish(name, {"n": 1})
            with pytest.raises(InvalidInput):
                await bus.read("t", name, "1")
            with pytest.raises(InvalidInput):
                await bus.read("t", "g", name)
        with pytest.raises(InvalidInput):
            await bus.read("t", "g", "1", limit=0)
        malformed: list[dict[Any, Any]] = [
            {},
            {"n": float("nan")},
            {"n": object()},
            {1: 2},
            {"\ud800": 1},
            {str(n): n for n in range(1_001)},
        ]
        for fields in malformed:
            with pytest.raises(InvalidInput):
                await bus.publish("t", fields)
        assert (await bus.depth("t", "g")).kept == 0

    # --- everything against the model ---------------------------------------------------------------

    @given(steps=_STEPS)
    @_EXAMPLES
    async def test_nothing_is_lost_and_nothing_acknowledged_comes_again(self, steps: list[str]) -> None:
        """Against a list of what was published and a set of what was acknowledged."""
        with tempfile.TemporaryDirectory() as name:
            async with self.make_bus(Path(name)) as bus:
                await bus.join_group("t", "g")
                await self._check(bus, steps)

    async def _check(self, bus: ManagedBus, steps: list[str]) -> None:
        published: list[str] = []
        acked: set[str] = set()
        held: list[str] = []
        for step in steps:
            if step == "publish":
                published.append(await bus.publish("t", {"n": len(published)}))
            elif step == "read":
                for message in await bus.read("t", "g", "1", limit=2, wait_s=0):
                    assert message.id not in acked
                    held.append(message.id)
            elif step == "wait":
                await self.let_pass(bus, "t", "g", _DUE_S)
            elif held:
                message_id = held.pop(0 if step == "ack_late" else -1)
                if await bus.ack("t", "g", message_id):
                    acked.add(message_id)
        await self.let_pass(bus, "t", "g", _DUE_S)
        rest = {message.id for message in await bus.read("t", "g", "1", limit=99, wait_s=0)}
        assert rest == set(published) - acked


def _numbers(messages: Sequence[Message]) -> list[str]:
    return [message.fields["n"] for message in messages]
