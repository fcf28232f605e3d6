"""Keep the garbage collector away from what stays: a full collection walks every object there is.

After the imports these are about a million, and walking them stops the process for tens of milliseconds, in the
middle of somebody's request. What is alive once a model answers stays alive, and need not be walked again.
"""

import gc


def set_aside_what_stays() -> None:
    """Collect once, and leave everything that is alive out of every later collection."""
    gc.collect()
    gc.freeze()
