"""The last good models, on disk: what a service answers with when it starts and the registry does not answer.

    HINDCAST_HOME/last-good/<model>/<alias>.<version>.<digest>.<registry>/
        spec.json, weights.safetensors, golden.json     the artefact
        kept.json                                       what the slot needs of the version

One copy of a model, an alias and a registry: written beside the requests, whole or not at all, and the one before
it removed after. A copy is data like any artefact, and is checked like one when it is loaded. Processes may share
a home: one at a time exchanges a copy, by renames, and who reads finds it whole.
"""

import fcntl
import hashlib
import logging
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forecasting.artifact import GOLDEN, SPEC, WEIGHTS, artifact_digest
from forecasting.errors import ArtifactError
from forecasting.registry import ModelVersion
from forecasting.spec import MODEL_NAME_PATTERN
from service.records import sync

log = logging.getLogger("hindcast.models")

FOLDER, KEPT, SET_ASIDE = "last-good", "kept.json", ".set-aside"
MAX_KEPT_BYTES = 1024 * 1024
WAIT, LONGEST_WAIT = 0.02, 10.0
"""Seconds between two tries to take the lock, and most seconds to try."""


class _Kept(BaseModel):
    """What stands beside a copy: all the slot needs of the version."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format_version: Literal[1] = 1
    model: str = Field(pattern=MODEL_NAME_PATTERN)
    version: str = Field(max_length=64)
    alias: str = Field(pattern=MODEL_NAME_PATTERN)
    registry: str = Field(max_length=64)
    tags: dict[str, str]
    kept_at: str = Field(max_length=40)


@dataclass(frozen=True)
class Copy:
    """A copy on disk: the version it is of, and where its files lie."""

    version: ModelVersion
    kept_at: str
    path: Path


class LastGood:
    """Keeps the artefact of every version that answered, and finds it again."""

    def __init__(self, home: Path, registry_uri: str, alias: str) -> None:
        self.root = home / FOLDER
        self._alias = alias
        # A registry's address may hold a password; that it is the same one is all there is to know.
        self._registry = hashlib.sha256(registry_uri.encode()).hexdigest()[:16]

    def models(self) -> list[str]:
        """Return the names of which there is a copy."""
        try:
            folders = sorted(path.name for path in self.root.iterdir())
        except OSError:
            return []
        return [name for name in folders if re.fullmatch(MODEL_NAME_PATTERN, name) and self.copies(name)]

    def keep(self, version: ModelVersion, artifact: Path) -> None:
        """Keep a version that was loaded and checked, and remove the copies before it.

        Raises:
            OSError: the disk does not take it, or another process keeps one for long; the copy before it stays.
        """
        folder = self.root / version.model
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".draft-{secrets.token_hex(6)}"
        target = folder / f"{self._alias}.{_plain(version.version)}.{(version.digest or '')[:16]}.{self._registry}"
        try:
            _write(draft, artifact, self._describe(version))
            with _locked(folder):
                self._replace(version, draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._sweep(folder)

    def _replace(self, version: ModelVersion, draft: Path, target: Path) -> None:
        if not self._is_sound(target, version):
            _remove(target)
            draft.rename(target)
            sync(target.parent)
        for path in self._folders(version.model):
            ours = path.name.startswith(f"{self._alias}.") and path.name.endswith(f".{self._registry}")
            if ours and path != target:
                _remove(path)

    def _is_sound(self, path: Path, version: ModelVersion) -> bool:
        """Return whether a folder holds this very version already."""
        try:
            return self._read(path, version.model) is not None and artifact_digest(path) == version.digest
        except ArtifactError:
            return False

    def copies(self, model: str) -> list[Copy]:
        """Return the copies of a model, newest first: more than one only while it is being replaced."""
        found = [copy for path in self._folders(model) if (copy := self._read(path, model)) is not None]
        return sorted(found, key=lambda copy: copy.kept_at, reverse=True)

    def set_aside(self, copy: Copy) -> None:
        """Take a copy that cannot be used out of the way, and keep its files for whoever wants to know."""
        aside = copy.path.parent / SET_ASIDE
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            copy.path.rename(aside)

    def _describe(self, version: ModelVersion) -> _Kept:
        return _Kept(
            model=version.model,
            version=version.version,
            alias=self._alias,
            registry=self._registry,
            tags=dict(version.tags),
            kept_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        )

    def _folders(self, model: str) -> Iterator[Path]:
        try:
            paths = sorted((self.root / model).iterdir())
        except OSError:
            return
        yield from (path for path in paths if not path.name.startswith("."))

    def _read(self, path: Path, model: str) -> Copy | None:
        """Return the copy of a folder; None for one of another alias or registry, or without a word on itself."""
        try:
            with (path / KEPT).open("rb") as file:
                kept = _Kept.model_validate_json(file.read(MAX_KEPT_BYTES))
        except (OSError, ValidationError):
            return None
        if (kept.model, kept.alias, kept.registry) != (model, self._alias, self._registry):
            return None
        version = ModelVersion(model, kept.version, (kept.alias,), kept.tags)
        return Copy(version, kept.kept_at, path)

    def _sweep(self, folder: Path) -> None:
        """Remove what a process that was killed left half written, an hour later at the earliest."""
        for path in (*folder.glob(".draft-*"), *folder.glob(".gone-*")):
            with suppress(OSError):
                if datetime.now(UTC).timestamp() - path.stat().st_mtime > 3600:
                    shutil.rmtree(path, ignore_errors=True)


def _plain(version: str) -> str:
    """Return a version as part of a file name: a registry may call its versions anything."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", version)[:64]


def _write(draft: Path, artifact: Path, kept: _Kept) -> None:
    draft.mkdir(mode=0o700)
    for name in (SPEC, WEIGHTS, GOLDEN):
        shutil.copyfile(artifact / name, draft / name)
        sync(draft / name)
    (draft / KEPT).write_text(kept.model_dump_json(indent=2) + "\n")
    sync(draft / KEPT)
    sync(draft)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time exchange the copies of a model.

    Raises:
        TimeoutError: another one has been at it for too long.
    """
    with (folder / ".lock").open("w") as file:
        for _ in range(int(LONGEST_WAIT / WAIT)):
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(WAIT)
        else:
            raise TimeoutError("another process has been writing for too long")
        yield


def _remove(path: Path) -> None:
    """Remove a copy; whoever reads it meanwhile finds it whole or not at all."""
    gone = path.parent / f".gone-{secrets.token_hex(6)}"
    try:
        path.rename(gone)
    except OSError:
        return  # it is not there, or another process was faster
    shutil.rmtree(gone, ignore_errors=True)
