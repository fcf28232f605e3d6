"""Keep the garbage collector away from what stays: a full collection walks every object there is.

After the imports these are about a million, and walking them stops the process for tens of milliseconds, in the
middle of somebody's request. What is alive once a model answers stays alive, and need not be walked again.
"""

import gc

YOUNG_OBJECTS = 20_000
"""New objects that make the collector look at the youngest; at 700, Python's own number, it looks several times at
what every request in flight holds, and finds nothing: what a request leaves behind goes by itself."""


def set_aside_what_stays() -> None:
    """Collect once, and leave everything that is alive out of every later collection."""
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    gc.collect()
    gc.freeze()
