"""The registry: published versions of each model, and the aliases that say which one is in use.

A version is immutable. `champion` is the version the service answers with; moving it is promotion. Two real
implementations: `DirectoryRegistry` here, for one machine and for tests, and `MlflowRegistry`.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from forecasting.artifact import GOLDEN, SPEC, WEIGHTS, artifact_digest, load_artifact
from forecasting.errors import ArtifactError, ModelNotFoundError, RegistryError, RegistryUnavailableError
from forecasting.forecaster import Forecaster
from forecasting.spec import MODEL_NAME_PATTERN

CHAMPION, CHALLENGER, SHADOW = "champion", "challenger", "shadow"
"""In use; published last; forecasting beside the champion, unseen by callers."""

TAG_DIGEST = "hindcast.artifact_digest"
TAG_DATASET = "hindcast.dataset"
"""The ledger's dataset a version reads and is scored by; absent: that of the model's name."""
TAG_TARGET = "hindcast.target"
"""The column of that dataset it forecasts; absent: y."""
TAG_ONLINE_INTERVALS = "hindcast.online_intervals"
"""`false` where forecasts are to be issued without what the scores taught of their intervals."""
TAG_PREVIOUS = "hindcast.previous_champion"
TAG_PROMOTED_AT = "hindcast.promoted_at"
TAG_DECISION = "hindcast.decision"
TAG_REASON = "hindcast.decision_reason"
TAG_NUMBERS = "hindcast.decision_numbers"


@dataclass(frozen=True)
class ModelVersion:
    """One published version of a model, as the registry describes it."""

    model: str
    version: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None

    @property
    def digest(self) -> str | None:
        """Return the digest the artefact had when it was published."""
        return self.tags.get(TAG_DIGEST)


class Registry(Protocol):
    """Where versions are published, and found again."""

    def publish(
        self, model: str, artifact: Path, tags: Mapping[str, str], run_id: str | None = None
    ) -> ModelVersion:
        """Copy an artefact in as the model's next version, whole or not at all; move no alias.

        Args:
            model: the job's name.
            artifact: a directory that `save_artifact` wrote.
            tags: written with the version; the digest is added.
            run_id: the tracked run that made it, where the registry can link one.
        """

    def models(self) -> list[str]:
        """Return the names of every model, sorted."""

    def versions(self, model: str) -> list[ModelVersion]:
        """Return every version, newest first; ModelNotFoundError when there is no such model."""

    def resolve(self, model: str, alias: str = CHAMPION) -> ModelVersion:
        """Return the version an alias points to; ModelNotFoundError when it points to none."""

    def version(self, model: str, version: str) -> ModelVersion:
        """Return one version; ModelNotFoundError when there is none."""

    def fetch(self, version: ModelVersion, into: Path) -> Path:
        """Copy a version's artefact below the directory `into`, and return where it lies."""

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Point an alias to a version, in one step."""

    def remove_alias(self, model: str, alias: str) -> None:
        """Let an alias point to no version; nothing happens where it points to none."""

    def annotate(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        """Add or replace tags of a version."""


def promote(registry: Registry, model: str, version: str, tags: Mapping[str, str] | None = None) -> ModelVersion:
    """Make a version the champion, remembering the one before it so that `rollback` can return there.

    The tags are written first and the alias moves last: whoever sees the new champion sees why it is.
    Promoting the champion again changes nothing but its tags.
    """
    target = registry.version(model, version)
    notes = dict(tags or {})
    previous = champion_or_none(registry, model)
    if previous is None or previous.version != target.version:
        notes[TAG_PROMOTED_AT] = datetime.now(UTC).isoformat(timespec="milliseconds")
        notes[TAG_PREVIOUS] = "" if previous is None else previous.version
    if notes:
        registry.annotate(model, target.version, notes)
    registry.set_alias(model, CHAMPION, target.version)
    return registry.version(model, target.version)


def watch_previous(registry: Registry, model: str) -> ModelVersion | None:
    """Let the version before the champion forecast on in the shadow, so that they can be compared live.

    Whoever was there before leaves. Return the version, or None where the champion is the first.
    """
    previous = registry.resolve(model).tags.get(TAG_PREVIOUS)
    if not previous:
        registry.remove_alias(model, SHADOW)
        return None
    registry.set_alias(model, SHADOW, previous)
    return registry.version(model, previous)


def previous_champion(registry: Registry, model: str) -> ModelVersion:
    """Return the version the champion took its place from.

    Raises:
        RegistryError: the champion had no predecessor.
    """
    champion = registry.resolve(model)
    previous = champion.tags.get(TAG_PREVIOUS)
    if not previous:
        raise RegistryError(f"version {champion.version} of {model!r} had no champion before it to return to")
    return registry.version(model, previous)


def rollback(registry: Registry, model: str, reason: str = "") -> ModelVersion:
    """Return the champion's place to the version it took it from, and let nobody forecast in the shadow.

    Args:
        registry: where both are.
        model: whose champion.
        reason: why, for the tags of the version that goes.

    Raises:
        RegistryError: the champion had no predecessor.
    """
    champion, previous = registry.resolve(model), previous_champion(registry, model).version
    gone = {TAG_DECISION: "rolled back", TAG_REASON: reason or f"rolled back to version {previous}"}
    registry.annotate(model, champion.version, gone)
    registry.set_alias(model, CHAMPION, previous)
    back = f"rolled back from version {champion.version}"
    registry.annotate(model, previous, {TAG_REASON: f"{back}: {reason}" if reason else back})
    registry.remove_alias(model, SHADOW)
    return registry.version(model, previous)


def champion_or_none(registry: Registry, model: str) -> ModelVersion | None:
    """Return the champion, or None for a model that has none yet."""
    return resolve_or_none(registry, model, CHAMPION)


def resolve_or_none(registry: Registry, model: str, alias: str) -> ModelVersion | None:
    """Return the version an alias points to, or None where it points to none."""
    try:
        return registry.resolve(model, alias)
    except ModelNotFoundError:
        return None


def load_version(registry: Registry, version: ModelVersion, device: str = "cpu") -> Forecaster:
    """Fetch a version and load it, if it is what was published.

    Raises:
        ArtifactError: the artefact is not the one that was published, or cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="hindcast-") as private:
        artifact = registry.fetch(version, Path(private))
        return load_fetched(artifact, version, device)


def load_fetched(artifact: Path, version: ModelVersion, device: str = "cpu") -> Forecaster:
    """Load the artefact of a version from where it lies, if it is what was published.

    Raises:
        ArtifactError: the artefact is not the one that was published, or cannot be loaded.
    """
    if version.digest is None:
        raise ArtifactError(f"version {version.version} was published without a digest")
    digest = artifact_digest(artifact)
    if digest != version.digest:
        raise ArtifactError(
            f"version {version.version} is not what was published: "
            f"it has digest {digest[:12]}; {version.digest[:12]} was published"
        )
    return load_artifact(artifact, device)


def check_model_name(model: str) -> None:
    """Refuse a name that is not lower-case letters, digits, dashes and underscores.

    Raises:
        ModelNotFoundError: no model can have this name.
    """
    if not re.fullmatch(MODEL_NAME_PATTERN, model):
        raise ModelNotFoundError(f"no model can be named {model!r}: use a-z, 0-9, dash and underscore")


def open_registry(uri: str, *, create: bool = False) -> Registry:
    """Open the registry a URI names: `file:///path` or a path for a directory, else an MLflow URI.

    Args:
        uri: as above.
        create: make a directory that is not there, for whoever is about to publish the first model.
    """
    if uri.startswith("file://") or "://" not in uri:
        root = Path(uri.removeprefix("file://"))
        if create:
            root.mkdir(parents=True, exist_ok=True)
        return DirectoryRegistry(root)
    # MLflow takes two to three seconds to import: only who uses it pays.
    from forecasting.mlflow_registry import MlflowRegistry

    return MlflowRegistry(uri)


class DirectoryRegistry:
    """A registry in a directory: `<model>/versions/<n>/` holds the artefact, `meta.json` its tags.

    Every change is one rename, so a process that dies leaves nothing half done; a file lock orders writers.
    Publishing makes the directory. One that is not there is not an empty one: it may not be mounted, and nothing
    is known of its models then.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(
        self,
        model: str,
        artifact: Path,
        tags: Mapping[str, str],
        run_id: str | None = None,  # noqa: ARG002  (a directory links no runs)
    ) -> ModelVersion:
        check_model_name(model)
        digest = artifact_digest(artifact)
        with self._locked(model) as home:
            number = 1 + max((int(v.version) for v in self._list(model)), default=0)
            draft = home / f".draft-{secrets.token_hex(6)}"
            draft.mkdir()
            for name in (SPEC, WEIGHTS, GOLDEN):
                shutil.copyfile(artifact / name, draft / name)
            meta = {"tags": {**tags, TAG_DIGEST: digest}, "created_at": datetime.now(UTC).isoformat()}
            _write_json(draft / "meta.json", meta)
            (home / "versions").mkdir(exist_ok=True)
            draft.rename(home / "versions" / str(number))
        return self.version(model, str(number))

    def models(self) -> list[str]:
        self._check_root()
        try:
            return sorted({path.parent.parent.name for path in self.root.glob("*/versions/*")})
        except OSError as error:
            raise RegistryUnavailableError(f"the registry directory cannot be read: {error}") from error

    def versions(self, model: str) -> list[ModelVersion]:
        found = self._list(model)
        if not found:
            raise ModelNotFoundError(f"no model named {model!r}")
        return sorted(found, key=lambda v: int(v.version), reverse=True)

    def resolve(self, model: str, alias: str = CHAMPION) -> ModelVersion:
        check_model_name(model)
        version = self._aliases(model).get(alias)
        if version is None:
            raise ModelNotFoundError(f"model {model!r} has no version with the alias {alias!r}")
        return self.version(model, version)

    def version(self, model: str, version: str) -> ModelVersion:
        check_model_name(model)
        path = self._path(model, version) / "meta.json"
        if not path.is_file():
            self._check_root()
            raise ModelNotFoundError(f"model {model!r} has no version {version}")
        meta = _read_json(path)
        aliases = sorted(alias for alias, target in self._aliases(model).items() if target == version)
        created_at = datetime.fromisoformat(meta["created_at"])
        return ModelVersion(model, version, tuple(aliases), meta["tags"], created_at)

    def fetch(self, version: ModelVersion, into: Path) -> Path:
        source = self._path(version.model, version.version)
        target = into / f"{version.model}-{version.version}"
        target.mkdir(parents=True, exist_ok=True)
        try:
            for name in (SPEC, WEIGHTS, GOLDEN):
                shutil.copyfile(source / name, target / name)
        except FileNotFoundError as error:
            raise RegistryError(
                f"version {version.version} of {version.model!r} lost its {error.filename}"
            ) from error
        return target

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.version(model, version)
        with self._locked(model) as home:
            _write_json(home / "aliases.json", {**self._aliases(model), alias: version})

    def remove_alias(self, model: str, alias: str) -> None:
        check_model_name(model)
        with self._locked(model) as home:
            aliases = self._aliases(model)
            if aliases.pop(alias, None) is not None:
                _write_json(home / "aliases.json", aliases)

    def annotate(self, model: str, version: str, tags: Mapping[str, str]) -> None:
        self.version(model, version)
        with self._locked(model):
            path = self._path(model, version) / "meta.json"
            meta = _read_json(path)
            meta["tags"].update(tags)
            _write_json(path, meta)

    def _path(self, model: str, version: str) -> Path:
        if not version.isdecimal():
            raise ModelNotFoundError(f"model {model!r} has no version {version!r}: versions are numbers")
        return self.root / model / "versions" / version

    def _check_root(self) -> None:
        if not self.root.is_dir():
            raise RegistryUnavailableError("the registry's directory is not there: is it mounted?")

    def _list(self, model: str) -> list[ModelVersion]:
        check_model_name(model)
        self._check_root()
        numbers = [path.name for path in (self.root / model / "versions").glob("*") if path.name.isdecimal()]
        return [self.version(model, number) for number in numbers]

    def _aliases(self, model: str) -> dict[str, str]:
        self._check_root()
        path = self.root / model / "aliases.json"
        return _read_json(path) if path.is_file() else {}

    @contextmanager
    def _locked(self, model: str) -> Iterator[Path]:
        home = self.root / model
        home.mkdir(parents=True, exist_ok=True)
        with (home / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield home


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RegistryUnavailableError(f"{path.name} of the registry cannot be read: {error}") from error
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write whole or not at all: a reader sees the old file or the new one."""
    draft = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
    with draft.open("w") as file:
        json.dump(content, file, indent=2, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
