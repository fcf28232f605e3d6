"""The API keys in their file: all it takes to recognise a key, and nothing that could be used as one.

A key is `hc_<id>_<secret>`; the id names it in lists and logs, the secret has 256 bits. The file is replaced
whole, so that whoever reads it reads all of it or what was there before.
"""

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from forecasting.errors import InputError

Scope = Literal["read", "forecast", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "forecast", "write", "admin")

KEY_PATTERN = re.compile(r"hc_([0-9a-f]{12})_[0-9a-f]{64}")
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

LIVE_KEYS_OF_A_NAME = 2
"""One in use and one to change to."""

MOST_KEYS = 10_000
MOST_BYTES = 16 * 1024**2
OTHERS_MAY_WRITE = 0o002


class ApiKey(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(pattern=NAME_PATTERN)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    rate: float | None = Field(None, gt=0, allow_inf_nan=False)

    def end(self, now: datetime) -> str | None:
        """Return why the key opens nothing any more; None while it does."""
        if self.revoked is not None:
            return f"was revoked at {self.revoked:%Y-%m-%d %H:%M} UTC"
        if self.expires is not None and self.expires <= now:
            return f"expired at {self.expires:%Y-%m-%d %H:%M} UTC"
        return None


class _KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = Field(max_length=MOST_KEYS)

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        if len({key.id for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have one id")
        return self


class KeySettings(BaseSettings):
    """Where the keys are."""

    model_config = SettingsConfigDict(env_prefix="HINDCAST_", frozen=True, extra="forbid")

    home: Path = Field(Path(".hindcast"), description="Directory for everything Hindcast keeps on disk.")
    keys_file: Path | None = Field(
        None,
        description="File of the API keys; where it is set, every request needs one. Default: keys.json in home, "
        "and requests need a key as soon as it holds one.",
    )

    @property
    def keys_path(self) -> Path:
        return self.keys_file or self.home / "keys.json"


def digest_of(key: str) -> str:
    """Return what is kept of a key.

    One round of SHA-256 and no salt: slow hashes make guessing expensive where people choose the secret. Nobody
    guesses 256 random bits, no two keys are the same, and every request pays for this.
    """
    return hashlib.sha256(key.encode()).hexdigest()


def load_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read the file; there are no keys where there is none.

    Raises:
        InputError: it cannot be read, is not what it must be, or everybody may write it.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & OTHERS_MAY_WRITE:
                raise InputError(f"{path} can be written by every user of this machine: chmod 600 {path}")
            content = file.read(MOST_BYTES + 1)
        return _KeyFile.model_validate_json(content).keys if len(content) <= MOST_BYTES else _too_long(path)
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        # The first alone, and without its input: the message goes into logs.
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is not a file of keys: {where and where + ': '}{first['msg']}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _too_long(path: Path) -> tuple[ApiKey, ...]:
    raise InputError(f"{path} is not a file of keys: it is longer than {MOST_BYTES} bytes")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep out every other process that changes the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with os.fdopen(os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file by one that only its owner may read, whole or not at all."""
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as draft:
        try:
            draft.write(content)
            draft.flush()
            os.fsync(draft.fileno())
            _keep_owner(path, draft.fileno())
            Path(draft.name).replace(path)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise


def _keep_owner(path: Path, draft: int) -> None:
    """Leave the file to whom it belongs when root changes it: the service may run as somebody else."""
    with suppress(FileNotFoundError):
        owner = path.stat()
        if owner.st_uid != os.geteuid():
            os.fchown(draft, owner.st_uid, owner.st_gid)


def _save_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    replace_file(path, _KeyFile(keys=tuple(keys)).model_dump_json(indent=1).encode())


def create_key(
    path: Path,
    name: str,
    scopes: Sequence[Scope],
    now: datetime,
    *,
    expires: datetime | None = None,
    rate: float | None = None,
) -> tuple[ApiKey, str]:
    """Add a key to the file; return what is kept of it, and the key itself, which is kept nowhere.

    Raises:
        InputError: two keys of the name are live already, the file is full or not a file of keys.
    """
    with _alone(path):
        keys = load_keys(path)
        live = [key.id for key in keys if key.name == name and key.end(now) is None]
        if len(live) >= LIVE_KEYS_OF_A_NAME:
            raise InputError(
                f"{name!r} has two live keys already, {' and '.join(live)}: one in use and one to change to; "
                "revoke the one that is not in use"
            )
        if len(keys) >= MOST_KEYS:
            raise InputError(f"{path} has {len(keys)} keys, which is the most there may be")
        public = _new_id(keys)
        secret = f"hc_{public}_{secrets.token_hex(32)}"
        made = ApiKey(
            id=public,
            name=name,
            scopes=tuple(scopes),
            digest=digest_of(secret),
            created=now,
            expires=expires,
            rate=rate,
        )
        _save_keys(path, [*keys, made])
    return made, secret


def _new_id(keys: Sequence[ApiKey]) -> str:
    taken = {key.id for key in keys}
    return next(new for new in iter(lambda: secrets.token_hex(6), "") if new not in taken)


def revoke_key(path: Path, key_id: str, now: datetime) -> ApiKey | None:
    """Revoke a key for good; return it as it is now, or None where there is no such key.

    Raises:
        InputError: the file is not a file of keys.
    """
    with _alone(path):
        keys = {key.id: key for key in load_keys(path)}
        found = keys.get(key_id)
        if found is not None and found.revoked is None:
            found = keys[key_id] = found.model_copy(update={"revoked": now})
            _save_keys(path, list(keys.values()))
    return found


_LastUsed = TypeAdapter(dict[Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")], AwareDatetime])


def _used_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.used.json")


def load_last_used(path: Path) -> dict[str, datetime]:
    """Read when each key was last used, to the hour; what cannot be read is not known."""
    try:
        return _LastUsed.validate_json(_used_path(path).read_bytes())
    except (OSError, ValidationError):
        return {}


def save_last_used(path: Path, used: Mapping[str, datetime]) -> None:
    """Remember when keys were used, beside what other processes remember.

    Raises:
        OSError: the folder cannot be written.
    """
    with _alone(path):
        known = load_last_used(path)
        newest = {key: max(moment, known.get(key, moment)) for key, moment in used.items()}
        replace_file(_used_path(path), _LastUsed.dump_json({**known, **newest}))
