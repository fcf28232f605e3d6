"""Fan-out: the same results in this process, in processes and on a Ray cluster; and everything ends together."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from forecasting.artifact import artifact_digest
from forecasting.errors import HindcastError, PanelError, SourceError
from pipelines.cli import app
from pipelines.fanout import map_tasks, open_fan_out
from pipelines.fitting import fit_once
from pipelines.load import load_data
from pipelines.report import Reporter
from pipelines.retrain import backtest, retrain
from pipelines.run import Run, new_run
from pipelines.settings import PipelineSettings
from tests.conftest import free_port, missing_service
from tests.pipelines.conftest import TINY

ROOT = Path(__file__).parent.parent.parent


class Listener:
    """A reporter that remembers the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def epoch(self, candidate: str, epoch: int, of: int, metrics: Mapping[str, float]) -> None:
        self.lines.append(f"epoch {epoch}")

    def done(self, candidate: str) -> None:
        self.lines.append(f"done {candidate}")


def tell(reporter: Reporter, word: str, after: str = "", ended: str = "") -> tuple[str, int, int]:
    """Say a word, after the file `after` is there; leave the file `ended`."""
    while after and not Path(after).exists():
        time.sleep(0.02)
    reporter.say(f"told {word}")
    if ended:
        Path(ended).touch()
    return word, os.getpid(), torch.get_num_threads()


def refuse(reporter: Reporter, word: str) -> None:
    if word == "bad":
        raise PanelError({"pump-7": "series 'pump-7' is bad", "pump-8": "series 'pump-8' is bad"})


def fail_in_the_code(reporter: Reporter) -> None:
    raise ZeroDivisionError("nobody meant this")


@pytest.fixture
def two(settings: PipelineSettings) -> PipelineSettings:
    return settings.model_copy(update={"fan_out": 2})


def test_results_keep_the_order_of_the_tasks_whichever_ends_first(two: PipelineSettings, tmp_path: Path) -> None:
    listener, flag = Listener(), str(tmp_path / "quick")
    results = map_tasks(tell, {"slow": ("a", flag), "quick": ("b", "", flag)}, two, listener)
    assert [(name, word) for name, (word, _, _) in results.items()] == [("slow", "a"), ("quick", "b")]
    assert {"told a", "told b"} < set(listener.lines)
    assert [line.partition(": ")[2] for line in listener.lines if ": " in line] == [
        "done (1 of 2)",
        "done (2 of 2)",
    ]
    assert os.getpid() not in {process for _, process, _ in results.values()}
    assert {threads for _, _, threads in results.values()} == {1}


def test_one_at_a_time_is_this_process_and_its_own_reporter(settings: PipelineSettings) -> None:
    listener = Listener()
    results = map_tasks(tell, {"a": ("a",), "b": ("b",)}, settings, listener)
    assert {process for _, process, _ in results.values()} == {os.getpid()}
    assert listener.lines == ["told a", "a: done (1 of 2)", "told b", "b: done (2 of 2)"]


@pytest.mark.parametrize("fan_out", [1, 2])
def test_an_error_comes_back_as_it_was_raised_with_the_name_of_its_task(
    settings: PipelineSettings, fan_out: int
) -> None:
    listener = Listener()
    settings = settings.model_copy(update={"fan_out": fan_out})
    with pytest.raises(PanelError) as caught:
        map_tasks(refuse, {"job one": ("good",), "job two": ("bad",)}, settings, listener)
    assert caught.value.problems == {"pump-7": "series 'pump-7' is bad", "pump-8": "series 'pump-8' is bad"}
    assert "job two failed: series 'pump-7' is bad; series 'pump-8' is bad" in listener.lines


def test_a_fault_in_the_code_is_not_hidden(two: PipelineSettings) -> None:
    with pytest.raises(ZeroDivisionError, match="nobody meant this"):
        map_tasks(fail_in_the_code, {"a": (), "b": ()}, two, Listener())


def test_processes_stay_from_one_map_to_the_next(two: PipelineSettings) -> None:
    with open_fan_out(two, Listener(), 2) as fan_out:
        rounds = [fan_out.map(tell, {"a": ("a",), "b": ("b",)}) for _ in range(3)]
    assert len({process for results in rounds for _, process, _ in results.values()}) <= 2


SLEEPERS = """
import sys
from pathlib import Path
from pipelines.fanout import map_tasks
from pipelines.report import LogReporter
from pipelines.settings import PipelineSettings
from tests.pipelines.test_fanout import sleep_long

if __name__ == "__main__":
    try:
        tasks = {"a": (sys.argv[1],), "b": (sys.argv[1],)}
        map_tasks(sleep_long, tasks, PipelineSettings(fan_out=2), LogReporter())
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)
"""


def sleep_long(reporter: Reporter, folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", SLEEPERS, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as popen:
        deadline = time.monotonic() + 180
        while len(list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < deadline
            assert popen.poll() is None
            time.sleep(0.02)
        if number is signal.SIGINT:
            os.killpg(popen.pid, number)  # as a terminal does
        else:
            popen.send_signal(number)
        output, errors = popen.communicate(timeout=90)
    if number is signal.SIGINT:
        assert popen.returncode == 130
        assert output == "interrupted\n"
        assert "Traceback" not in errors
    deadline = time.monotonic() + 60
    while any(is_alive(int(path.name)) for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline, "a process went on alone"
        time.sleep(0.05)


@pytest.fixture
def parted_job(job_file: Path) -> Path:
    """A job one of whose candidates is trained over two partitions of the series."""
    parted = "hidden_size: 16, training: {partitions: 2}"
    job_file.write_text(TINY.replace("hidden_size: 16", parted))
    return job_file


def digests_of(run: Run) -> dict[str, str]:
    """Return the digest of every artefact in a run's folder."""
    return {name: artifact_digest(run.artifact(name)) for name in run.networks}


def test_a_retraining_is_the_same_side_by_side(
    parted_job: Path, settings: PipelineSettings, two: PipelineSettings
) -> None:
    listener = Listener()
    in_turn, beside = new_run(parted_job, settings, Listener()), new_run(parted_job, two, listener)
    expected, found = backtest(in_turn), retrain(beside)
    assert digests_of(beside) == digests_of(in_turn)
    assert {**found.report, "champion": None} == {**expected.report, "champion": None}
    assert found.version == "1"
    assert "fit ridge: done (" in "".join(listener.lines)
    assert any(line.startswith("lstm: epoch 1 of 3") for line in listener.lines)
    runs = MlflowClient(settings.tracking).search_runs(
        [MlflowClient(settings.tracking).get_experiment_by_name("tiny").experiment_id]
    )
    assert [r.info.status for r in runs] == ["FINISHED"] * 7


def test_a_fit_that_an_interrupted_attempt_finished_is_not_repeated(
    job_file: Path, settings: PipelineSettings
) -> None:
    run = new_run(job_file, settings, Listener())
    load_data(run)
    first = fit_once(Listener(), run.elsewhere, None, "mlp")
    before = (run.artifact("mlp") / "weights.safetensors").stat().st_mtime_ns
    assert fit_once(Listener(), run.elsewhere, None, "mlp") == first
    assert (run.artifact("mlp") / "weights.safetensors").stat().st_mtime_ns == before


def test_a_machine_that_does_not_see_the_run_says_so(job_file: Path, settings: PipelineSettings) -> None:
    run = new_run(job_file, settings, Listener())
    with pytest.raises(SourceError, match="HINDCAST_HOME must lie on a file system that all machines share"):
        fit_once(Listener(), run.elsewhere, None, "mlp")


def test_jobs_side_by_side_fail_each_for_itself(
    job_file: Path, settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job_file.parent / "good.yaml").write_text(TINY.replace("name: tiny", "name: good"))
    job_file.write_text(TINY.replace("n_windows: 6", "n_windows: 600"))
    outputs = []
    for fan_out in ("1", "2"):
        monkeypatch.setenv("HINDCAST_FAN_OUT", fan_out)
        result = CliRunner().invoke(app, ["backtest", "--all", str(job_file.parent)])
        assert isinstance(result.exception, HindcastError)
        assert str(result.exception) == "1 of 2 jobs failed: tiny"
        outputs.append(result.output)
    leaderboards = [output.partition("good: test scores")[2] for output in outputs]
    assert leaderboards[0] == leaderboards[1]
    assert "lstm" in leaderboards[0]
    assert "tiny failed: job 'tiny' has 500 steps of data and needs at least" in leaderboards[0]


CLUSTER = """
import json, os, sys
from contextlib import nullcontext
from pathlib import Path

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # or Ray would listen beyond this machine
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", sys.argv[3]
os.environ.pop("RAY_ADDRESS", None)
import ray
from ray.cluster_utils import Cluster
from pipelines.fanout import open_fan_out
from pipelines.load import load_data
from pipelines import fitting
from pipelines.run import new_run
from pipelines.settings import PipelineSettings
from tests.pipelines.test_fanout import Listener, digests_of, tell_where

node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args=node)
try:
    cluster.add_node(**node)
    cluster.wait_for_nodes()
    settings = PipelineSettings(home=Path(sys.argv[2]), ray_address=cluster.address)
    run = new_run(Path(sys.argv[1]), settings, Listener())
    load_data(run)
    with open_fan_out(settings, run.reporter, len(run.networks)) as fan_out:
        nodes = fan_out.map(tell_where, {"a": (), "b": (), "c": (), "d": ()})
        others = {name: (run.elsewhere, None, name) for name in run.networks if name != "mlp"}
        fan_out.map(fitting.fit_once, others)
        # Its partitions are shared out, over the same processes: starting others would take the longest of all.
        fitting.open_fan_out = lambda *_: nullcontext(fan_out)
        fitting.fit_once(run.reporter, run, None, "mlp")
    print(json.dumps({"nodes": nodes, "digests": digests_of(run)}))
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def tell_where(reporter: Reporter) -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_of_two_nodes_makes_the_same_artefacts_bit_for_bit(
    parted_job: Path, settings: PipelineSettings
) -> None:
    if find_spec("ray") is None:
        missing_service("needs Ray: pip install 'hindcast[ray]'")
    run = new_run(parted_job, settings, Listener())
    backtest(run)
    command = [sys.executable, "-c", CLUSTER, str(parted_job), str(settings.home), secrets.token_hex(20)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HINDCAST_TRAINING_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(set(found["nodes"].values())) == 2
    assert found["digests"] == digests_of(run)


def test_a_cluster_that_is_not_there_is_named_at_once(settings: PipelineSettings) -> None:
    pytest.importorskip("ray")
    address = f"127.0.0.1:{free_port()}"
    alone = settings.model_copy(update={"ray_address": address})
    started = time.monotonic()
    with pytest.raises(HindcastError, match=f"no Ray cluster answers at {address}"):
        map_tasks(tell, {"a": ("a",)}, alone, Listener())
    assert time.monotonic() - started < 10


def test_ray_that_is_not_installed_is_named(settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HindcastError, match=r"pip install 'hindcast\[ray\]'"):
        map_tasks(tell, {"a": ("a",)}, settings.model_copy(update={"ray_address": "auto"}), Listener())
