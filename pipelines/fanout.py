"""Many tasks at a time: in this process, in processes of their own, or on a Ray cluster, with the same results.

joblib hands functions and results over as pickles. They are written and read by processes this one started, or by
those of a cluster it was told to trust; nothing that came as an artefact, a file or a request is ever unpickled.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from joblib import Parallel, delayed, parallel_config, register_parallel_backend

from forecasting.errors import HindcastError
from pipelines.report import Reporter, line_of_epoch
from pipelines.settings import PipelineSettings

R = TypeVar("R")
Tasks = Mapping[str, tuple[Any, ...]]
"""What a function is called with after the reporter, by the name of the task; small and picklable."""

RAY = "hindcast-ray"
WATCH_SECONDS = 0.5
"""Seconds after which a process whose parent was killed ends too."""
CONNECT_SECONDS = 5.0


def map_tasks(
    function: Callable[..., R],
    tasks: Tasks,
    settings: PipelineSettings,
    reporter: Reporter,
    *,
    aloud: bool = True,
) -> dict[str, R]:
    """Call `function(reporter, *arguments)` for every task, as many at a time as the settings say.

    The results are in the order of the tasks, whichever ended first. What a task says in a process of its own is
    said here when it ends; not `aloud`, that it ended is not. Ctrl-C ends all of them.

    Raises:
        HindcastError: of the task that failed first, as it was raised there; the others are ended.
    """
    with open_fan_out(settings, reporter, len(tasks)) as fan_out:
        return fan_out.map(function, tasks, aloud=aloud)


class FanOut:
    """Runs tasks, several at a time; its processes stay from one `map` to the next."""

    def __init__(self, settings: PipelineSettings, reporter: Reporter, parallel: Parallel | None) -> None:
        self._settings, self._reporter, self._parallel = settings, reporter, parallel

    def map(self, function: Callable[..., R], tasks: Tasks, *, aloud: bool = True) -> dict[str, R]:
        """Call a function for every task, as `map_tasks` does."""
        if self._parallel is None:
            return self._map_here(function, tasks, aloud=aloud)
        results: dict[str, R] = {}
        with closing(self._parallel(self._calls(function, tasks))) as answers:
            for answer in answers:
                results[answer.name] = self._take(answer)
                if aloud:
                    self._say_done(answer.name, len(results), tasks)
        return {name: results[name] for name in tasks}

    def _map_here(self, function: Callable[..., R], tasks: Tasks, *, aloud: bool) -> dict[str, R]:
        results: dict[str, R] = {}
        for name, arguments in tasks.items():
            try:
                results[name] = function(self._reporter, *arguments)
            except HindcastError as error:
                self._reporter.say(f"{name} failed: {error}")
                raise
            if aloud:
                self._say_done(name, len(results), tasks)
        return results

    def _say_done(self, name: str, count: int, tasks: Tasks) -> None:
        self._reporter.say(f"{name}: done ({count} of {len(tasks)})")

    def _calls(self, function: Callable[..., R], tasks: Tasks) -> Iterator[Any]:
        threads, root = threads_each(self._settings), self._settings.artifact_root
        return (delayed(_answer)(function, name, arguments, threads, root) for name, arguments in tasks.items())

    def _take(self, answer: "_Answer[R]") -> R:
        for line in answer.lines:
            self._reporter.say(line)
        if answer.error is not None:
            self._reporter.say(f"{answer.name} failed: {answer.error}")
            raise answer.error
        return answer.results[0]


@contextmanager
def open_fan_out(settings: PipelineSettings, reporter: Reporter, at_most: int) -> Iterator[FanOut]:
    """Give a fan-out over no more than `at_most` tasks at a time.

    Raises:
        HindcastError: a Ray cluster is asked for and there is none, or no Ray to speak to it.
    """
    count = min(
        at_most, _room_on_ray(settings) if settings.ray_address else settings.fan_out or os.cpu_count() or 1
    )
    if count <= 1:
        yield FanOut(settings, reporter, None)
        return
    with (
        _backend(settings),
        Parallel(
            n_jobs=count,
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch="all",
            max_nbytes=None,  # arrays travel as they are: a folder of their copies would outlive a killed process
        ) as parallel,
    ):
        yield FanOut(settings, reporter, parallel)


def threads_each(settings: PipelineSettings) -> int:
    """Return the threads torch computes with in each process: one, where the settings do not say otherwise."""
    return settings.training_threads or 1


def _room_on_ray(settings: PipelineSettings) -> int:
    room = _connect_to_ray(settings.ray_address) // threads_each(settings)
    if room < 1:
        raise HindcastError(
            f"the Ray cluster at {settings.ray_address} has too few CPUs for {threads_each(settings)} threads"
        )
    return min(room, settings.fan_out) if settings.fan_out > 1 else room


@contextmanager
def _backend(settings: PipelineSettings) -> Iterator[None]:
    if settings.ray_address:
        # By itself Ray counts no CPU for such a process, and puts all of them on one machine.
        with parallel_config(backend=RAY, ray_remote_args={"num_cpus": threads_each(settings)}):
            yield
        return
    threads = threads_each(settings)
    initialise = {"initializer": _prepare_process, "initargs": (os.getpid(),)}
    with parallel_config(backend="loky", inner_max_num_threads=threads, **initialise):
        yield


def _prepare_process(parent: int) -> None:
    """Make a process of ours end with the one that started it, and only with it."""
    # A terminal sends Ctrl-C to everyone; the parent alone decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


@dataclass(frozen=True)
class _Answer(Generic[R]):
    """What came of a task elsewhere: one result or an error, and what was said."""

    name: str
    results: tuple[R, ...]
    error: HindcastError | None
    lines: tuple[str, ...]


class _Lines:
    """A reporter that keeps what is said until the task is done."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def epoch(self, candidate: str, epoch: int, of: int, metrics: Mapping[str, float]) -> None:
        line = line_of_epoch(candidate, epoch, of, metrics)
        if line is not None:
            self.lines.append(line)

    def done(self, candidate: str) -> None:
        del candidate


def _answer(
    function: Callable[..., R], name: str, arguments: tuple[Any, ...], threads: int, artifact_root: str
) -> _Answer[R]:
    """Call the function in another process, and bring back what a Hindcast error was."""
    import torch  # seconds: only who computes waits for them

    torch.set_num_threads(threads)
    if artifact_root:  # on another machine the environment is another
        os.environ["HINDCAST_ARTIFACT_ROOT"] = artifact_root
    reporter = _Lines()
    try:
        return _Answer(name, (function(reporter, *arguments),), None, tuple(reporter.lines))
    except HindcastError as error:
        return _Answer(name, (), error, tuple(reporter.lines))


def _connect_to_ray(address: str) -> int:
    """Join the cluster, once in a process, and return the number of its CPUs."""
    try:
        import ray
        from ray.util.joblib.ray_backend import RayBackend
    except ImportError as error:
        raise HindcastError(
            "HINDCAST_RAY_ADDRESS is set, and Ray is not installed: pip install 'hindcast[ray]'"
        ) from error

    class StreamingRayBackend(RayBackend):  # type: ignore[misc]
        """Hands results over as they come: joblib's pools of processes can, and do not say so."""

        supports_return_generator = True

    if not ray.is_initialized():
        _require_answer(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except Exception as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise HindcastError(f"the Ray cluster at {address} cannot be used: {first}") from error
    # It warns that joblib asks for something Ray has its own way for.
    logging.getLogger("ray.util.multiprocessing.pool").setLevel(logging.ERROR)
    register_parallel_backend(RAY, StreamingRayBackend)
    return int(ray.cluster_resources().get("CPU", 0))


def _require_answer(address: str) -> None:
    """Find out at once that nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # auto
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise HindcastError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error
