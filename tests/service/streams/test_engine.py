"""The engine: answers that equal the stream, and nothing acknowledged that is lost."""

import sqlite3

import numpy as np
import pytest

from forecasting.spec import CovariatesSpec, MLPSpec, StaticSpec
from service.problems import MODEL_NOT_LOADED, STREAMS_UNAVAILABLE, UNKNOWN_MODEL, ProblemError
from tests.service.conftest import build_forecaster
from tests.service.streams.conftest import LSTM, Bench, OpenBench, hour, loaded, row, walk


def feed(
    bench: Bench, n_steps: int = 20, series: tuple[str, ...] = ("a", "b"), start: int = 0
) -> dict[str, object]:
    """Tell series their walks, a step a request, and return the last answer."""
    answer: dict[str, object] = {}
    for step in range(start, n_steps):
        answer = bench.send([row(name, step, walk(60, seed)[step]) for seed, name in enumerate(series)])
    return answer


def same(one: object, other: object) -> None:
    """Two lists of forecasts say the same."""
    assert isinstance(one, list)
    assert isinstance(other, list)
    assert [forecast["unique_id"] for forecast in one] == [forecast["unique_id"] for forecast in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine["cutoff"] == theirs["cutoff"]
        np.testing.assert_allclose(mine["mean"], theirs["mean"], rtol=1e-6)


def test_a_stream_answers_with_the_shape_of_a_forecast(bench: Bench) -> None:
    answer = bench.send([row("a", step, y) for step, y in enumerate(walk(12))], h=2, level=[80])
    (forecast,) = answer["forecasts"]
    assert (answer["model"], answer["version"], answer["refused"]) == ("pump", "1", 0)
    assert forecast["cutoff"] == hour(11)
    assert forecast["ds"] == [hour(12), hour(13)]
    assert forecast["status"] == "ok"
    assert forecast["lo-80"][0] < forecast["mean"][0] < forecast["hi-80"][0]


def test_the_first_steps_are_degraded_and_say_why(bench: Bench) -> None:
    assert bench.forecast("a", 0, 1.0)["reason"] == (
        "the stream has 1 of the 8 steps this model needs (input_size)"
    )
    for step in range(1, 7):
        assert bench.forecast("a", step, 1.0 + step)["status"] == "degraded"
    assert bench.forecast("a", 7, 8.0)["status"] == "ok"


def test_many_steps_in_one_message_equal_one_by_one(open_bench: OpenBench) -> None:
    one, many = open_bench("one"), open_bench("many")
    rows = [row(name, step, walk(60, seed)[step]) for step in range(20) for seed, name in enumerate(("a", "b"))]
    same(many.send(rows)["forecasts"], feed(one)["forecasts"])


def test_messages_that_arrive_together_are_each_answered_from_their_own_state(open_bench: OpenBench) -> None:
    together, apart = open_bench("together"), open_bench("apart")
    feed(together), feed(apart)
    bodies = [{"observations": [row("a", 20, 51.0)]}, {"observations": [row("b", 20, 49.0)]}]
    bodies.append({"observations": [row("a", 21, 52.0)]})
    answers = together.send_all(*bodies)
    assert [one["forecasts"][0]["cutoff"] for one in answers] == [hour(20), hour(20), hour(21)]
    for answer, body in zip(answers, bodies, strict=True):
        same(answer["forecasts"], apart.send(body["observations"])["forecasts"])


def test_the_same_observation_again_gets_the_same_answer(bench: Bench) -> None:
    first = feed(bench)
    again = bench.send([row("a", 19, walk(60, 0)[19]), row("b", 19, walk(60, 1)[19])])
    assert again["forecasts"] == first["forecasts"]
    assert again["refused"] == 0


def test_what_cannot_be_taken_in_is_refused_alone_and_by_name(bench: Bench) -> None:
    feed(bench)
    answer = bench.send(
        [
            row("a", 20, 50.0),
            row("b", 3, 1.0),
            {"unique_id": "b", "ds": "2024-01-01T20:30:00Z", "y": 1.0},
            {"unique_id": "b", "ds": "2024-02-30T00:00:00Z", "y": 1.0},
            {"unique_id": "b", "ds": "2199-01-01T00:00:00Z", "y": 1.0},
            {"unique_id": "b", "ds": hour(21), "y": "1.0"},
            row("b", 20, 1.0, past={"load": 1.0}),
            row("b\0", 20, 1.0),
        ]
    )
    assert [one["unique_id"] for one in answer["forecasts"]] == ["a"]
    assert [one["row"] for one in answer["refusals"]] == [1, 2, 3, 4, 5, 6, 7]
    reasons = [one["reason"] for one in answer["refusals"]]
    for expected, reason in zip(
        [
            "4 steps or more before",
            "grid of h",
            "no timestamp",
            "lies in the future",
            "valid number",
            "'load'",
            "",
        ],
        reasons,
        strict=True,
    ):
        assert expected in reason
    assert all(one["unique_id"].startswith("b") for one in answer["refusals"])


def test_a_gap_that_is_too_long_begins_afresh_and_is_said(bench: Bench) -> None:
    feed(bench)
    bridged, restarted = bench.forecast("a", 40, 50.0), bench.forecast("b", 41, 50.0)
    assert bridged["status"] == "ok"
    assert "begins again after a gap of more than 20 steps" in restarted["reason"]


@pytest.mark.parametrize("replayed", [3, 20_000])
def test_what_was_acknowledged_is_there_after_a_crash(
    open_bench: OpenBench, replayed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.streams.engine.REPLAYED", replayed)
    crashed, calm = open_bench("crashed"), open_bench("calm")
    feed(crashed)
    crashed.send([row("a", 18, 7.0)])
    feed(calm)
    calm.send([row("a", 18, 7.0)])
    crashed.die()
    same([crashed.forecast("a", 20, 50.0)], [calm.forecast("a", 20, 50.0)])
    same([crashed.forecast("b", 20, 50.0)], [calm.forecast("b", 20, 50.0)])


@pytest.mark.parametrize("slices", [0, 1, 2, 3])
def test_a_crash_in_the_middle_of_a_snapshot_loses_nothing(
    open_bench: OpenBench, slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.streams.engine.SLICE", 1)
    crashed, calm = open_bench("crashed"), open_bench("calm")
    feed(calm, 25)
    feed(crashed, 20)
    crashed.engine._begin_snapshot()
    for step in range(20, 25):
        feed(crashed, step + 1, start=step)
        if step - 20 < slices:
            crashed.engine._save_slice()
    crashed.die()
    for name in ("a", "b"):
        same([crashed.forecast(name, 25, 50.0)], [calm.forecast(name, 25, 50.0)])


def test_a_snapshot_lets_the_journal_go(open_bench: OpenBench) -> None:
    bench, calm = open_bench(stream_journal_bytes=1024), open_bench("calm")
    feed(calm, 30)
    for step in range(30):
        feed(bench, step + 1, start=step)
        while bench.engine.tidy():
            pass
    assert bench.engine.tally.kept.journal_bytes < 3 * 1024
    bench.die()
    same([bench.forecast("a", 30, 50.0)], [calm.forecast("a", 30, 50.0)])


def test_without_idle_time_the_journal_is_bounded_too(open_bench: OpenBench) -> None:
    bench = open_bench(stream_journal_bytes=1024)
    sizes = []
    for step in range(60):
        feed(bench, step + 1, start=step)
        sizes.append(sum(path.stat().st_size for path in bench.engine.path.glob("*.journal")))
    assert max(sizes) < 4 * 1024


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_record_written_in_part_was_never_acknowledged(open_bench: OpenBench, cut: int) -> None:
    bench, calm = open_bench("torn"), open_bench("calm")
    feed(bench, 21)
    feed(calm, 20)
    bench.die()
    (path,) = bench.engine.path.glob("*.journal")
    path.write_bytes(path.read_bytes()[:-cut])
    same([bench.forecast("a", 20, 3.0)], [calm.forecast("a", 20, 3.0)])


def test_a_journal_of_another_format_is_put_aside(bench: Bench) -> None:
    bench.engine.path.mkdir(parents=True)
    (bench.engine.path / "000000000007.journal").write_bytes(b"something else\n")
    assert bench.forecast("a", 0, 1.0)["status"] == "degraded"
    assert (bench.engine.path / "000000000007.unreadable").exists()


def test_a_damaged_store_is_put_aside_and_streams_begin_afresh(bench: Bench) -> None:
    feed(bench)
    bench.engine.close()
    (bench.engine.path / "streams.db").write_bytes(b"no database" * 1000)
    assert "1 of the 8 steps" in bench.forecast("a", 20, 1.0)["reason"]
    assert (bench.engine.path / "streams.unreadable").exists()


def test_a_damaged_row_counts_as_none_and_takes_no_other_with_it(bench: Bench) -> None:
    feed(bench)
    bench.engine.close()
    with sqlite3.connect(bench.engine.path / "streams.db") as connection:
        connection.execute("UPDATE streams SET content = zeroblob(length(content)) WHERE unique_id = 'a'")
    connection.close()
    assert "1 of the 8 steps" in bench.forecast("a", 20, 1.0)["reason"]
    assert bench.forecast("b", 20, 1.0)["status"] == "ok"


def test_series_beyond_the_memory_wait_on_disk_and_come_back_as_they_were(open_bench: OpenBench) -> None:
    names = tuple(f"s{i}" for i in range(150))
    large, small = open_bench("large"), open_bench("small", stream_memory_bytes=48 * 1024)
    for step in range(12):
        for start in range(0, 150, 30):
            rows = [row(name, step, walk(60, start + i)[step]) for i, name in enumerate(names[start : start + 30])]
            same(small.send(rows)["forecasts"], large.send(rows)["forecasts"])
    small.engine.tidy()
    large.engine.tidy()
    assert large.engine.tally.kept.in_memory == 150
    assert small.engine.tally.kept.in_memory < 150
    assert small.engine.tally.kept.memory_bytes <= 48 * 1024


def test_the_disk_is_bounded_and_the_least_recently_used_are_forgotten(open_bench: OpenBench) -> None:
    bench = open_bench(stream_memory_bytes=64 * 1024, stream_disk_bytes=400 * 1024)
    for start in range(0, 2000, 100):
        bench.send([row(f"s{i}", 0, 1.0) for i in range(start, start + 100)])
    bench.engine.close()
    assert (bench.engine.path / "streams.db").stat().st_size < 3 * 400 * 1024
    bench.engine.open()
    assert bench.engine._store is not None
    assert 100 < bench.engine._store.count() < 1000
    assert bench.forecast("s1999", 1, 2.0)["reason"].startswith("the stream has 2 of")
    assert bench.forecast("s0", 1, 2.0)["reason"].startswith("the stream has 1 of")


@pytest.mark.parametrize(("found_in", "steps"), [("memory", 12), ("store", 12), ("journal", 40)])
def test_another_version_is_answered_from_what_is_kept(open_bench: OpenBench, found_in: str, steps: int) -> None:
    bench, other = open_bench("swapped"), open_bench("other")
    other.models["pump"] = loaded(build_forecaster("pump", "h", LSTM, seed=5), "2")
    feed(bench, 40)
    feed(other, 40, start=40 - steps)
    bench.models["pump"] = other.models["pump"]
    if found_in == "store":
        bench.engine.close()
    elif found_in == "journal":
        bench.die()
    answer = bench.send([row("a", 40, 50.0)])
    assert answer["version"] == "2"
    same(answer["forecasts"], [other.forecast("a", 40, 50.0)])
    assert answer["forecasts"][0]["status"] == "ok"


def test_a_champion_without_a_state_streams_from_the_same_observations(bench: Bench) -> None:
    mlp = build_forecaster("pump", "h", MLPSpec(input_size=8, hidden_size=4))
    feed(bench, 30)
    bench.models["pump"] = loaded(mlp, "2")
    shown = bench.forecast("a", 30, 50.0)
    quantiles_BHQ = mlp.predict(np.array([[*walk(60, 0)[:30], 50.0]]))
    assert shown["status"] == "ok"
    low = quantiles_BHQ[0, :, list(mlp.spec.quantiles).index(0.1)]
    np.testing.assert_allclose(shown["lo-80"], low, rtol=1e-6)


def test_one_process_owns_the_folder(open_bench: OpenBench) -> None:
    first, second = open_bench(), open_bench()
    first.forecast("a", 0, 1.0)
    with pytest.raises(ProblemError) as refused:
        second.forecast("a", 0, 1.0)
    assert refused.value.kind == STREAMS_UNAVAILABLE
    first.engine.close()
    assert second.forecast("a", 1, 2.0)["reason"].startswith("the stream has 2 of")


def test_observations_of_a_model_that_is_not_loaded_yet_wait_for_it(bench: Bench) -> None:
    feed(bench)
    model = bench.models.pop("pump")
    bench.die()
    (answer,) = bench.send_all({"observations": [row("a", 20, 50.0)]})
    assert isinstance(answer, ProblemError)
    assert answer.kind == MODEL_NOT_LOADED
    bench.models["pump"] = model
    assert bench.forecast("a", 20, 50.0)["status"] == "ok"


def test_one_message_that_is_refused_takes_no_other_with_it(bench: Bench) -> None:
    good = {"observations": [row("a", 0, 1.0)]}
    answers = bench.send_all(good, {**good, "model": "nothing"}, {**good, "h": 99}, good)
    assert [isinstance(one, ProblemError) for one in answers] == [False, True, True, False]
    assert UNKNOWN_MODEL.status == 404


def test_what_a_model_is_not_told_is_said(bench: Bench) -> None:
    covariates = CovariatesSpec(
        past=("load",), future=("setpoint",), static=(StaticSpec(name="unique_id", categories=("a",)),)
    )
    bench.models["pump"] = loaded(build_forecaster("pump", "h", LSTM, covariates=covariates))
    for step in range(8):
        told = {"past": {"load": 1.0}, "future": {"setpoint": [1.0] * 5}}
        whole = bench.send([row("a", step, 1.0 + step, **told), row("b", step, 1.0 + step)])["forecasts"]
    assert [one["status"] for one in whole] == ["ok", "degraded"]
    assert whole[1]["reason"] == (
        "past 'load' is missing; future 'setpoint' is missing; "
        "series 'b' was not in training: answered as an unknown one"
    )
