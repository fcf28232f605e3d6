"""Several processes on one address: started, watched, started again, and told when to leave.

Each worker listens on a socket of its own, and the kernel spreads connections over them (SO_REUSEPORT): if all
shared one, a burst of connections would go to whoever wakes first. Where a worker ends, its socket ends with it,
and connections go to the others until its successor listens.
"""

import asyncio
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from service.settings import ServiceSettings

log = logging.getLogger("hindcast.workers")

NUMBER, FOLDER = "HINDCAST_WORKER_NUMBER", "HINDCAST_WORKER_FOLDER"
"""What a worker is told in its environment: which one it is, and where it finds the others."""

BAD_SETTINGS = 2
"""Exit code of a process that cannot honour its settings; another one could not either."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between the end of a worker and its successor; twice as long each time."""
HEALTHY = 60.0
"""Seconds after which a worker counts as well, and its next end as the first."""
LOOK = 0.1
"""Seconds between two looks at the workers."""
GRACE = 15.0
"""Seconds workers get to end beyond those that requests get."""


@dataclass
class Worker:
    """The place of one worker: the process in it, and how often one ended there of late."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    ends: int = 0
    start_at: float = 0.0

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def note_end(self, now: float) -> float:
        """Take note that the process ended, and return the seconds until its successor starts."""
        self.ends = 1 if now - self.began > HEALTHY else self.ends + 1
        pause = min(SHORTEST_PAUSE * 2.0 ** (self.ends - 1), LONGEST_PAUSE)
        self.process, self.start_at = None, now + pause
        return pause


class Supervisor:
    """Keeps as many workers running as the settings say, until it is told to stop."""

    def __init__(self, settings: ServiceSettings, command: Sequence[str]) -> None:
        self._settings = settings
        self._command = command
        self._workers = [Worker(number) for number in range(settings.workers)]
        self._signal: int | None = None
        self._exit_code = 0

    def run(self) -> int:
        """Run the workers, and return the exit code: 0 when all ended well after they were told to."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        with (
            tempfile.TemporaryDirectory(prefix="hindcast-workers-") as folder,
            bind(self._settings.host, self._settings.port) as reserved,
        ):
            # Bound and not listening: the port stays ours while workers come and go, and no connection waits here.
            port = reserved.getsockname()[1]
            log.info("%d workers running on http://%s:%d", len(self._workers), self._settings.host, port)
            while self._signal is None:
                for worker in self._workers:
                    self._look_after(worker, port, folder)
                time.sleep(LOOK)
            self._stop()
        return self._exit_code

    def _look_after(self, worker: Worker, port: int, folder: str) -> None:
        now = time.monotonic()
        if worker.process is None:
            if now >= worker.start_at:
                self._start(worker, port, folder)
        elif (code := worker.process.poll()) is not None:
            pid, pause = worker.process.pid, worker.note_end(now)
            if code == BAD_SETTINGS:
                self._exit_code, self._signal = code, signal.SIGTERM
                return
            log.error("worker %d (%d) ended with %d; another starts in %g s", worker.number, pid, code, pause)

    def _start(self, worker: Worker, port: int, folder: str) -> None:
        environment = {
            **os.environ,
            NUMBER: str(worker.number),
            FOLDER: folder,
            "HINDCAST_PORT": str(port),
            **_device_of(worker.number, self._settings),
        }
        # Its input ends when this process does, however it ends; a session of its own keeps Ctrl-C to one way.
        worker.process = subprocess.Popen(  # noqa: S603  (our own command)
            [*self._command, "--port", str(port)], env=environment, stdin=subprocess.PIPE, start_new_session=True
        )
        worker.began = time.monotonic()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signal = number
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        for worker in self._workers:
            if worker.process is not None:
                with suppress(ProcessLookupError):
                    worker.process.send_signal(number)

    def _stop(self) -> None:
        """Wait for all workers; those that stay too long are killed."""
        if self._exit_code:
            self._pass_on(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.drain_seconds + self._settings.shutdown_seconds + GRACE
        for process in [worker.process for worker in self._workers if worker.process is not None]:
            try:
                code = process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker %d does not end; it is killed", process.pid)
                process.kill()
                code = process.wait()
            # One that was still starting had nobody to ask it, and ends by the signal itself.
            if code not in (0, -(self._signal or 0)):
                self._exit_code = self._exit_code or 1


def supervise(settings: ServiceSettings, arguments: Sequence[str]) -> int:
    """Run several workers with the same settings, and return the exit code.

    Raises:
        ValueError: there are not as many GPUs.
        OSError: the address cannot be listened on.
    """
    _require_devices(settings)
    return Supervisor(settings, [sys.executable, "-m", "service", *arguments]).run()


def _require_devices(settings: ServiceSettings) -> None:
    if not _uses_gpu(settings):
        return
    found = torch.cuda.device_count()
    if settings.workers > found:
        raise ValueError(
            f"{settings.workers} workers share {found} GPU{'s' * (found > 1)}: one worker keeps a GPU "
            "busy, and more take turns on it and its memory; start one for each, or use device cpu"
        )


def _uses_gpu(settings: ServiceSettings) -> bool:
    return settings.device != "cpu" and torch.cuda.is_available()


def _device_of(number: int, settings: ServiceSettings) -> dict[str, str]:
    """Return what makes a worker see the GPU of its number, and no other."""
    if not _uses_gpu(settings):
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": devices[number]}


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, not listening yet, and shares its address with those of the other workers."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def is_worker() -> bool:
    """Return whether a supervisor started this process."""
    return NUMBER in os.environ


def leave_with_supervisor(leave: Callable[[], None]) -> None:
    """Call `leave` when the supervisor is gone, however it went; in the running event loop."""
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.fileno()

    def read() -> None:
        if not os.read(stdin, 4096):
            loop.remove_reader(stdin)
            leave()

    loop.add_reader(stdin, read)


class Siblings:
    """The workers on one address, as one of them sees them: what each measured, told in a private folder."""

    PATIENCE = 2.0
    """Seconds another worker may take; one that is starting or gone is left out."""

    def __init__(self, expose: Callable[[], bytes]) -> None:
        self._expose = expose
        self._server: asyncio.Server | None = None
        self._number = os.environ.get(NUMBER)
        self._folder = Path(os.environ.get(FOLDER, ""))

    async def start(self) -> None:
        """Tell the other workers what is measured here, whenever they ask."""
        if self._number is None:
            return
        path = self._path(self._number)
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._tell, path)

    async def stop(self) -> None:
        """Tell nobody any longer."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def expose(self) -> bytes:
        """Return what all workers measured, each sample labelled with its worker; without others, as it is."""
        if self._number is None:
            return self._expose()
        others = sorted(path for path in self._folder.glob("*.sock") if path != self._path(self._number))
        told = await asyncio.gather(*(self._ask(path) for path in others))
        pages = {path.stem: page for path, page in zip(others, told, strict=True) if page}
        return merge_pages({**pages, self._number: self._expose()})

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        writer.write(self._expose())
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _ask(self, path: Path) -> bytes:
        try:
            async with asyncio.timeout(self.PATIENCE):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    return await reader.read(-1)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return b""

    def _path(self, number: str) -> Path:
        return self._folder / f"{number}.sock"


_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+(?: \S+)?)$")


def merge_pages(pages: dict[str, bytes]) -> bytes:
    """Put the metrics of several workers on one page: each family once, its samples labelled with their worker."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, page in sorted(pages.items()):
        for family, line in _lines(page):
            known = heads.setdefault(family, [])
            if line.startswith("#"):
                if line not in known:
                    known.append(line)
            else:
                samples.setdefault(family, []).append(_label(line, worker))
    lines = [line for family, head in heads.items() for line in [*head, *samples.get(family, [])]]
    return ("\n".join(lines) + "\n").encode()


def _lines(page: bytes) -> Iterator[tuple[str, str]]:
    """Yield every line with the family it belongs to."""
    family = ""
    for line in page.decode().splitlines():
        if line.startswith("# "):
            family = line.split(" ", 3)[2]
        if line:
            yield family, line


def _label(sample: str, worker: str) -> str:
    found = _SAMPLE.match(sample)
    if found is None:
        return sample
    name, labels, value = found.groups()
    return f'{name}{{{labels + "," if labels else ""}worker="{worker}"}} {value}'
