"""Forecasts of a panel that is larger than memory: Parquet in, a folder of Parquet parts out, resumable.

    part-00001.parquet   the forecasts of some of the series, whole or not there at all
    _manifest.json       whose forecasts of what, and, once all parts are there, how many
    _rejects.csv         the series that have no forecast, and why; written last
    _work/               until then: the input, split by series; the artefact; what became of each part

Names with an underscore are left out by what reads a folder of Parquet files. R rows.
"""

import csv
import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from forecasting.artifact import artifact_digest, load_artifact
from forecasting.errors import ArtifactError, InputError, PanelError, SourceError
from forecasting.forecaster import Forecaster, interval_bounds
from forecasting.frame import find_columns, forecast_panel
from forecasting.price_panel import build_price_panel
from forecasting.registry import ModelVersion, open_registry
from forecasting.spec import ForecasterSpec
from pipelines.fanout import map_tasks
from pipelines.report import Reporter
from pipelines.settings import PipelineSettings

MANIFEST, REJECTS, WORK = "_manifest.json", "_rejects.csv", "_work"
ROWS_PER_PART = 1_000_000
MOST_PARTS = 500
"""Each is a file that is open while the input is split."""
ROWS_AT_ONCE = 250_000
DIGEST_BYTES = 2**20


@dataclass(frozen=True)
class BatchOrder:
    """What is to be forecast, and where to."""

    model: str
    source: Path
    """A Parquet file, or a folder of them, with unique_id, ds, y and covariates; rows in any order."""
    folder: Path
    level: tuple[float, ...] = ()
    """Empty: those of the model."""
    alias: str = "champion"
    part_rows: int = ROWS_PER_PART
    """Rows of input in a part: what a process holds in memory."""


@dataclass(frozen=True)
class BatchResult:
    """What came of it."""

    version: str
    parts: int
    series: int
    """With a forecast."""
    rejects: int


@dataclass(frozen=True)
class Manifest:
    """What a folder of parts holds; two that differ do not share a folder."""

    model: str
    version: str
    artifact_digest: str
    input_digest: str
    level: tuple[float, ...]
    part_rows: int
    parts: int


def forecast_batch(order: BatchOrder, settings: PipelineSettings, reporter: Reporter) -> BatchResult:
    """Forecast every series of the input into a folder; parts that are there already are not made again.

    Raises:
        InputError: the folder holds something else, or the input cannot be read as a long frame.
        SourceError: the input is not there, or is not Parquet.
    """
    folder = order.folder.absolute()
    with _locked(folder):
        registry = open_registry(settings.registry)
        numbered = order.alias.isdecimal()
        version = (registry.version if numbered else registry.resolve)(order.model, order.alias)
        files = _find_files(order.source)
        manifest = _describe(order, version, files)
        finished = _claim(folder, manifest)
        if finished is not None:
            reporter.say(f"{folder} is complete already")
            return BatchResult(**finished)
        spec = _fetch(registry.fetch, version, folder / WORK / "artifact").spec
        for level in manifest.level:
            interval_bounds(spec.quantiles, level)
        _split(files, folder / WORK, spec, manifest.parts, reporter)
        left = [number for number in range(1, manifest.parts + 1) if not _note(folder, number).exists()]
        if len(left) < manifest.parts:
            reporter.say(f"{manifest.parts - len(left)} of {manifest.parts} parts are there already")
        tasks = {f"part {number}": (str(folder), number, manifest.level) for number in left}
        map_tasks(forecast_part, tasks, settings, reporter)
        return _finish(folder, manifest)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder against a second command that would fill it too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "_lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{folder} is being filled by another command") from error
        yield


def _find_files(source: Path) -> list[Path]:
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise SourceError(f"{source}: no Parquet file")
    return files


def _describe(order: BatchOrder, version: ModelVersion, files: list[Path]) -> Manifest:
    if version.digest is None:
        raise ArtifactError(f"version {version.version} was published without a digest")
    return Manifest(
        model=order.model,
        version=version.version,
        artifact_digest=version.digest,
        input_digest=_digest(files),
        level=order.level,
        part_rows=order.part_rows,
        parts=min(MOST_PARTS, max(1, math.ceil(sum(map(_count_rows, files)) / order.part_rows))),
    )


def _digest(files: list[Path]) -> str:
    sha = hashlib.sha256()
    for path in files:
        sha.update(f"{path.name}:{path.stat().st_size}:".encode())
        with path.open("rb") as file:
            while content := file.read(DIGEST_BYTES):
                sha.update(content)
    return sha.hexdigest()


def _count_rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read as Parquet: {error}") from error


def _claim(folder: Path, manifest: Manifest) -> dict[str, Any] | None:
    """Make the folder this manifest's, or find that it is; return the result where all is done.

    Raises:
        InputError: it holds something else.
    """
    path = folder / MANIFEST
    if not path.exists():
        if any(not found.name.startswith(("_", ".")) for found in folder.iterdir()):
            raise InputError(f"{folder} holds files that are no batch of forecasts: give an empty folder")
        _write_json(path, asdict(manifest))
    content = json.loads(path.read_text())
    for name, wanted in asdict(manifest).items():
        found = tuple(content[name]) if name == "level" else content[name]
        if found != wanted:
            raise InputError(
                f"{folder} was begun with {name} {found!r}, and this is {name} {wanted!r}: give an empty folder"
                + (f", or --alias {found} to go on" if name == "version" else "")
            )
    if "result" in content:
        shutil.rmtree(folder / WORK, ignore_errors=True)
    result: dict[str, Any] | None = content.get("result")
    return result


def _fetch(fetch: Any, version: ModelVersion, home: Path) -> Forecaster:  # noqa: ANN401  (a registry's method)
    """Bring the artefact to where every process finds it, and prove that it is what was published."""
    artifact = home / f"{version.model}-{version.version}"
    if not artifact.is_dir() or artifact_digest(artifact) != version.digest:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        fetched = Path(fetch(version, home))
        if artifact_digest(fetched) != version.digest:
            raise ArtifactError(f"version {version.version} is not what was published")
        if fetched != artifact:
            # MLflow fetches into folders of its own, which may be what is to be replaced.
            aside = fetched.rename(home / f".{artifact.name}")
            shutil.rmtree(artifact, ignore_errors=True)
            aside.rename(artifact)
    return load_artifact(artifact)


def _split(files: list[Path], work: Path, spec: ForecasterSpec, parts: int, reporter: Reporter) -> None:
    """Split the input by series, so that a part can be forecast by itself; whole or not at all."""
    home, draft = work / "input", work / "input-draft"
    if home.is_dir():
        return
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    covariates = spec.covariates
    statics = [static.name for static in covariates.static]
    wanted = ["unique_id", "ds", "y", *covariates.past_taken, *covariates.future, *statics]
    with ExitStack() as stack:
        writers: dict[int, pq.ParquetWriter] = {}
        for path in files:
            for table in _read_batches(path, wanted):
                for number, rows in _deal(table, parts):
                    if number not in writers:
                        writer = pq.ParquetWriter(_share(draft, number), rows.schema)
                        writers[number] = stack.enter_context(writer)
                    writers[number].write_table(rows)
            reporter.say(f"split {path.name} into {parts} parts")
    draft.rename(home)


def _read_batches(path: Path, wanted: list[str]) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            absent = [name for name in ("unique_id", "ds", "y") if name not in there]
            if absent:
                raise InputError(f"{path} has no column {', '.join(absent)}; it has {', '.join(there)}")
            columns = [name for name in dict.fromkeys(wanted) if name in there]
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
                table = pa.Table.from_batches([batch])
                place = table.schema.get_field_index("unique_id")
                yield table.set_column(place, "unique_id", table["unique_id"].cast(pa.string()))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read as Parquet: {error}") from error


def _deal(table: pa.Table, parts: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of each part; all rows of a series go to the same one, whichever file they are in."""
    encoded = table["unique_id"].combine_chunks().dictionary_encode()
    if encoded.null_count:
        raise InputError("the column unique_id holds an empty name")
    names = encoded.dictionary.to_pylist()
    part_of_name = np.array([zlib.crc32(name.encode()) % parts for name in names], dtype=np.int16)
    part_R = part_of_name[encoded.indices.to_numpy()]
    order_R = np.argsort(part_R, kind="stable")
    sorted_rows, ends = table.take(order_R), np.cumsum(np.bincount(part_R, minlength=parts))
    for part, end in enumerate(ends):
        start = int(ends[part - 1]) if part else 0
        if end > start:
            yield part + 1, sorted_rows.slice(start, int(end) - start)


def _share(home: Path, number: int) -> Path:
    return home / f"{number:05d}.parquet"


def _note(folder: Path, number: int) -> Path:
    return folder / WORK / "done" / f"{number:05d}.json"


def forecast_part(reporter: Reporter, folder: str, number: int, level: tuple[float, ...]) -> None:
    """Forecast the series of one part, and note what became of it last of all."""
    home = Path(folder)
    artifact = next((home / WORK / "artifact").iterdir(), None)
    if artifact is None:
        raise SourceError(
            f"{home} is not there: on a cluster it must lie on a file system that all machines share"
        )
    share = _share(home / WORK / "input", number)
    forecasts: pd.DataFrame | None = None
    problems: dict[str, str] = {}
    if share.exists():
        forecasts, problems = _forecast_rows(load_artifact(artifact), pq.read_table(share), level)
    if forecasts is not None and len(forecasts):
        _write_part(forecasts, home / f"part-{number:05d}.parquet")
    if problems:
        reporter.say(f"part {number}: {len(problems)} series refused")
    series = 0 if forecasts is None else int(forecasts["unique_id"].nunique())
    _note(home, number).parent.mkdir(exist_ok=True)
    _write_json(_note(home, number), {"series": series, "rejects": problems})


def _forecast_rows(
    forecaster: Forecaster, rows: pa.Table, level: tuple[float, ...]
) -> tuple[pd.DataFrame | None, dict[str, str]]:
    frame = rows.to_pandas(ignore_metadata=True)
    spec = forecaster.spec
    try:
        columns, prices = find_columns(frame, spec.covariates), spec.covariates.prices
        panel = build_price_panel(frame, spec.freq, bad_series="drop", columns=columns, prices=prices)
    except PanelError as error:
        return None, error.problems
    forecasts, unusable = forecast_panel(forecaster, panel, level or None)
    problems = {**panel.dropped, **unusable}
    finite_R = np.isfinite(forecasts["mean"].to_numpy())
    for name in forecasts["unique_id"][~finite_R].unique():
        problems[name] = f"series {name!r} has no finite forecast"
    return forecasts[finite_R], problems


def _write_part(forecasts: pd.DataFrame, path: Path) -> None:
    draft = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
    forecasts.to_parquet(draft, index=False)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    draft = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
    with draft.open("w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _finish(folder: Path, manifest: Manifest) -> BatchResult:
    """List the rejects, say in the manifest that all is there, and take away what the work needed."""
    series = rejects = 0
    draft = folder / f".{REJECTS}"
    with draft.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["unique_id", "reason"])
        for number in range(1, manifest.parts + 1):
            note = json.loads(_note(folder, number).read_text())
            series, rejects = series + note["series"], rejects + len(note["rejects"])
            writer.writerows(note["rejects"].items())
    draft.replace(folder / REJECTS)
    result = BatchResult(manifest.version, manifest.parts, series, rejects)
    _write_json(folder / MANIFEST, {**asdict(manifest), "result": asdict(result)})
    shutil.rmtree(folder / WORK)
    return result
