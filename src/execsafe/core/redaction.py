"""Takes secrets out of text before it is logged, journalled or raised.

ccxt puts whole signed URLs into its messages, so nothing that a venue's client says may be kept as it is.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, quote_plus

MARK: Final = "***"
LENGTH_MAX: Final = 2_000
# Longer input is cut before it is searched, so that hostile text costs a bounded time.
INPUT_MAX: Final = 32_768
# Shorter "secrets" would tear ordinary words apart and hide nothing.
_SECRET_LENGTH_MIN: Final = 4
_PASSES_MAX: Final = 6

# Unmistakable wherever they stand in a name, and short words that must stand alone ("design:" is no "sign:").
_LONG_NAMES: Final = (
    "signature|api[_-]?key|api[_-]?sign|secret|passphrase|password|passwd|listen[_-]?key|private[_-]?key"
    "|access[_-]?key[_-]?id|access[_-]?token|refresh[_-]?token|client[_-]?secret"
)
_SHORT_NAMES: Final = "sign|sig|token|pwd|(?-i:KEY|SIGN)"
_HEADERS: Final = "(?:x-bapi|x-mexc|x-mbx|kc-api|ok-access|cb-access|access|api)-[a-z][a-z-]{0,30}"
_GLUE: Final = r"[\\\"']{0,4}\s{0,4}(?:[:=]|%3[da])\s{0,4}"
_NAMED: Final = re.compile(
    rf"(?P<name>(?:(?:{_LONG_NAMES})[\w-]{{0,20}}|(?<![a-z])(?:{_SHORT_NAMES}|{_HEADERS})){_GLUE}b?\\{{0,3}})"
    r"(?:(?P<quote>[\"'])[^\"']*|[^\s&,;\"'<>{}\[\]()]+)",
    re.IGNORECASE,
)
_AUTHORIZATION: Final = re.compile(
    r"(?P<name>authorization[\\\"']{0,4}\s{0,4}[:=]\s{0,4}\\{0,3}[\"']?)(?:(?!\\[rn])[^\"'{}])+",
    re.IGNORECASE,
)
_BEARER: Final = re.compile(r"(?<![a-z])(?P<name>(?:bearer|basic)\s{1,4})[^\s\"',;]+", re.IGNORECASE)
# "{" and a quote in base64: JSON web tokens, and payloads that some venues put into headers.
_BASE64_JSON: Final = re.compile(r"eyJ[\w-]{8,}(?:\.[\w-]*)*")
_PEM_EDGE: Final = "[A-Z ]{0,30}PRIVATE KEY-----"
_PEM: Final = re.compile(rf"-----BEGIN {_PEM_EDGE}.*?(?:-----END {_PEM_EDGE}|\Z)", re.DOTALL)
_URL: Final = re.compile(r"://(?P<rest>[^\s\"'<>]*)")
_SIGNED: Final = re.compile(r"sign|sig=|key|token|auth|pass", re.IGNORECASE)


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """*text* without secrets, on one printable line of at most 2,000 characters.

    Args:
        text: anything a venue's client, a driver or a user may have produced.
        secrets: known secrets; each is also found URL-encoded, in base64 (at any alignment), in hex and
            JSON-escaped. Those shorter than 4 characters are ignored.

    Returns:
        The text with every known secret and whatever looks like a credential (signatures, keys, tokens,
        passphrases, ``Authorization``, JSON web tokens, user info and signed queries in URLs, private keys)
        replaced by ``***``, and control, bidirectional and line-separating characters escaped. Redacting the
        result again changes nothing. Takes time linear in the text.
    """
    forms = _forms(secrets)
    cleaned = _clean(_printable(text[:INPUT_MAX]), forms)
    if len(text) > INPUT_MAX and forms:
        # A secret cut in two by the bound is no longer recognised: drop where its first part may be.
        cleaned = cleaned[: -len(forms[0])]
    cleaned = _cut(cleaned)
    for _ in range(_PASSES_MAX):  # a replacement can complete another match; settled after one or two
        again = _cut(_clean(cleaned, forms))
        if again == cleaned:
            break
        cleaned = again
    return cleaned


def _clean(text: str, forms: Sequence[str]) -> str:
    for form in forms:
        text = text.replace(form, MARK)
    text = _PEM.sub(MARK, text)
    text = _URL.sub(_clean_url, text)
    text = _AUTHORIZATION.sub(rf"\g<name>{MARK}", text)
    text = _BEARER.sub(rf"\g<name>{MARK}", text)
    text = _NAMED.sub(_clean_named, text)
    return _BASE64_JSON.sub(MARK, text)


def _clean_named(match: re.Match[str]) -> str:
    return f"{match['name']}{match.groupdict(default='')['quote']}{MARK}"


def _clean_url(match: re.Match[str]) -> str:
    rest = match["rest"]
    if "@" in rest:  # user and password, which may themselves hold any character
        rest = f"{MARK}@{rest.rpartition('@')[2]}"
    path, mark, query = rest.partition("?")
    if mark and _SIGNED.search(query):
        rest = f"{path}?{MARK}"
    return f"://{rest}"


def _cut(text: str) -> str:
    if len(text) <= LENGTH_MAX:
        return text
    end = LENGTH_MAX
    split = text.find(MARK, end - len(MARK) + 1, end + len(MARK) - 1)
    return text[: end if split < 0 else split]


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return text.translate({ord(char): _escaped(char) for char in set(text) if not char.isprintable()})


def _escaped(char: str) -> str:
    # A lone surrogate cannot be encoded; ascii() spells it, and every other character, as an escape.
    return ascii(char)[1:-1]


def _forms(secrets: Sequence[str]) -> list[str]:
    """Every spelling of the secrets, the longest first so that none leaves a rest of another."""
    found: set[str] = set()
    for secret in secrets:
        if len(secret) < _SECRET_LENGTH_MIN:
            continue
        raw = secret.encode("utf-8", "surrogatepass")
        escaped = json.dumps(secret)[1:-1]
        pythonic = secret.encode("unicode_escape").decode()
        found |= {secret, _printable(secret), pythonic, escaped, escaped.replace("\\", "\\\\")}
        quoted = {quote(raw, safe=""), quote(raw), quote_plus(raw)}
        found |= quoted | {re.sub("%[0-9A-F]{2}", lambda m: m[0].lower(), form) for form in quoted}
        found |= {raw.hex(), raw.hex().upper()}
        for offset in range(3):  # base64 of a longer text that contains the secret, at each alignment
            whole = base64.b64encode(bytes(offset) + raw).decode().rstrip("=")
            end = (offset + len(raw)) * 8 // 6  # the last character may depend on what follows
            inner = whole[(offset * 8 + 5) // 6 : end]
            found |= {inner, inner.replace("+", "-").replace("/", "_")}
    return sorted((form for form in found if len(form) >= _SECRET_LENGTH_MIN), key=lambda form: (-len(form), form))
