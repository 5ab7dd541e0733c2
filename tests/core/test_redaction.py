"""Secrets stay in (G16): what leaves redact() holds no credential, on one bounded printable line."""

from __future__ import annotations

import base64
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.core.redaction import INPUT_MAX, LENGTH_MAX, MARK, redact

SECRETS = st.text(st.characters(exclude_categories=["Cs"]), min_size=8, max_size=64).filter(
    lambda s: "*" not in s and len(set(s)) > 3
)
NOISE = st.text(max_size=300)

LEAKY = {
    "signed url": "binance GET https://api.binance.com/api/v3/order?symbol=X&timestamp=1&signature=CANARY0123456789",
    "signed url, first": "x https://h/p?signature=CANARY0123456789&b=1 ExchangeNotAvailable",
    "bare query": "symbol=BTCUSDT&signature=CANARY0123456789&recvWindow=5000",
    "sign": "api_key=abc12345&sign=CANARY0123456789",
    "apiKey json": '{"apiKey": "CANARY0123456789", "x": 1}',
    "api_key repr": "{'api_key': 'CANARY0123456789'}",
    "json in json": r'"{\"apiKey\":\"CANARY0123456789\"}"',
    "unclosed": '{"secret": "CANARY0123456789',
    "spaces inside quotes": '"passphrase": "CANARY 0123456789 CANARY"',
    "mbx": "X-MBX-APIKEY: CANARY0123456789",
    "mbx dict": "{'X-MBX-APIKEY': 'CANARY0123456789'}",
    "okx key": "'OK-ACCESS-KEY': 'CANARY0123456789'",
    "okx sign": "OK-ACCESS-SIGN=CANARY0123456789",
    "okx passphrase": "ok-access-passphrase: CANARY0123456789",
    "bybit": "'X-BAPI-SIGN': 'CANARY0123456789', 'X-BAPI-API-KEY': 'CANARY0123456789'",
    "kucoin": '"KC-API-PASSPHRASE":"CANARY0123456789"',
    "bitget": "ACCESS-SIGN: CANARY0123456789",
    "kraken": "{'API-Key': 'CANARY0123456789', 'API-Sign': 'CANARY0123456789'}",
    "gate": "{'KEY': 'CANARY0123456789', 'SIGN': 'CANARY0123456789'}",
    "htx": "AccessKeyId=CANARY0123456789&Signature=CANARY0123456789",
    "bearer": "Authorization: Bearer CANARY0123456789",
    "bearer alone": "got bearer CANARY0123456789 from",
    "deribit": "Authorization: deri-hmac-sha256 id=CANARY0123456789,ts=1,sig=CANARY0123456789,nonce=2",
    "basic": "{'Authorization': 'Basic CANARY0123456789=='}",
    "listen key": "wss://stream/ws?listenKey=CANARY0123456789",
    "jwt": "token eyJhbGciOiJIUzI1NiJ9.eyJDQU5BUlkiOjF9.CANARY0123456789 end",
    "redis dsn": "redis://:CANARY0123456789@localhost:6379/0",
    "postgres dsn": "postgresql://bot:CANARY/01?23@45@db.example/x",
    "key value dsn": "host=db user=bot password=CANARY0123456789 dbname=x",
    "proxy": "http://bot:CANARY0123456789@proxy:3128",
    "pem": "-----BEGIN EC PRIVATE KEY-----\nCANARY\n0123\n-----END EC PRIVATE KEY-----",
    "pem cut": "-----BEGIN PRIVATE KEY-----\\nCANARY",
    "percent encoded": "redirect?to=x%26signature%3DCANARY0123456789",
}


@pytest.mark.parametrize("text", LEAKY.values(), ids=LEAKY.keys())
def test_credentials_are_recognised_by_their_surroundings(text: str) -> None:
    """Without being told the secret, whatever stands where credentials stand is replaced."""
    cleaned = redact(text)
    assert "CANARY" not in cleaned
    assert MARK in cleaned
    assert redact(cleaned) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        'binance {"code":-2010,"msg":"Duplicate order sent."}',
        "https://api.binance.com/api/v3/exchangeInfo?symbol=BTCUSDT failed",
        "design: assign x=1, signal=buy, tokens=5, monkey: banana",
        "intent key 'signal-42' of BTC/USDT:USDT",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    """Redaction does not eat what an operator needs to read."""
    assert redact(text) == text


def spellings(secret: str) -> dict[str, str]:
    raw = secret.encode()
    return {
        "raw": secret,
        "url": quote(secret, safe=""),
        "base64": base64.b64encode(raw).decode(),
        "base64url": base64.urlsafe_b64encode(raw).decode(),
        "base64 inside": base64.b64encode(b"u:" + raw + b"!").decode(),
        "hex": raw.hex(),
        "HEX": raw.hex().upper(),
    }


@given(secret=SECRETS, before=NOISE, after=NOISE, spelling=st.sampled_from(sorted(spellings("x"))))
def test_g16_a_known_secret_never_survives(secret: str, before: str, after: str, spelling: str) -> None:
    """G16: a configured secret is gone in every spelling, whatever stands around it."""
    shown = spellings(secret)[spelling]
    cleaned = redact(before + shown + after, [secret])
    assert secret not in cleaned
    if len(shown) > 8:
        assert shown not in cleaned


@given(text=st.text(max_size=3_000), secrets=st.lists(SECRETS, max_size=3))
def test_redaction_is_idempotent_bounded_and_printable(text: str, secrets: list[str]) -> None:
    """Redacting twice changes nothing; the result is one printable line of at most 2,000 characters."""
    cleaned = redact(text, secrets)
    assert redact(cleaned, secrets) == cleaned
    assert len(cleaned) <= LENGTH_MAX
    assert cleaned.isprintable()


@given(
    pieces=st.lists(
        st.sampled_from(
            [
                "signature=",
                "Bearer ",
                "eyJhbGciOiJI",
                '"',
                "'",
                "\\",
                "://",
                "@",
                "?",
                "***",
                "*",
                "api_key",
                ":",
                " ",
                "a1b2c3d4",
                "\n",
                "-----BEGIN PRIVATE KEY-----",
                "x" * 700,
            ]
        ),
        max_size=40,
    )
)
def test_redaction_of_hostile_fragments_is_idempotent(pieces: list[str]) -> None:
    """Fragments of credentials in any order settle after one call."""
    cleaned = redact("".join(pieces), ["a1b2c3d4"])
    assert redact(cleaned, ["a1b2c3d4"]) == cleaned
    assert "a1b2c3d4" not in cleaned


def test_a_secret_cut_by_a_bound_leaves_no_rest() -> None:
    """Neither the bound of the input nor that of the output lets half a secret through."""
    secret = "S3cr3tS3cr3tS3cr3tS3cr3t"
    for length in (LENGTH_MAX - 10, INPUT_MAX - 10):
        assert "S3cr3t" not in redact("z" * length + secret, [secret])
    # What is cut off at the end of a long input comes into sight when something before it shrinks.
    shrinking = "signature=" + "z" * (INPUT_MAX - 22) + " " + secret
    assert "S3cr3t" not in redact(shrinking[:-1] + "t" + "z" * 9, [secret])
    assert len(shrinking) > INPUT_MAX


def test_a_cut_does_not_split_a_mark() -> None:
    """Half a mark would be taken for a value, and redacting twice would change it."""
    for length in range(LENGTH_MAX - 20, LENGTH_MAX):
        cleaned = redact("x" * length + " signature=abcdefgh")
        assert redact(cleaned) == cleaned
        assert cleaned.count("*") in {0, 3}


def test_control_characters_cannot_forge_a_log_line() -> None:
    """Newlines, escapes, bidi marks and line separators are written out; a lone surrogate does not raise."""
    assert redact("a\nb\rc\x1b[31m\u2028\u202e\ud800") == r"a\nb\rc\x1b[31m\u2028\u202e\ud800"


@pytest.mark.parametrize(
    "unit",
    [
        "http://",
        "signature=",
        'sign="',
        "eyJ",
        "eyJaaaaaaaaa.",
        "bearer ",
        "authorization: ",
        "-----BEGIN PRIVATE KEY-----",
        "a",
        "api-",
        "secret",
        "{",
        '\\"',
        "%3d",
        "@",
        "\n",
    ],
)
def test_time_is_linear_in_the_text(unit: str) -> None:
    """100,000 characters of the worst kind take less than 50 ms of processor time."""
    text = (unit * 100_000)[:100_000]
    best = float("inf")
    for _ in range(3):
        started = time.thread_time()
        redact(text, ["0123456789abcdef" * 4])
        best = min(best, time.thread_time() - started)
    assert best < 0.05
