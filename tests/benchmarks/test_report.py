import json
from pathlib import Path

import pytest

from benchmarks.peer_process import find_peers_python
from benchmarks.report import Report, finish, render_command


def test_the_json_holds_what_it_takes_to_repeat_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(peer_versions={"darts": "1.2"})
    report.add("mlp", "ours", "forecasts/s", 12_345)
    finish(report, "training_speed", ["--quick"], tmp_path / "sub" / "rows.json")
    content = json.loads((tmp_path / "sub" / "rows.json").read_text())
    assert content["rows"] == [{"case": "mlp", "system": "ours", "metric": "forecasts/s", "value": 12_345.0}]
    assert content["meta"].keys() == {"command", "date", "machine", "versions"}
    assert content["meta"]["command"] == "python -m benchmarks.training_speed --quick"
    assert content["meta"]["versions"]["darts"] == "1.2"
    assert {"cpu", "cores", "memory_gib"} <= content["meta"]["machine"].keys()
    assert "12,345" in capsys.readouterr().out


def test_the_command_names_files_and_not_where_they_lie() -> None:
    assert render_command("accuracy", ["ett", "--csv", "/a/b/ETTh1.csv"]) == (
        "python -m benchmarks.accuracy ett --csv ETTh1.csv"
    )


def test_the_median_of_several_runs_comes_with_its_spread() -> None:
    report = Report()
    report.add_median("mlp", "ours", "seconds", [3.0, 1.0, 2.0])
    assert report.value("mlp", "ours", "seconds") == 2.0
    assert report.value("mlp", "ours", "seconds, spread") == 1.0


def test_a_missing_environment_of_the_peers_is_said_with_the_way_to_make_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_peers_python(tmp_path / "python") is None
    assert "make bench-peers" in capsys.readouterr().err
