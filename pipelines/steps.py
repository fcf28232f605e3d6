"""Steps: the named parts of a long work, which whoever runs them may remember."""

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class StepRunner(Protocol):
    """Runs one step by name; the scheduler's remembers the result, the plain one does not."""

    def __call__(self, name: str, function: Callable[..., T], *args: object) -> T:
        """Return what the function returns, now or from an earlier attempt."""


def run_now(name: str, function: Callable[..., T], *args: object) -> T:
    """Run a step here and now."""
    del name
    return function(*args)
