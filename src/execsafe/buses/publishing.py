"""What goes out: exit levels of positions that exist, previews of those that do not, and the outbox's events."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import anyio
import attrs

from execsafe.buses import Bus
from execsafe.buses.telling import tell
from execsafe.clock import SystemClock
from execsafe.core.payloads import envelope_fields
from execsafe.errors import InvalidInput
from execsafe.model.event import Event, EventType
from execsafe.model.intent import IntentRecord
from execsafe.model.signal import Envelope, IlfMetadata, PreviewId, fingerprint_of
from execsafe.model.values import Params, plain, to_params
from execsafe.ports import Clock, Listener, Store

LEVELS_TOPIC: Final = "exitbrain.adaptive_levels"
PREVIEW_SUFFIX: Final = ".preview"
_RELAY_BATCH: Final = 100
_CURSOR_S: Final = 10.0


# --- Levels ------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class ConfirmedOrder:
    """An order of which something filled. Made from its record only: there is a position to which levels belong."""

    order_id: str
    symbol: str
    filled_quantity: Decimal

    @classmethod
    def of(cls, record: IntentRecord) -> ConfirmedOrder:
        """What *record* proves.

        Raises:
            InvalidInput: nothing filled (yet), whatever was sent: there is no position.
        """
        filled = [attempt for attempt in record.attempts if attempt.filled_quantity > 0]
        if not filled:
            raise InvalidInput(
                f"intent {record.intent.key!r} is {record.state.value} and nothing of it filled: publish a preview",
                intent_key=record.intent.key,
            )
        last = filled[-1]
        return cls(
            order_id=last.venue_order_id or last.client_order_id,
            symbol=record.intent.symbol,
            filled_quantity=record.filled_quantity,
        )


@attrs.frozen(kw_only=True)
class LevelsFacts:
    """What was computed.

    Attributes:
        levels: the payload of the levels (``Levels.to_payload()``).
        unit: of the prices in it: ``"fraction"`` of price, ``"percent"`` or ``"bps"``. Never left to the reader.
        leverage, volatility_factor: what they were computed from.
        ilf: recorded along with them.
        trace_id: of the signal.
    """

    levels: Params = attrs.field(converter=to_params)
    unit: str
    trace_id: str
    leverage: Decimal | None = None
    volatility_factor: Decimal | None = None
    ilf: IlfMetadata = attrs.field(factory=IlfMetadata)

    def payload(self, symbol: str, order_id: str) -> dict[str, Any]:
        """As published."""
        return {
            "symbol": symbol,
            "order_id": order_id,
            "leverage": None if self.leverage is None else plain(self.leverage),
            "volatility_factor": None if self.volatility_factor is None else plain(self.volatility_factor),
            "adaptive_levels": self.levels.thaw(),
            "ilf_metadata": self.ilf.to_payload(),
        }


def levels_event(order: ConfirmedOrder, facts: LevelsFacts, *, subject: str, at_ms: int) -> Event:
    """The levels of a position as an event, for a :class:`LevelsRelay`: once it is committed, they go out.

    *subject* is the position's id, *at_ms* when they were computed.
    """
    known = {"trace_id": facts.trace_id, "unit": facts.unit}
    return Event(
        type=EventType.LEVELS_COMPUTED,
        at_ms=at_ms,
        subject=subject,
        symbol=order.symbol,
        venue_order_id=order.order_id,
        quantity=order.filled_quantity,
        details={**facts.payload(order.symbol, order.order_id), **known},
    )


def preview_id(symbol: str, facts: LevelsFacts) -> PreviewId:
    """Identity of a preview: a pure function of what was computed, so that no two different ones share it."""
    digest = fingerprint_of({"trace": facts.trace_id, "unit": facts.unit, **facts.payload(symbol, "")})
    return PreviewId(f"PREVIEW-{digest}")


class LevelsPublisher:
    """Publishes exit levels: those of real positions to one topic, mere computations to another.

    Args:
        bus: where to.
        topic: for levels of positions; previews go to the same name with ``.preview``.
        source: who says it.
        listeners: told of ``levels_published``.
        clock: source of Unix milliseconds.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        topic: str = LEVELS_TOPIC,
        source: str = "execsafe",
        listeners: Sequence[Listener] = (),
        clock: Clock | None = None,
    ) -> None:
        self.topic: str = topic
        self.preview_topic: str = topic + PREVIEW_SUFFIX
        self._bus = bus
        self._source = source
        self._listeners = tuple(listeners)
        self._clock: Clock = clock if clock is not None else SystemClock()

    async def publish(self, order: ConfirmedOrder, facts: LevelsFacts) -> str:
        """Publish the levels of a position; the message's id."""
        message_id = await self._publish(self.topic, "adaptive_levels", order.symbol, order.order_id, facts)
        event = Event(
            type=EventType.LEVELS_PUBLISHED,
            at_ms=self._clock.now_ms(),
            subject=order.order_id,
            symbol=order.symbol,
            quantity=order.filled_quantity,
        )
        tell(self._listeners, event)
        return message_id

    async def preview(self, symbol: str, facts: LevelsFacts) -> PreviewId:
        """Publish what was computed for a trade that does not exist (yet)."""
        name = preview_id(symbol, facts)
        await self._publish(self.preview_topic, "adaptive_levels_preview", symbol, name.text, facts)
        return name

    async def _publish(self, topic: str, kind: str, symbol: str, order_id: str, facts: LevelsFacts) -> str:
        envelope = Envelope(
            event_type=kind,
            payload=Params.of(facts.payload(symbol, order_id)),
            trace_id=facts.trace_id,
            at_ms=self._clock.now_ms(),
            source=self._source,
            unit=facts.unit,
        )
        return await self._bus.publish(topic, envelope_fields(envelope))


# --- The outbox --------------------------------------------------------------------------------------


class EventRelay:
    """Carries the store's outbox to a bus: at least once, in order, resuming where it stopped.

    Args:
        store: whose events.
        bus: where to.
        topic: the topic.
        name: of its cursor; ``relay:{topic}`` unless given. Events are not purged before it has passed them: delete the
            cursor of a relay that does not come back (:meth:`Store.delete_cursor
            <execsafe.ports.Store.delete_cursor>`). A new name begins with the oldest event that is kept.
        source: who says it.
    """

    def __init__(
        self, store: Store, bus: Bus, *, topic: str = "events", name: str | None = None, source: str = "execsafe"
    ) -> None:
        self._store = store
        self._bus = bus
        self.topic: str = topic
        self._cursor = f"relay:{topic}" if name is None else name
        self._source = source

    async def relay(self) -> int:
        """Publish what is new; how many messages that were.

        Raises whatever the store or the bus raises: what was not published stays in the outbox for the next call.
        """
        count = 0
        while True:
            cursor = await self._store.get_cursor(self._cursor)
            events = await self._store.read_events(cursor, _RELAY_BATCH)
            published = cursor
            try:
                for stored in events:
                    fields = self.message(stored.seq, stored.event)
                    if fields is not None:
                        await self._bus.publish(self.topic, fields)
                        count += 1
                    published = stored.seq
            finally:
                # After the publication: a crash in between repeats some events, and loses none.
                if published > cursor:
                    with anyio.fail_after(_CURSOR_S, shield=True):  # a disk that hangs must not hold up a stop
                        await self._store.set_cursor(self._cursor, published)
            if len(events) < _RELAY_BATCH:
                return count

    def message(self, seq: int, event: Event) -> Mapping[str, Any] | None:
        """What is published of an event; None: nothing."""
        facts = {
            "seq": seq,
            "subject": event.subject,
            "symbol": event.symbol,
            "quantity": None if event.quantity is None else plain(event.quantity),
            "note": event.note,
            "client_order_id": event.client_order_id,
            "venue_order_id": event.venue_order_id,
            "error": None if event.error is None else event.error.kind,
            "details": event.details.thaw(),
        }
        with contextlib.suppress(InvalidInput):  # details near the limit, with what surrounds them, may exceed it
            return self._wrap(event, facts)
        return self._wrap(event, {**facts, "details": {}})

    def _wrap(self, event: Event, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        envelope = Envelope(
            event_type=event.type.value,
            payload=Params.of(facts),
            trace_id=f"event-{facts['seq']}",
            at_ms=event.at_ms,
            source=self._source,
        )
        return envelope_fields(envelope)


class LevelsRelay(EventRelay):
    """Carries the levels of positions from the store's outbox to a bus, as :class:`LevelsPublisher` would.

    Args:
        store: whose positions'.
        bus: where to.
        topic: the topic.
        name: of its cursor; ``levels:{topic}`` unless given. See :class:`EventRelay`.
        source: who says it.
    """

    def __init__(
        self, store: Store, bus: Bus, *, topic: str = LEVELS_TOPIC, name: str | None = None, source: str = "execsafe"
    ) -> None:
        super().__init__(store, bus, topic=topic, name=f"levels:{topic}" if name is None else name, source=source)

    def message(self, seq: int, event: Event) -> Mapping[str, Any] | None:  # noqa: ARG002 - the order is enough
        """The envelope of the levels in a ``levels_computed``; None for every other event."""
        if event.type is not EventType.LEVELS_COMPUTED:
            return None
        payload = event.details.thaw()
        trace_id, unit = payload.pop("trace_id", ""), payload.pop("unit", "")
        return envelope_fields(
            Envelope(
                event_type="adaptive_levels",
                payload=Params.of(payload),
                trace_id=trace_id or event.subject,
                at_ms=event.at_ms,
                source=self._source,
                unit=unit,
            )
        )
