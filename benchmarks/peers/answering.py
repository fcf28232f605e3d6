"""Answer orders in lines of JSON; what the worker scripts of the peers share. Runs in the peers' environment.

An order comes as a line on stdin, its answer goes as a line to what was stdout when the worker started: the
libraries print as they please, and what they print goes to stderr.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Any


def answer_orders(work: Callable[[dict[str, Any]], dict[str, Any]], packages: tuple[str, ...]) -> None:
    """Answer until stdin ends; the order `{"versions": true}` is answered with those of the packages."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = {name: version(name) for name in packages} if "versions" in order else work(order)
        except Exception as error:  # noqa: BLE001  (told to the one who asked, who decides)
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
