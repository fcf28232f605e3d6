"""What the commands do that fill the ledger: ingest, watch, bridge. They load no training they do not need."""

import signal
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from forecasting.errors import InputError
from ledger.ledger import open_ledger
from ledger.rules import check_dataset
from pipelines.console import out, reporting
from pipelines.folder import FileLayout, FolderWatch
from pipelines.settings import PipelineSettings


def ingest(settings: PipelineSettings, job: Path) -> None:
    """Append what a job's source has to the ledger, and print what became of it."""
    from pipelines.ingest import ingest_job, tell_refusals
    from training.job import load_job

    config = load_job(job)
    with reporting() as reporter, closing(open_ledger(settings.ledger)) as ledger:
        done = ingest_job(config, job.parent.absolute(), settings.cache_dir, ledger, reporter)
        tell_refusals(done.refusals, done.refused, reporter)
    out.print(done.describe(), markup=False)


def watch(
    settings: PipelineSettings,
    folder: Path,
    dataset: str,
    layout: Mapping[str, Any],
    poll_seconds: float,
    settle_seconds: float,
    once: bool,
) -> None:
    """Take in the files of a folder until stopped, or once.

    Raises:
        InputError: there is no such folder or column, or, asked once, files were rejected.
    """
    check_dataset(dataset)
    files = FileLayout(**{**layout, "columns": parse_columns(layout["columns"])})
    with reporting() as reporter, closing(open_ledger(settings.ledger)) as ledger:
        watch = FolderWatch(folder, dataset, ledger, reporter, files, settle_seconds=settle_seconds)
        watch.run(poll_seconds, once=once)
    tally = watch.tally
    out.print(f"{dataset}: {tally.done} files taken in, {tally.known} known already, {tally.rejected} rejected")
    if tally.rejected:
        raise InputError(f"{tally.rejected} files were rejected; the reasons are in {folder / 'rejected'}")


def bridge(
    settings: PipelineSettings,
    dataset: str,
    topics: Sequence[str],
    broker: str,
    columns: str,
    epoch: str | None,
    every: str | None,
    client_id: str | None,
) -> None:
    """Carry messages until stopped.

    Raises:
        InputError: something cannot be meant as it is written, or paho-mqtt is not installed.
        SourceError: the broker refuses this client.
    """
    try:
        from pipelines.bridge import Bridge, BridgeConfig, parse_broker, parse_every, parse_topic
    except ImportError as error:
        raise InputError("the bridge needs paho-mqtt: pip install hindcast[mqtt]") from error
    password = None if settings.mqtt_password is None else settings.mqtt_password.get_secret_value()
    config = BridgeConfig(
        parse_broker(broker, password),
        tuple(map(parse_topic, topics)),
        check_dataset(dataset),
        client_id or f"hindcast-{dataset}",
        parse_columns(columns),
        epoch,
        None if every is None else parse_every(every),
    )
    with reporting() as reporter, closing(open_ledger(settings.ledger)) as ledger:
        bridge = Bridge(config, ledger, reporter, settings.home / "bridge" / f"{dataset}.rejected.ndjson")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: bridge.stop())
        bridge.run()
    out.print(f"{dataset}: {bridge.kept:,} rows kept, {bridge.refused:,} refused", markup=False)


def parse_columns(text: str) -> dict[str, str]:
    """Read `unique_id=sensor,ds=time`: what a column is, and its name.

    Raises:
        InputError: it is not written so.
    """
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if any(not name.strip() or not column.strip() for name, _, column in pairs):
        raise InputError(f'--columns is written "unique_id=sensor,ds=time,y=value", not {text!r}')
    return {name.strip(): column.strip() for name, _, column in pairs}
