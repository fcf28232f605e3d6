"""Job files as they are named on a command line."""

from collections.abc import Sequence
from pathlib import Path

from forecasting.errors import InputError
from pipelines.schedule import find_jobs
from training.job import load_job


def list_jobs(jobs: Sequence[Path], folder: Path | None) -> dict[str, Path]:
    """Return job files by the names of their jobs.

    Raises:
        InputError: there is none, or two have the same name.
    """
    files = {} if folder is None else find_jobs(folder)
    for path in jobs:
        name = load_job(path).name
        if files.get(name, path) != path:
            raise InputError(f"{path} and {files[name]} are both named {name!r}")
        files[name] = path
    if not files:
        raise InputError("give a job file, or --all with a folder of them")
    return files
