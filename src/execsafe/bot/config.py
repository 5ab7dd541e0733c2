"""Configuration of ``execsafe run``: one TOML file, checked whole before anything starts. Keys never come from it.

    [venue]
    exchange = "bybit"            # ccxt's id
    # sandbox = true              # the venue's test network; false only together with live = true

    [strategy]
    name = "waves"                # or "pairs", "signals", or "my_package.my_module:MyStrategy"
    symbols = ["ETH/USDT:USDT"]

Every other value has a default; ``execsafe run --config FILE --show`` prints what is in force.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, TypeVar, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn

import execsafe
from execsafe.bot.environment import BUS, STORE, has_password, shown_url, variable
from execsafe.bot.feed import interval_ms
from execsafe.buses import check_name
from execsafe.core.redaction import redact

T = TypeVar("T")

_FILE_BYTES_MAX: Final = 1_000_000
_PORT_MAX: Final = 65_535
_CREDENTIALS: Final = {"apiKey": "API_KEY", "secret": "API_SECRET", "password": "API_PASSWORD", "uid": "API_UID"}
_ACCOUNT: Final = re.compile(r"[A-Za-z0-9_]+")
_URLS: Final = frozenset({("run", "store"), ("bus", "url")})
_SECRET_WORDS: Final = ("key", "secret", "password", "token", "passphrase")


def _above_zero(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not value > 0:
        raise execsafe.InvalidInput(f"{attribute.name} must be above 0, was {value}")


def _below(limit: int, why: str) -> Callable[[object, attrs.Attribute[Any], Any], None]:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        _above_zero(_instance, attribute, value)
        if not value < limit:
            raise execsafe.InvalidInput(f"{attribute.name} must be below {limit}, was {value}: {why}")

    return check


def _one_of(*known: str) -> Callable[[object, attrs.Attribute[Any], str], None]:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
        if value not in known:
            raise execsafe.InvalidInput(f"'{attribute.name}' must be {' or '.join(map(repr, known))}, was {value!r}")

    return check


def _an_address(_instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    host, _, port = value.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and 1 <= int(port) <= _PORT_MAX  # 0: nobody would know which it is
    if value and not (host and is_port and not set(host) & set("[]")):
        raise execsafe.InvalidInput(f"'{attribute.name}' must be like '127.0.0.1:9464' or '[::1]:9464', was {value!r}")


def _without_brackets(value: str) -> str:
    """``[::1]:9464`` as the server takes it."""
    host, colon, port = value.rpartition(":")
    return f"{host[1:-1]}:{port}" if colon and host.startswith("[") and host.endswith("]") else value


def _an_account(_instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if not _ACCOUNT.fullmatch(value):
        raise execsafe.InvalidInput(
            f"'{attribute.name}' must be letters, digits and _, as in the variables of its keys "
            f"(EXECSAFE_MAIN_API_KEY), was {value!r}"
        )


def _a_length(_instance: object, _attribute: attrs.Attribute[Any], value: str) -> None:
    interval_ms(value)


def amount(value: object) -> Decimal:
    """A Decimal from a number or text; floats by their ``repr``.

    Raises:
        InvalidInput: anything that is not a finite number.
    """
    try:
        number = Decimal(repr(value) if isinstance(value, float) else str(value))
    except InvalidOperation:
        raise execsafe.InvalidInput(f"not a number: {str(value)[:40]!r}") from None
    if not number.is_finite():
        raise execsafe.InvalidInput("a number must be finite")
    return number


@attrs.frozen(kw_only=True)
class VenueConfig:
    """Where to trade. ``sandbox`` is on unless it is switched off *and* ``live`` is said: two words for real money."""

    exchange: str
    account: str = attrs.field(default="default", validator=_an_account)
    sandbox: bool = True
    live: bool = False
    options: dict[str, Any] = attrs.Factory(dict)

    def __attrs_post_init__(self) -> None:
        """Refuse to guess whether real money is meant."""
        if self.live is self.sandbox:
            raise execsafe.InvalidInput(
                "venue: real trading needs both live = true and sandbox = false; anything else stays in the sandbox "
                "(live = false, sandbox = true)"
            )


@attrs.frozen(kw_only=True)
class StrategyConfig:
    """What to trade, and by which rule."""

    name: str
    symbols: tuple[str, ...]
    candle: str = attrs.field(default="5m", validator=_a_length)
    settings: dict[str, Any] = attrs.Factory(dict)

    def __attrs_post_init__(self) -> None:
        """A strategy without a symbol does nothing."""
        if not self.symbols:
            raise execsafe.InvalidInput("strategy: symbols must name at least one symbol")


@attrs.frozen(kw_only=True)
class RiskConfig:
    """How much may be at stake.

    Attributes:
        position_notional: value of one position, in quote currency.
        leverage: set and confirmed before the first entry of a symbol; 1 changes nothing.
        positions_max: how many may be open at once.
        gross_notional_max: worst-case value of all positions and open entries together.
        slippage_bps: how far beyond the best price an entry's limit is set.
        unprotected_s: how long a position may be without a verified stop before it is closed.
        spread_max_bps: a wider spread refuses entries.
    """

    position_notional: Decimal = attrs.field(default=Decimal(50), converter=amount, validator=_above_zero)
    leverage: int = attrs.field(default=1, validator=_above_zero)
    positions_max: int = attrs.field(default=10, validator=_above_zero)
    gross_notional_max: Decimal = attrs.field(default=Decimal(1000), converter=amount, validator=_above_zero)
    slippage_bps: Decimal = attrs.field(
        default=Decimal(20), converter=amount, validator=_below(1_000, "an entry may be a tenth off at most")
    )
    unprotected_s: float = attrs.field(default=5.0, validator=_above_zero)
    spread_max_bps: Decimal = attrs.field(default=Decimal(50), converter=amount, validator=_above_zero)


@attrs.frozen(kw_only=True)
class RunConfig:
    """How the bot itself runs.

    Attributes:
        store: where the journal lives.
        mode: ``"live"`` carries decisions out, ``"drain"`` takes and drops them, ``"paper"`` also says what it would
            do.
        signal_age_max_s: an older decision is not carried out.
        reconcile_s, protect_s: pauses between comparisons of positions, and between looks at stops.
        stop: what a graceful stop does with open positions: ``"flat"`` closes them, ``"keep"`` leaves them protected.
        stop_timeout_s: how long a graceful stop may take before it says what is left.
        log: how much is told on standard error: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
        log_format: ``"text"`` for people, ``"json"`` for machines: an object a line.
        metrics: where metrics for Prometheus are served, e.g. ``"127.0.0.1:9464"``; empty: nowhere.
    """

    store: str = attrs.field(default="sqlite:///execsafe.db", repr=False)
    mode: str = attrs.field(default="live", validator=_one_of("live", "drain", "paper"))
    signal_age_max_s: float = attrs.field(default=300.0, validator=_above_zero)
    reconcile_s: float = attrs.field(
        default=60.0, validator=_below(300, "entries are refused when the latest comparison is as old as that")
    )
    protect_s: float = attrs.field(default=5.0, validator=_above_zero)
    stop: str = attrs.field(default="keep", validator=_one_of("flat", "keep"))
    stop_timeout_s: float = attrs.field(default=60.0, validator=_above_zero)
    log: str = attrs.field(default="info", validator=_one_of("debug", "info", "warning", "error"))
    log_format: str = attrs.field(default="text", validator=_one_of("text", "json"))
    metrics: str = attrs.field(default="", converter=_without_brackets, validator=_an_address)


@attrs.frozen(kw_only=True)
class BusConfig:
    """Signals from other programs, and events for them. Without a ``url`` there is neither.

    Attributes:
        url: as :func:`execsafe.open_bus` takes it.
        signals: the topic whose signals open positions; empty: none is read.
        group: whose signals they are; ``execsafe:{exchange}:{account}`` unless given. Each bot needs its own: two bots
            in one share the signals between them, but not the memory of what was executed.
        symbols: the senders' names of symbols, and what they are under ``[strategy]``. Those names are known as well;
            a signal for any other symbol is a dead letter.
        buy_is_long: whether BUY and SELL are taken for LONG and SHORT. Off, as SELL may mean "close the long".
        flat_closes: whether FLAT closes what is held in the symbol, whoever opened it.
        events: the topic to which everything that happens is published; empty: nothing is.
        levels: the topic to which targets and stop of each position that opens are published; empty: they are not.
    """

    url: str = attrs.field(default="", repr=False)
    signals: str = "trade.intent"
    group: str = ""
    symbols: dict[str, str] = attrs.Factory(dict)
    buy_is_long: bool = False
    flat_closes: bool = True
    events: str = ""
    levels: str = ""

    def __attrs_post_init__(self) -> None:
        """Refuse names that no bus takes, and a bot that hears itself."""
        if self.group:
            check_name(self.group, "group")
        topics = [name for name in (self.signals, self.events, self.levels) if name]
        for name in topics:
            check_name(name, "topic")
        if len(set(topics)) < len(topics):
            raise execsafe.InvalidInput("bus: signals, events and levels need a topic each")


@attrs.frozen(kw_only=True)
class BotConfig:
    """The whole file."""

    venue: VenueConfig
    strategy: StrategyConfig
    risk: RiskConfig = attrs.Factory(RiskConfig)
    run: RunConfig = attrs.Factory(RunConfig)
    bus: BusConfig = attrs.Factory(BusConfig)

    @property
    def group(self) -> str:
        """Under which name signals are read."""
        return self.bus.group or f"execsafe:{self.venue.exchange}:{self.venue.account}"

    def __attrs_post_init__(self) -> None:
        """Refuse signals for symbols that are not traded."""
        for theirs, ours in self.bus.symbols.items():
            if ours not in self.strategy.symbols:  # not shown: a key that slipped into this table would be
                known = ", ".join(self.strategy.symbols)
                raise execsafe.InvalidInput(f"bus: {theirs} must be one of the strategy's symbols ({known})")


def load(path: Path, environment: Mapping[str, str] | None = None) -> BotConfig:
    """Read and check a configuration file.

    ``EXECSAFE_STORE`` and ``EXECSAFE_BUS`` in the *environment* go before ``run.store`` and ``bus.url``; with ``_FILE``
    at the end they name a file that holds the URL. An empty one counts as not set.

    Raises:
        InvalidInput: not TOML, an unknown name (the message has the nearest known one), a value that cannot be,
            something that looks like a credential, or there is no such file that can be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise execsafe.InvalidInput(f"there is no configuration at {path}") from None
    except OSError as error:
        raise execsafe.InvalidInput(f"the configuration {path} cannot be read: {error.strerror}") from None
    if len(text) > _FILE_BYTES_MAX:
        raise execsafe.InvalidInput(f"{path} is too large for a configuration")
    try:
        tree = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise execsafe.InvalidInput(f"{path}: {error}") from None
    for name in _names(_without_their_names(tree)):
        if any(word in name.lower() for word in _SECRET_WORDS):
            raise execsafe.InvalidInput(f"{path}: {name} looks like a credential; keys come from the environment only")
    config = settings(BotConfig, tree)
    for name, url, source in (("store", config.run.store, STORE), ("url", config.bus.url, BUS)):
        if has_password(url):
            raise execsafe.InvalidInput(
                f"{path}: {name} holds a password; such a URL comes from the environment only, as {source}"
            )
    return _from_environment(config, environment)


def _from_environment(config: BotConfig, environment: Mapping[str, str] | None) -> BotConfig:
    store = variable(STORE, environment)
    bus = variable(BUS, environment)
    return attrs.evolve(
        config,
        run=config.run if store is None else attrs.evolve(config.run, store=store),
        bus=config.bus if bus is None else attrs.evolve(config.bus, url=bus),
    )


def settings(cls: type[T], values: Mapping[str, object]) -> T:
    """*values* as an instance of the attrs class *cls*, nested ones included.

    Raises:
        InvalidInput: unknown or missing names, or values that cannot be; all of them in one message.
    """
    try:
        return _converter().structure(values, cls)
    except (cattrs.BaseValidationError, ValueError, TypeError) as error:
        raise execsafe.InvalidInput("; ".join(_problems(error, cls))) from None


def credentials(config: VenueConfig, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The exchange's keys for ccxt, from ``EXECSAFE_API_KEY``, ``…_SECRET``, ``…_PASSWORD``, ``…_UID``.

    With the account's name in between (``EXECSAFE_MAIN_API_KEY``) for an account other than "default". With
    ``_FILE`` at the end the variable names a file that holds the value. An empty variable counts as not set.

    Raises:
        InvalidInput: such a file cannot be read, or is empty.
    """
    found = {name: variable(key_variable(config, name), environment) for name in _CREDENTIALS}
    return {name: value for name, value in found.items() if value is not None}


def key_variable(config: VenueConfig, name: str) -> str:
    """The environment variable from which ccxt's credential *name* is read; empty if it is read from none."""
    account = "" if config.account == "default" else f"{config.account.upper()}_"
    return f"EXECSAFE_{account}{_CREDENTIALS[name]}" if name in _CREDENTIALS else ""


def describe(config: BotConfig) -> list[str]:
    """What is in force, line by line, as TOML-like text. There is nothing secret in it."""
    lines: list[str] = []
    for table, values in attrs.asdict(config, recurse=False).items():
        lines.append(f"[{table}]")
        for name, value in attrs.asdict(values).items():
            is_url = (table, name) in _URLS
            lines.append(f"{name} = {_shown(shown_url(value) if is_url else value)}")
            if (table, name) == ("run", "store"):
                lines += _place(value)
    return lines


def _place(url: str) -> list[str]:
    """Where the store's file is, as a comment, if *url* leaves that to the directory that the bot is started in."""
    path = execsafe.open_store(url).path if url.startswith("sqlite:") else None  # type: ignore[attr-defined]
    return [] if path is None or path.is_absolute() else [f"# that is {path.absolute()}"]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_shown(item)}" for name, item in value.items()) + "}"
    return f'"{redact(value)}"' if isinstance(value, str) else str(value)


def _converter() -> cattrs.Converter:
    """Takes nothing for what it is not: no truth for a number, no text for the list of its letters."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (bool, int, str):
        converter.register_structure_hook(kind, _strictly(kind, kind.__name__))
    converter.register_structure_hook(float, lambda value, _type: float(amount(_number(value, _type))))
    converter.register_structure_hook(
        Decimal, lambda value, _type: amount(value if isinstance(value, str) else _number(value, _type))
    )
    converter.register_structure_hook_func(_is_a(dict), _strictly(dict, "a table"))
    converter.register_structure_hook_func(_is_a(tuple), _texts)
    converter.register_structure_hook_factory(attrs.has, lambda cls: _table(converter, cls))
    return converter


def _is_a(kind: type) -> Callable[[Any], bool]:
    return lambda wanted: get_origin(wanted) is kind


def _strictly(kinds: type | tuple[type, ...], called: str) -> Callable[[object, object], Any]:
    def structure(value: object, _type: object) -> object:
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise execsafe.InvalidInput(f"must be {called}, was {type(value).__name__}")
        return value

    return structure


_number: Final = _strictly((int, float, Decimal), "a number")
_list: Final = _strictly((list, tuple), "a list")


def _texts(value: object, _type: object) -> tuple[str, ...]:
    return tuple(_strictly(str, "a list of texts")(item, str) for item in _list(value, _type))


def _table(converter: cattrs.Converter, cls: type[T]) -> Callable[[object, object], T]:
    fill = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)
    be_table = _strictly(Mapping, "a table")
    return lambda value, _type: fill(be_table(value, _type), cls)


def _without_their_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """*tree* without the table of the senders' names of symbols: these may be any word, such as KEYUSDT."""
    bus = tree.get("bus")
    if not isinstance(bus, Mapping) or not isinstance(bus.get("symbols"), Mapping):
        return dict(tree)
    return {**tree, "bus": {name: value for name, value in bus.items() if name != "symbols"}}


def _names(tree: object) -> Iterator[str]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield str(name)
            yield from _names(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _names(value)


def _problems(error: BaseException, cls: type) -> list[str]:
    return [_hinted(text, cls) for text in cattrs.transform_error(error, format_exception=_worded)]


def _worded(error: BaseException, _type: type | None) -> str:
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return "unknown name " + ", ".join(sorted(error.extra_fields))
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return str(error) or type(error).__name__


def _hinted(text: str, cls: type) -> str:
    known = sorted(_fields_of(cls))
    for word in text.split():
        near = difflib.get_close_matches(word.strip(","), known, n=1) if "unknown name" in text else []
        if near and word.strip(",") not in known:
            return f"{text} (did you mean {near[0]}?)"
    return text


def _fields_of(cls: type) -> Iterator[str]:
    for field in attrs.fields(cls):
        yield field.name
        if isinstance(field.type, type) and attrs.has(field.type):
            yield from _fields_of(field.type)
