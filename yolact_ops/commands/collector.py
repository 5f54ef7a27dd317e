"""Start a long-lived process without Python's search for cyclic garbage.

Importing PyTorch and MLflow makes hundreds of thousands of objects that stay; the collector walks through all of them
again and again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Search for no cyclic garbage until `resume_collector`, or the end of the block."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def resume_collector() -> None:
    """End the pause, if there is one. Objects that exist now are never searched, so that no later search takes long."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
