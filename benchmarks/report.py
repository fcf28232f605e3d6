"""What every benchmark says: rows, on which machine and with which versions they came about, as table and JSON."""

import json
import os
import platform
import shlex
import statistics
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath

import torch
from rich.console import Console
from rich.table import Table

OUR_PACKAGES = ("torch", "numpy", "pandas")
OURS = "hindcast"


@dataclass(frozen=True)
class Row:
    """One figure: what was measured of whom in which case."""

    case: str
    system: str
    metric: str
    value: float


@dataclass
class Report:
    """The rows of one run of a benchmark, in the order they came, and the versions of the peers it asked."""

    rows: list[Row] = field(default_factory=list)
    peer_versions: dict[str, str] = field(default_factory=dict)

    def add(self, case: str, system: str, metric: str, value: float) -> None:
        """Append a figure."""
        self.rows.append(Row(case, system, metric, float(value)))

    def add_median(self, case: str, system: str, metric: str, values: Sequence[float]) -> None:
        """Append the median of several runs, and the spread (largest less smallest, over the median)."""
        median = statistics.median(values)
        self.add(case, system, metric, median)
        if len(values) > 1:
            self.add(case, system, f"{metric}, spread", (max(values) - min(values)) / median if median else 0.0)

    def value(self, case: str, system: str, metric: str) -> float | None:
        """Return a figure that was added, or None."""
        for row in self.rows:
            if (row.case, row.system, row.metric) == (case, system, metric):
                return row.value
        return None

    def to_dict(self, command: str) -> dict[str, object]:
        """Return what `--out` writes."""
        meta = {
            "command": command,
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "machine": describe_machine(),
            "versions": {**describe_versions(), **self.peer_versions},
        }
        return {"meta": meta, "rows": [asdict(row) for row in self.rows]}


def build_parser(name: str, description: str) -> ArgumentParser:
    """Return a parser with the arguments every benchmark takes."""
    parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    add_common_arguments(parser)
    return parser


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add `--out`, `--quick` and `--threads` to a parser or to one of its subcommands."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, less than a minute: does it run")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="torch threads, the same for all (%(default)s)"
    )


def finish(report: Report, name: str, argv: Sequence[str], out: Path | None, *, wide: bool = False) -> None:
    """Print the table, with the machine and the versions under it, and write the JSON where asked for.

    Args:
        report: what was found.
        name: of the benchmark.
        argv: its arguments.
        out: where the JSON goes.
        wide: print a table a case, with a column for each system.
    """
    content = report.to_dict(render_command(name, argv))
    print_report(tabulate_wide(report.rows) if wide else [tabulate(report.rows)], content["meta"])
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=2) + "\n")


def print_report(tables: Iterable[Table], meta: object) -> None:
    """Print tables, and what they came about with."""
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    for table in tables:
        console.print(table)
    console.print_json(json.dumps(meta))


def tabulate(rows: Iterable[Row]) -> Table:
    """Return one table of all rows, a case after the other."""
    table = Table("case", "system", "metric")
    table.add_column("value", justify="right")
    previous = None
    for row in rows:
        if previous not in (None, row.case):
            table.add_section()
        table.add_row("" if row.case == previous else row.case, row.system, row.metric, format_value(row.value))
        previous = row.case
    return table


def tabulate_wide(rows: Sequence[Row]) -> list[Table]:
    """Return a table a case: a line for each metric, a column for each system."""
    tables = []
    for case in dict.fromkeys(row.case for row in rows):
        found = {(row.metric, row.system): row.value for row in rows if row.case == case}
        systems = list(dict.fromkeys(system for _, system in found))
        table = Table("", title=case)
        for system in systems:
            table.add_column(system, justify="right")
        for metric in dict.fromkeys(metric for metric, _ in found):
            values = (found.get((metric, system)) for system in systems)
            table.add_row(metric, *("" if value is None else format_value(value) for value in values))
        tables.append(table)
    return tables


def format_value(value: float) -> str:
    """Return a figure as it is read: thousands grouped, small ones with four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def render_command(name: str, argv: Sequence[str]) -> str:
    """Return the command line; of a path the file's name only, for where it lies is nobody's business."""
    words = [PurePath(word).name if PurePath(word).is_absolute() else word for word in argv]
    return shlex.join(["python", "-m", f"benchmarks.{name}", *words])


def describe_machine() -> dict[str, object]:
    """Return what the speed depends on: processor, memory, GPU. No name and no address."""
    machine: dict[str, object] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_versions(packages: Sequence[str] = OUR_PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed here."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def say(line: str) -> None:
    """Say on the standard error stream what is going on, so that the table alone is the output."""
    Console(stderr=True, soft_wrap=True).print(line, highlight=False, markup=False)
