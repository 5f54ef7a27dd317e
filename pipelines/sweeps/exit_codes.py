"""Exit codes of a sweep's pods: which ends would come again, and which may not."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from yolact.errors import EX_SOFTWARE

FINAL = (1, 3, 4)
"""Exit codes of an error of the user, of a refusal by the gate, and of a champion that was not served."""


@contextmanager
def crash_exit_code() -> Iterator[None]:
    """Leave exit code 1, Python's own after an unexpected exception, to errors of the user.

    Raises:
        SystemExit: with `EX_SOFTWARE` after an unexpected exception, which is printed.
    """
    try:
        yield
    except Exception:
        traceback.print_exc()
        raise SystemExit(EX_SOFTWARE) from None
