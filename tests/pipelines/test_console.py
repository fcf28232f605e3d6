"""Tables: boxed on a terminal, plain elsewhere, and whatever a series is called is only a name."""

import io

import pytest
from rich.console import Console

from pipelines import console
from pipelines.console import print_table

ODD_NAMES = ["site[/a]", "pump[bold]", "plain"]


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def printed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    out = Console(file=written, force_terminal=request.param, width=80, highlight=False, soft_wrap=True)
    monkeypatch.setattr(console, "out", out)
    return written


def test_names_with_square_brackets_are_printed_as_they_are(printed: io.StringIO) -> None:
    print_table("site[/b]: forecast", ["unique_id", "mean"], [[name, "1.5"] for name in ODD_NAMES])
    assert all(name in printed.getvalue() for name in [*ODD_NAMES, "site[/b]"])


def test_numbers_stand_right_and_words_left(printed: io.StringIO) -> None:
    rows = [["a", "1,234.5"], ["b", "1e-09"], ["c", "nan"], ["d", "-inf"]]
    print_table("scores", ["model", "crps"], rows)
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    ends = {len(line) for line in lines if line.endswith(("1,234.5", "1e-09", "nan", "-inf"))}
    assert len(ends) == 1
