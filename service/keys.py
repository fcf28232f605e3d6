"""`python -m service.keys`, which is `hindcast keys`: create, list and revoke API keys.

Exit codes: 0 done; 2 wrong usage, or refused; 4 no such key.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from forecasting.errors import InputError
from service.key_store import (
    KEY_PATTERN,
    NAME_PATTERN,
    SCOPES,
    ApiKey,
    KeySettings,
    Scope,
    create_key,
    load_keys,
    load_last_used,
    revoke_key,
)

REFUSED, NO_SUCH_KEY = 2, 4

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say, and return the exit code."""
    asked = _parser().parse_args(arguments)
    try:
        code: int = asked.run(KeySettings().keys_path, asked)
    except (InputError, ValidationError, OSError) as error:
        _note(f"error: {error}")
        return REFUSED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hindcast keys",
        description="API keys of the service. They are kept in HINDCAST_KEYS_FILE (default: keys.json in "
        "HINDCAST_HOME), as hashes; a running service knows of changes within two seconds.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="make a key and print it, once", description=_CREATE)
    create.add_argument("name", type=_name, metavar="NAME", help="whose key it is; two live keys may share a name")
    create.add_argument(
        "--scopes",
        type=_scopes,
        default=("forecast", "read"),
        help=f"what it may do: {', '.join(SCOPES)}, separated by commas; admin is all (default: forecast,read)",
    )
    create.add_argument(
        "--expires", type=_span, help="how long it lives, such as 12h, 90d or 52w (default: for ever)"
    )
    create.add_argument("--rate", type=_rate, help="units a second it may use (default: HINDCAST_KEY_RATE)")
    create.set_defaults(run=_create)
    listing = commands.add_parser("list", help="list the keys; never their secrets")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.set_defaults(run=_list)
    revoke = commands.add_parser("revoke", help="let a key open nothing any more")
    revoke.add_argument("id", type=_id, metavar="ID", help="the key's id, as in the list")
    revoke.set_defaults(run=_revoke)
    return parser


_CREATE = "Make a key. Only the key goes to standard output: KEY=$(hindcast keys create dashboard --scopes read)"


def _create(path: Path, asked: argparse.Namespace) -> int:
    now = _now()
    expires = None if asked.expires is None else now + asked.expires
    made, key = create_key(path, asked.name, asked.scopes, now, expires=expires, rate=asked.rate)
    sys.stdout.write(f"{key}\n")
    _note(f"key {made.id} of {made.name!r} may {', '.join(made.scopes)}. This is the only time that it is shown.")
    return 0


def _revoke(path: Path, asked: argparse.Namespace) -> int:
    found = revoke_key(path, asked.id, _now())
    if found is None:
        _note(f"error: {path} has no key {asked.id!r}; `hindcast keys list` shows those there are")
        return NO_SUCH_KEY
    _note(f"key {found.id} of {found.name!r} {found.end(_now())}")
    return 0


def _list(path: Path, asked: argparse.Namespace) -> int:
    keys, used = load_keys(path), load_last_used(path)
    if asked.json:
        for key in keys:
            shown = key.model_dump(mode="json", exclude={"digest"})
            last = used.get(key.id)
            sys.stdout.write(json.dumps({**shown, "last_used": last and last.isoformat()}) + "\n")
    elif not keys:
        _note("no keys yet; `hindcast keys create NAME` makes one")
    else:
        _print_table([_HEAD, *(_row(key, used.get(key.id)) for key in keys)])
    return 0


_HEAD = ("id", "name", "scopes", "rate", "created", "expires", "last used", "state")


def _row(key: ApiKey, used: datetime | None) -> tuple[str, ...]:
    rate = "" if key.rate is None else f"{key.rate:g}"
    moments = (_day(key.created), _day(key.expires), "" if used is None else f"{used:%Y-%m-%d %H}h")
    return (key.id, key.name, ",".join(key.scopes), rate, *moments, key.end(_now()) or "live")


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d}"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _name(text: str) -> str:
    if not re.match(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError("a name is up to 64 letters, digits, dots, dashes and underscores")
    return text


def _scopes(text: str) -> tuple[Scope, ...]:
    named = {part.strip() for part in text.split(",")}
    chosen = tuple(scope for scope in SCOPES if scope in named)
    if len(chosen) < len(named):
        raise argparse.ArgumentTypeError(f"scopes are {', '.join(SCOPES)}, separated by commas; got {text!r}")
    return chosen


def _span(text: str) -> timedelta:
    found = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected hours, days or weeks, as in 12h, 90d or 52w; got {text!r}")
    return int(found[1]) * _UNITS[found[2]]


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1e9:
        raise argparse.ArgumentTypeError(f"expected units a second, above 0; got {text!r}")
    return rate


def _id(text: str) -> str:
    """Take the whole key too: who finds one in the wrong place has it at hand."""
    whole = KEY_PATTERN.fullmatch(text)
    return whole[1] if whole else text


if __name__ == "__main__":
    sys.exit(main())
