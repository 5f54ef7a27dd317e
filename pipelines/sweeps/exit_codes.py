"""Exit codes of a sweep's pods: which ends would come again, and which may not."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from yolact.engine.interrupts import EX_SOFTWARE
from yolact_ops.tracking.store import StoreUnavailableError
from yolact_ops.transfer.download import DownloadError

FINAL = (1, 3, 4)
"""Exit codes of an error of the user, of a refusal by the gate, and of a champion that was not served."""

EX_UNAVAILABLE = os.EX_UNAVAILABLE
"""Exit code (sysexits.h) when a server is unavailable."""


@contextmanager
def distinct_exit_codes() -> Iterator[None]:
    """Around `yolact_ops.commands.errors.clear_errors`: leave exit code 1 to errors that would come again.

    Raises:
        SystemExit: with `EX_UNAVAILABLE` in place of 1 if a store or a download failed, and with `EX_SOFTWARE` after an
            unexpected exception, which is printed and for which Python's own code is 1.
    """
    try:
        yield
    except SystemExit as ended:
        if isinstance(ended.__cause__, StoreUnavailableError | DownloadError):
            raise SystemExit(EX_UNAVAILABLE) from ended
        raise
    except Exception:
        traceback.print_exc()
        raise SystemExit(EX_SOFTWARE) from None
