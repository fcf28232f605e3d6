"""The one thread that runs networks, and who watches it: revived when it dies, and never left to hang for ever.

A forward pass that hangs cannot be ended from outside, and neither can an event loop that does not turn: the only
way out is to end the process, with an exit code that tells a supervisor to start another.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

log = logging.getLogger("hindcast.inference")

P = ParamSpec("P")
T = TypeVar("T")
Job = tuple["Future[object]", Callable[[], object]]

PATIENCE = 10.0
"""Most seconds to wait at shutdown for what runs: a thread cut off inside torch aborts Python."""

HUNG = 70
"""Exit code of a process that could not go on; a supervisor starts it anew."""


class InferenceThread(Executor):
    """Runs one thing after the other in one thread, in order of arrival, whatever happens to that thread."""

    def __init__(self, prepare: Callable[[], None] = lambda: None) -> None:
        self.restarts = 0
        self.begun = 0
        """How many jobs were begun: while one runs it names it."""
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._running: Future[object] | None = None
        self._closed = False
        self._prepare = prepare
        """Done first by every thread that is started."""
        self._thread = self._start()

    @property
    def is_busy(self) -> bool:
        """Return whether something runs right now."""
        return self._running is not None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run something in the thread, after what waits already."""
        if self._closed:
            raise RuntimeError("the inference thread has ended")
        future: Future[T] = Future()
        self._jobs.put((future, lambda: fn(*args, **kwargs)))  # type: ignore[arg-type]  # a future of something
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more, and end once what waits is done."""
        self._closed = True
        if cancel_futures:
            while not self._jobs.empty():
                self._jobs.get()
        self._jobs.put(None)
        if wait:
            self._thread.join(timeout=PATIENCE)

    def revive(self) -> bool:
        """Start the thread again if it died; whoever waited for what it ran is told, the others go on waiting."""
        if self._closed or self._thread.is_alive():
            return False
        abandoned, self._running = self._running, None
        if abandoned is not None and not abandoned.done():
            abandoned.set_exception(RuntimeError("the inference thread ended in the middle of it"))
        self.restarts += 1
        self._thread = self._start()
        return True

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="inference", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        self._prepare()
        while (job := self._jobs.get()) is not None:
            future, run = job
            if future.set_running_or_notify_cancel():
                self._run(future, run)

    def _run(self, future: "Future[object]", run: Callable[[], object]) -> None:
        self._running, self.begun = future, self.begun + 1
        try:
            result = run()
        except BaseException as error:  # noqa: BLE001  (also SystemExit: whoever waits is told, the thread goes on)
            future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        else:
            future.set_result(result)
        finally:
            if future.done():
                self._running = None


class Watchdog:
    """Looks every while whether the inference thread and the event loop get on, and ends the process if not.

    It counts its own looks instead of reading a clock: a process that was stopped and continued did not hang.
    """

    def __init__(self, inference: InferenceThread, hang_seconds: float, grace_seconds: float) -> None:
        self.trouble: str | None = None
        """Why the process is about to end; it is not ready then."""
        self.end: Callable[[str], None] = end_process
        self._inference = inference
        self._hang_seconds = hang_seconds
        self._grace_seconds = grace_seconds
        self._pause = min(1.0, hang_seconds / 10)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._turned = True
        self._still = 0
        self._held = 0
        self._job = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch from now on."""
        self._stopped.clear()
        self._turned, self._still, self._held = True, 0, 0
        self._thread = threading.Thread(target=self._watch, args=(loop,), name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopped.wait(self._pause):
            if self._inference.revive():
                log.error("the inference thread died and was started again")
            self._look_at_loop(loop)
            self._look_at_thread()
            if self.trouble is not None:
                log.critical("%s; this process ends", self.trouble)
                # As long as it is not ready nobody sends it anything, and what needs no network is answered.
                self._stopped.wait(0.0 if self._held else self._grace_seconds)
                self.end(self.trouble)
                return

    def _look_at_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._held = 0 if self._turned else self._held + 1
        if self._held * self._pause >= self._hang_seconds:
            self.trouble = f"the event loop has been held for {self._hang_seconds:g} seconds"
        elif self._turned:
            self._turned = False
            try:
                loop.call_soon_threadsafe(self._note_turn)
            except RuntimeError:  # the loop is closed: the service ends anyway
                self._turned = True

    def _note_turn(self) -> None:
        self._turned = True

    def _look_at_thread(self) -> None:
        same = self._inference.is_busy and self._inference.begun == self._job
        self._still, self._job = self._still + 1 if same else 0, self._inference.begun
        if self._still * self._pause >= self._hang_seconds:
            self.trouble = f"a forward pass has not come to an end for {self._hang_seconds:g} seconds"


def end_process(reason: str) -> None:
    """End this process at once: a thread that hangs would keep an orderly end waiting for ever."""
    del reason
    logging.shutdown()
    os._exit(HUNG)
