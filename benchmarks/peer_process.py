"""A peer library at work in its own environment: a process that is asked in lines of JSON.

The peers want other versions of other packages than the product, so they are never imported here. A worker
(`benchmarks/peers/*.py`) imports its library once and then answers orders one by one, which lets runs of the
systems alternate without paying for the import each time. It measures its own seconds.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parent.parent
DEFAULT_PYTHON = ROOT / ".venv-peers" / "bin" / "python"

HOW_TO_MAKE = (
    "the peers' environment is missing: no {python}\n"
    "  make it with `make bench-peers` (or name another with --peers-python);\n"
    "  without it only our own rows are measured"
)


class PeerError(Exception):
    """A peer's worker could not do what it was asked."""


def find_peers_python(given: Path | None) -> Path | None:
    """Return the peers' interpreter, or None after saying on stderr how to get one."""
    python = given or DEFAULT_PYTHON
    if python.exists():
        return python
    print(HOW_TO_MAKE.format(python=given or DEFAULT_PYTHON.relative_to(ROOT)), file=sys.stderr)
    return None


class Peer:
    """A running worker; use it in a `with`."""

    def __init__(self, python: Path, worker: str, threads: int) -> None:
        """Start `benchmarks/peers/WORKER.py`; it may take a while to import, and is waited for when asked."""
        self.worker = worker
        # The libraries log as they please; what they say is kept for the case that something goes wrong.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed on exit)
        self._process = subprocess.Popen(  # noqa: S603  (our own script, with the interpreter the user named)
            [str(python), "-W", "ignore", str(ROOT / "benchmarks" / "peers" / f"{worker}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, **order: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON)
        """Send an order and return the answer.

        Raises:
            PeerError: the worker ended or refused; the message holds its last words.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise PeerError(f"{self.worker} was not started with pipes")
        try:
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise PeerError(self._last_words()) from None
        line = stdout.readline()
        if not line:
            raise PeerError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.worker}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        return f"{self.worker} ended with status {status}:\n{self._log.read()[-2000:]}"
