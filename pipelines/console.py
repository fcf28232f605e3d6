"""What the command line prints: tables and progress bars on a terminal, plain lines elsewhere."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipelines.report import line_of_epoch

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.retrain import Outcome

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

LEADERBOARD_COLUMNS = ("crps", "skill", "mase", "mae", "rmse")


class ConsoleReporter:
    """A reporter for people: bars that move on a terminal, a line now and then elsewhere."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def say(self, line: str) -> None:
        (self._progress.console if self._progress else out).print(line, markup=False)

    def epoch(self, candidate: str, epoch: int, of: int, metrics: Mapping[str, float]) -> None:
        if self._progress is None:
            line = line_of_epoch(candidate, epoch, of, metrics)
            if line is not None:
                self.say(line)
            return
        if candidate not in self._tasks:
            self._tasks[candidate] = self._progress.add_task(candidate, total=of)
        train, val = metrics["train/loss"], metrics["val/loss"]
        note = f"train {train:.4f}  validation {val:.4f}"
        self._progress.update(self._tasks[candidate], completed=epoch, description=f"{candidate}  {note}")

    def done(self, candidate: str) -> None:
        if self._progress is not None and candidate in self._tasks:
            self._progress.remove_task(self._tasks.pop(candidate))

    def count(self, what: str) -> Callable[[int, int], None]:
        """Return what is told how many of something are done, and how many there are."""

        def show(done: int, of: int) -> None:
            if self._progress is None:
                self.say(f"{what}: {done:,} of {of:,}")
                return
            if what not in self._tasks:
                self._tasks[what] = self._progress.add_task(what, total=of)
            self._progress.update(self._tasks[what], completed=done)

        return show


@contextmanager
def reporting() -> Iterator[ConsoleReporter]:
    """Give a reporter that suits where the output goes."""
    if not out.is_terminal:
        yield ConsoleReporter(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        yield ConsoleReporter(progress)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: boxed on a terminal, aligned plain text elsewhere. Numbers are right-aligned."""
    justify = ["right" if all(_is_number(row[i]) for row in rows) else "left" for i in range(len(columns))]
    if out.is_terminal:
        table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for i, (column, side) in enumerate(zip(columns, justify, strict=True)):
            # Only the last column of words may wrap; everything else is read as a whole or not at all.
            wraps = i == len(columns) - 1 and side == "left"
            table.add_column(escape(column), justify="right" if side == "right" else "left", no_wrap=not wraps)
        for row in rows:
            table.add_row(*map(escape, row))
        out.print(table)
        return
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    out.print(title, markup=False)
    for row in (columns, *rows):
        cells = zip(row, widths, justify, strict=True)
        line = "  ".join(cell.rjust(w) if side == "right" else cell.ljust(w) for cell, w, side in cells)
        out.print(line.rstrip(), markup=False)


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", ""))
    except ValueError:
        return False
    return True


def print_leaderboard(job: str, board: "pd.DataFrame", metric: str, best: str) -> None:
    """Print everyone's test scores, best first, with the published candidate marked."""
    bounds = ("_low", "_high")
    coverage = [c for c in board.columns if c.startswith("coverage_") and not c.endswith(bounds)]
    columns = [metric, *(c for c in LEADERBOARD_COLUMNS if c != metric)]
    rows = [
        [
            f"{name} *" if name == best else str(name),
            *(_number(board.loc[name, column]) for column in columns),
            *(_covered(board.loc[name].to_dict(), column) for column in coverage),
        ]
        for name in board.index
    ]
    titles = [*columns, *(name.replace("coverage_", "in ") + "%" for name in coverage)]
    print_table(f"{job}: test scores, best {metric} first (* chosen on validation)", ["model", *titles], rows)


RETURNS_COLUMNS = ("crps", "qlike", "pinball_1", "pinball_5", "log_score", "r2")
P_COLUMNS = ("kupiec_1", "christoffersen_1", "kupiec_5", "christoffersen_5", "dm_p", "mcs_p")
P_TITLES = ("Kupiec 1%", "Christoff. 1%", "Kupiec 5%", "Christoff. 5%", "DM p", "MCS p")


def print_returns(job: str, board: "pd.DataFrame", best: str, rivals: Sequence[str], verdict: str) -> None:
    """Print what everyone's next returns are worth, the rivals marked, and what it comes to."""
    columns = [column for column in RETURNS_COLUMNS if column in board.columns]
    tests = [(c, title) for c, title in zip(P_COLUMNS, P_TITLES, strict=True) if c in board.columns]
    rows = [
        [
            f"{name} *" if name == best else f"{name} (rival)" if name in rivals else str(name),
            *(_known(board.loc[name, column]) for column in columns),
            _direction(board.loc[name].to_dict()),
            *(_p_value(board.loc[name, column]) for column, _ in tests),
        ]
        for name in board.index
    ]
    titles = ["model", *columns, "direction", *(title for _, title in tests)]
    print_table(
        f"{job}: the next return, in percent (p-values: small where wrong, or less accurate)", titles, rows
    )
    out.print(verdict, markup=False)


def _known(value: float) -> str:
    return _number(value) if math.isfinite(value) else "-"


def _p_value(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "-"


def _direction(scores: "Mapping[Hashable, Any]") -> str:
    share, low, high = (float(scores[f"direction{end}"]) for end in ("", "_low", "_high"))
    return f"{share:.2f} [{low:.2f}, {high:.2f}]" if math.isfinite(share) else "-"


def print_outcome(outcome: "Outcome", metric: str) -> None:
    """Print what a training came to: the leaderboard, and of a stock job what its returns are worth."""
    board, report = outcome.leaderboard(metric), outcome.report
    print_leaderboard(outcome.job, board, metric, report["best"])
    if report["verdict"] is not None:
        print_returns(outcome.job, board, report["best"], report["rivals"], report["verdict"])


def _covered(scores: "Mapping[Hashable, Any]", column: str) -> str:
    """Write a coverage with its 95 % confidence interval: `0.79 [0.72, 0.85]`."""
    share, low, high = (float(scores[f"{column}{end}"]) for end in ("", "_low", "_high"))
    return f"{share:.2f}" + (f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else "")


def print_forecast(title: str, frame: "pd.DataFrame") -> None:
    """Print a forecast frame as it is."""
    columns = [str(column) for column in frame.columns]
    rows = [[_number(v) if isinstance(v, float) else str(v) for v in row] for row in frame.itertuples(index=False)]
    print_table(title, columns, rows)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"
