"""Relatives of the listed venues: ccxt's subclasses of them, and exchanges that only share the name."""

from __future__ import annotations

import inspect
from typing import Any

import ccxt
import ccxt.async_support
import pytest

import execsafe
from execsafe.model.intent import Intent
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.venue import Dedup, Expiry
from execsafe.venues.ccxt_adapter import CcxtAdapter
from execsafe.venues.outcomes import codes_of
from execsafe.venues.profiles import PROFILES, RELATIVES, profile_for
from venues.offline import SPOT, SWAP, Sent, Wire, make

pytestmark = pytest.mark.anyio
OTHER_PARAMETERS = {"binancecoinm": "binance", "kucoinfutures": "kucoin"}
NAMESAKES = ("krakenfutures", "coinbaseexchange")
MODES = {
    "/v5/user/query-api": {"retCode": 0, "result": {"unified": 1, "uta": 1}},
    "/v5/account/info": {"retCode": 0, "result": {"unifiedMarginStatus": 6}},
    "/api/ua/v1/account/mode": {"code": "200000", "data": {"selfAccountMode": "CLASSIC"}},
    "/api/v4/account/detail": {"key": {"mode": 1}},
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """ccxt's asynchronous clients run on asyncio only."""
    return "asyncio"


def subclasses() -> dict[str, str]:
    """ccxt's exchanges that derive from a listed one, and are not listed themselves."""
    found = {}
    for name in ccxt.exchanges:
        parents = [cls.__name__ for cls in getattr(ccxt.async_support, name).__mro__[1:]]
        parent = next((parent for parent in parents if parent in PROFILES), None)
        if parent is not None and name not in PROFILES:
            found[name] = parent
    return found


def test_every_subclass_of_a_listed_exchange_has_been_looked_at() -> None:
    """A new one in ccxt fails here, until somebody says whether its parameters are its parent's."""
    assert subclasses() == {**RELATIVES, **OTHER_PARAMETERS}


@pytest.mark.parametrize("name", sorted(RELATIVES))
def test_a_relative_is_its_parents_client_at_another_address(name: str) -> None:
    """It describes itself, and changes no method."""
    cls = getattr(ccxt.async_support, name)
    own = {line.split("def ")[1].split("(")[0] for line in inspect.getsource(cls).splitlines() if " def " in line}
    assert own == {"describe"}


@pytest.mark.parametrize("name", sorted(RELATIVES))
def test_a_relative_is_asked_like_its_parent_and_promised_nothing(name: str) -> None:
    """Fields and views are the client's; what the venue enforces is its own, and unverified."""
    mine, parent = profile_for(name), PROFILES[RELATIVES[name]]
    assert mine.name == name
    assert (mine.client_order_id, mine.lookups, mine.cancel_params) == (
        parent.client_order_id,
        parent.lookups,
        parent.cancel_params,
    )
    assert (mine.dedup, mine.expiry, mine.expiry_param, mine.definite_ack) == (Dedup.NONE, Expiry.NONE, None, False)


def answer(name: str, sent: Sent) -> Any:
    """The venue's answer: an order is taken, and shown as open ever after."""
    cid = "CID"
    fields = sent.fields
    for field in ("newClientOrderId", "origClientOrderId", "orderLinkId", "clOrdId", "clientOid", "text", "cliOrdId"):
        cid = str(fields.get(field, cid))
    cid = str(fields.get("client_oid", fields.get("client_order_id", cid)))
    if sent.path in MODES:
        return MODES[sent.path]
    family = subclasses().get(name, name)
    symbol = {"kucoinfutures": "XBTUSDTM"}.get(name, "BTCUSDT")
    binance = {
        "symbol": symbol, "orderId": 7, "clientOrderId": cid, "price": "50000", "origQty": "2", "executedQty": "0",
        "status": "NEW", "timeInForce": "GTC", "type": "LIMIT", "side": "SELL", "updateTime": 1_700_000_000_000,
    }  # fmt: skip
    bybit = {"orderId": "7", "orderLinkId": cid, "symbol": symbol, "side": "Sell", "qty": "2", "orderStatus": "New"}
    okx = {"ordId": "7", "clOrdId": cid, "instId": "BTC-USDT", "side": "sell", "sz": "2", "state": "live", "sCode": "0"}
    gate = {
        "id": "7", "text": cid, "currency_pair": "BTC_USDT", "side": "sell", "amount": "2", "price": "50000",
        "left": "2", "status": "open", "type": "limit",
    }  # fmt: skip
    placed = {
        "type": "PLACE",
        "order": {"orderId": "7", "cliOrdId": cid, "symbol": symbol, "side": "sell", "quantity": 2, "filled": 0},
    }
    answers: dict[str, Any] = {
        "binance": binance,
        "bybit": {"retCode": 0, "result": {**bybit, "list": [bybit]}},
        "okx": {"code": "0", "data": [okx]},
        "gate": gate,
        "kucoin": {"code": "200000", "data": {"orderId": "7", "clientOid": cid}},
        "krakenfutures": {
            "result": "success",
            "sendStatus": {"order_id": "7", "status": "placed", "orderEvents": [placed]},
        },
        "coinbaseexchange": {"id": "7", "client_oid": cid, "product_id": "BTC-USDT", "side": "sell", "size": "2"},
    }
    return answers[family]


@pytest.mark.parametrize("name", [*sorted(RELATIVES), *sorted(OTHER_PARAMETERS), *NAMESAKES])
async def test_a_successful_order_is_accepted(name: str) -> None:
    """However little is known of the venue: what it acknowledges is no doubt."""
    exchange = make(name)
    wire = Wire(exchange, lambda sent: answer(name, sent))
    symbol = SWAP if name in {*OTHER_PARAMETERS, "krakenfutures"} else SPOT
    async with execsafe.open_store("memory://") as store:
        policy = execsafe.GatewayPolicy(patience_s=0.1)
        looks = execsafe.LookPolicy(interval_s=0.02, spacing_s=0)
        registry = execsafe.IntentRegistry(store)
        gateway = execsafe.OrderGateway(CcxtAdapter(exchange), registry, policy=policy, looks=looks)
        order = Intent(key="k", symbol=symbol, side="sell", quantity="2", limit_price="50000")
        outcome = await gateway.submit(order)
    await exchange.close()
    assert isinstance(outcome, execsafe.Accepted), [outcome, [s.path for s in wire.sent]]
    assert outcome.record.last is not None
    assert outcome.record.last.venue_order_id == "7"


@pytest.mark.parametrize(
    ("name", "kind", "body"),
    [
        ("binanceus", "InvalidOrder", '{"code":-2010,"msg":"Duplicate order sent."}'),
        ("binancecoinm", "InvalidOrder", '{"code":-4116,"msg":"ClientOrderId is duplicated."}'),
        ("bybiteu", "InvalidOrder", '{"retCode":170141,"retMsg":"Duplicate clientOrderId"}'),
        ("gateeu", "InvalidOrder", '{"label":"REPEATED_CREATION","message":"x"}'),
        ("myokx", "InvalidOrder", '{"code":"1","data":[{"sCode":"51016","sMsg":"x"}]}'),
        ("kucoinfutures", "InvalidOrder", '{"code":"126044","msg":"clientOid duplicate"}'),
    ],
)
def test_g4_a_relatives_duplicate_is_no_reject(name: str, kind: str, body: str) -> None:
    """G4: the same table of errors in ccxt, the same codes beside it."""
    error = getattr(ccxt, kind)(f"{name} {body}")
    adapter = CcxtAdapter(make(name))
    assert adapter.judge(error, Operation.CREATE).meaning is Meaning.EXISTS
    assert codes_of("nobody") == ()
