"""What an error means: ccxt's real classes, and everything that is not one of them."""

from __future__ import annotations

import asyncio

import ccxt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.core.outcomes import Rule, classify, venue_code
from execsafe.errors import AlreadyInFlight, InvalidInput, TradingDenied, UnsupportedByVenue
from execsafe.model.outcome import Meaning, Operation

REJECTED, UNKNOWN, EXISTS = Meaning.REJECTED, Meaning.UNKNOWN, Meaning.EXISTS
# Every exception class of ccxt, as an answer to create_order. A new class in ccxt fails the test until it is judged.
ON_CREATE = {
    **dict.fromkeys(
        [
            "ArgumentsRequired", "NotSupported", "BadSymbol", "InvalidProxySettings", "InvalidAddress",
            "AddressPending", "AuthenticationError", "PermissionDenied", "AccountNotEnabled", "AccountSuspended",
            "InsufficientFunds", "ContractUnavailable", "OrderImmediatelyFillable", "OrderNotFillable",
            "MarketClosed", "ManualInteractionNeeded", "RestrictedLocation", "BadRequest", "InvalidOrder",
            "OperationRejected", "InvalidNonce", "ChecksumError",
        ],
        REJECTED,
    ),
    **dict.fromkeys(
        [
            "BaseError", "ExchangeError", "OperationFailed", "NetworkError", "RequestTimeout",
            "ExchangeNotAvailable", "OnMaintenance", "BadResponse", "NullResponse", "CancelPending",
            "OrderNotFound", "OrderNotCached", "NoChange", "MarginModeAlreadySet", "ExchangeClosedByUser",
            "UnsubscribeError", "DDoSProtection", "RateLimitExceeded",
        ],
        UNKNOWN,
    ),
    "DuplicateOrderId": EXISTS,
}  # fmt: skip
CCXT_CLASSES = {
    name: cls for name, cls in vars(ccxt).items() if isinstance(cls, type) and issubclass(cls, ccxt.BaseError)
}


def meaning(error: BaseException, operation: Operation = Operation.CREATE, **more: object) -> Meaning:
    return classify(error, operation, **more).meaning  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(CCXT_CLASSES))
def test_every_ccxt_class_on_create_means_what_the_table_says(name: str) -> None:
    """Only "definitely not placed" is REJECTED; a new class of ccxt has no entry here and fails."""
    assert meaning(CCXT_CLASSES[name]("binance x")) is ON_CREATE[name]


@pytest.mark.parametrize("base", sorted(CCXT_CLASSES))
def test_a_class_derived_from_a_broad_one_is_unknown(base: str) -> None:
    """An invented class is judged by a narrow ancestor at most, never by a catch-all."""
    invented = type("Invented", (CCXT_CLASSES[base],), {})
    broad = {"BadRequest", "InvalidOrder", "OperationRejected"}
    assert meaning(invented("x")) is (UNKNOWN if base in broad else ON_CREATE[base])


def _look_alikes() -> list[BaseException]:
    return [
        type(name, (Exception,), {})("not ccxt's")
        for name in ("InvalidOrder", "AuthenticationError", "InsufficientFunds", "OrderNotFound")
    ]


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        TypeError("'NoneType' object is not subscriptable"),
        KeyError("orderId"),
        ConnectionResetError(),
        InvalidInput("raised while parsing an answer"),
        AlreadyInFlight("x"),
        ExceptionGroup("x", [ccxt.InvalidOrder("x")]),
        *_look_alikes(),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("operation", list(Operation))
def test_whatever_is_not_ccxts_is_unknown(error: BaseException, operation: Operation) -> None:
    """Time-outs, cancellation, parse errors and other libraries' errors of the same name prove nothing."""
    assert meaning(error, operation) is UNKNOWN


@pytest.mark.parametrize("error", [UnsupportedByVenue("x"), TradingDenied("x")])
def test_our_own_refusal_before_sending_is_definite(error: Exception) -> None:
    """These are raised before anything is sent, and say so."""
    assert meaning(error) is REJECTED


@pytest.mark.parametrize(
    ("error", "operation", "expected"),
    [
        (ccxt.OrderNotFound("x"), Operation.LOOK_UP, Meaning.NOT_FOUND),
        (ccxt.OrderNotFound("x"), Operation.CANCEL, Meaning.NOT_FOUND),
        (ccxt.OrderNotFound("x"), Operation.CREATE, UNKNOWN),
        (ccxt.OrderNotFound("x"), Operation.SET_LEVERAGE, UNKNOWN),
        (ccxt.OrderNotCached("x"), Operation.LOOK_UP, UNKNOWN),
        (ccxt.MarginModeAlreadySet("x"), Operation.SET_MARGIN_MODE, Meaning.NO_CHANGE),
        (ccxt.NoChange("x"), Operation.SET_LEVERAGE, Meaning.NO_CHANGE),
        (ccxt.NoChange("x"), Operation.CREATE, UNKNOWN),
        (ccxt.DuplicateOrderId("x"), Operation.CANCEL, UNKNOWN),
    ],
)
def test_the_operation_decides(error: Exception, operation: Operation, expected: Meaning) -> None:
    """Not found is an answer to a look-up or a cancel only, no change to a setting, exists to a create."""
    assert meaning(error, operation) is expected


def _chained(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


class ClientOSError(Exception):
    """Stand-ins for aiohttp's classes: they are known by name."""


class ClientConnectorError(ClientOSError):
    pass


class ClientConnectorDNSError(ClientConnectorError):
    pass


class ConnectionTimeoutError(TimeoutError):
    pass


class ServerDisconnectedError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_chained(ccxt.ExchangeNotAvailable("x"), ClientConnectorError()), REJECTED),
        (_chained(ccxt.ExchangeNotAvailable("x"), ClientConnectorDNSError()), REJECTED),
        (_chained(ccxt.RequestTimeout("x"), ConnectionTimeoutError()), REJECTED),
        (_chained(ccxt.ExchangeNotAvailable("x"), ServerDisconnectedError()), UNKNOWN),
        (_chained(ccxt.ExchangeNotAvailable("x"), ClientOSError()), UNKNOWN),
        (_chained(ccxt.RequestTimeout("x"), TimeoutError()), UNKNOWN),
        (_chained(ccxt.ExchangeError("x"), ClientConnectorError()), UNKNOWN),
        (
            _chained(ccxt.ExchangeNotAvailable("2nd"), _chained(ccxt.RequestTimeout("1st"), ClientConnectorError())),
            UNKNOWN,
        ),
    ],
)
def test_only_a_connection_that_never_came_about_is_not_placed(error: Exception, expected: Meaning) -> None:
    """By the direct cause: further down the chain may be the failure of another try."""
    assert meaning(error) is expected


def test_the_real_aiohttp_classes_have_those_names() -> None:
    """The names are aiohttp's; should they change, never-connected would silently become UNKNOWN (safe, but slow)."""
    aiohttp = pytest.importorskip("aiohttp")
    assert issubclass(aiohttp.ClientConnectorDNSError, aiohttp.ClientConnectorError)
    assert aiohttp.ClientConnectorError.__name__ == "ClientConnectorError"
    assert aiohttp.ConnectionTimeoutError.__name__ == "ConnectionTimeoutError"
    assert not issubclass(aiohttp.ServerDisconnectedError, aiohttp.ClientConnectorError)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("binance POST https://api.binance.com/api/v3/order 429 Too Many Requests ", REJECTED),
        ("binance 418 I'm a teapot {}", REJECTED),
        ("bybit POST https://api.bybit.com/v5/order/create 403 Forbidden access too frequent", UNKNOWN),
        ('binance {"code":-2015,"msg":"429 orders"}', UNKNOWN),
        ("binance POST https://h/order?x=429 503 busy 429 ", UNKNOWN),
    ],
)
def test_a_rate_limit_is_definite_by_http_status_only(message: str, expected: Meaning) -> None:
    """429 and 418 turn a request away before it is processed; the class alone stands for more than that."""
    assert meaning(ccxt.RateLimitExceeded(message)) is expected
    assert meaning(ccxt.DDoSProtection(message)) is expected


TABLE = (
    Rule(meaning=EXISTS, reason="duplicate", code="-2010", text="duplicate order"),
    Rule(meaning=Meaning.NO_CHANGE, reason="same", code="110043", operations=[Operation.SET_LEVERAGE]),
    Rule(meaning=REJECTED, reason="own client", kind="MyRefusal"),
)


def test_a_rule_needs_all_its_conditions() -> None:
    """Code and text both count; the operation too."""
    duplicate = ccxt.InvalidOrder('binance {"code":-2010,"msg":"Duplicate order sent."}')
    assert meaning(duplicate, table=TABLE) is EXISTS
    assert meaning(ccxt.InvalidOrder('binance {"code":-2010,"msg":"no funds"}'), table=TABLE) is REJECTED
    assert meaning(duplicate, Operation.LOOK_UP, table=TABLE) is REJECTED
    leverage = ccxt.BadRequest('bybit {"retCode":110043,"retMsg":"leverage not modified"}')
    assert meaning(leverage, Operation.SET_LEVERAGE, table=TABLE) is Meaning.NO_CHANGE
    assert meaning(leverage, Operation.CREATE, table=TABLE) is not Meaning.NO_CHANGE


def test_rules_speak_for_foreign_errors_by_class_name_only() -> None:
    """A text in some library's error must not be taken for the venue's."""

    class MyRefusal(Exception):
        pass

    assert meaning(MyRefusal("x"), table=TABLE) is REJECTED
    assert meaning(RuntimeError('{"code":-2010} duplicate order'), table=TABLE) is UNKNOWN


def test_a_rule_without_condition_is_refused() -> None:
    """It would match every error."""
    with pytest.raises(InvalidInput):
        Rule(meaning=REJECTED, reason="everything")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('binance {"code":-2010,"msg":"x"}', "-2010"),
        ('bybit {"retCode":110072,"retMsg":"x","result":{}}', "110072"),
        ('okx {"code":"1","data":[{"sCode":"51016","sMsg":"x"}],"msg":""}', "51016"),
        ('okx {"code":"50004","data":[],"msg":"x"}', "50004"),
        ('okx {"code":"50011","data":[{"sCode":"0"}]}', "50011"),
        ('gate {"label":"ORDER_NOT_FOUND","message":"x"}', "ORDER_NOT_FOUND"),
        ('kraken {"error":["EOrder:Unknown order"]}', "EOrder:Unknown order"),
        ('coinbase {"success":false,"error_response":{"error":"INSUFFICIENT_FUND"}}', "INSUFFICIENT_FUND"),
        ('htx {"status":"error","err-code":"base-record-invalid","err-msg":"x"}', "base-record-invalid"),
        ('deribit {"jsonrpc":"2.0","error":{"code":10004,"message":"order_not_found"}}', "10004"),
        ('binance GET https://h/p?q={x} 400 Bad {"code":-1}', "-1"),
        ("binance no body", None),
        ("", None),
        ("{" * 10_000, None),
        ('x {"code":' + "[" * 10_000, None),
        ('x {"code":true}', None),
        ('x {"code":{"a":1}}', None),
    ],
)
def test_the_venues_code_is_found_in_the_message(message: str, code: str | None) -> None:
    """In every shape of the venues known, and None in garbage."""
    assert venue_code(message) == code


@given(st.text(max_size=500), st.sampled_from(list(Operation)), st.sampled_from(sorted(CCXT_CLASSES)))
def test_classification_never_raises(message: str, operation: Operation, name: str) -> None:
    """Whatever a venue writes into its answer."""
    judged = classify(CCXT_CLASSES[name](message), operation, table=TABLE)
    assert judged.facts.kind == name


def test_an_error_that_cannot_be_printed_is_unknown() -> None:
    """A foreign __str__ may raise."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert meaning(Broken()) is UNKNOWN


def test_g16_facts_are_redacted() -> None:
    """G16: ccxt puts the signed URL into its messages; none of it reaches the facts."""
    error = ccxt.RequestTimeout("binance GET https://h/order?timestamp=1&signature=CANARY0123456789")
    judged = classify(error, Operation.LOOK_UP, secrets=["k3yCANARYk3y"])
    assert "CANARY" not in str(judged)
    judged = classify(ccxt.BadRequest('x {"code":"k3yCANARYk3y"}'), Operation.CREATE, secrets=["k3yCANARYk3y"])
    assert "CANARY" not in str(judged)
