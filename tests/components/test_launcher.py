"""torchrun as the launcher of several processes, with small programs in place of the training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHER = """
import logging, os, sys
from components.train.launcher import launch
logging.basicConfig(format="%(message)s")
print([launch(2, 1, ["program", case]) for case in sys.argv[1:]], os.listdir(os.environ["TMPDIR"]))
"""
PROGRAM = """
import os, signal, sys, time
rank, case = os.environ["RANK"], sys.argv[1]
assert os.environ["WORLD_SIZE"] == "2" and os.environ["TORCHELASTIC_MAX_RESTARTS"] == "0"

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)

ENDS = {
    "error": (-signal.SIGKILL, 1),      # the user's error is the reason
    "server": (70, 69),                 # the server that is unavailable, not the crash
    "server stopped": (75, 69),
    "error and server": (69, 1),        # another try would meet the user's error again
}

def end(code):
    os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)

if case == "good":
    end(0)
elif case == "killed":          # the other one is stopped
    end(-signal.SIGSEGV) if rank == "1" else time.sleep(600)
elif case in ENDS:              # both end, and rank 0 is seen first
    if rank == "0":
        wait_for(case)
        end(ENDS[case][0])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(case, "w").close()
    end(ENDS[case][1])
elif case == "stopped":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    end(75) if rank == "1" else time.sleep(600)
elif case == "peer":            # the one that has lost the other sees it first
    from components.train.launcher import reason_first
    from yolact.distributed import PeerError
    if rank == "0":
        open("lost", "w").close()
        with reason_first(0):
            raise PeerError("the other one is gone")
    wait_for("lost")
    time.sleep(1)
    end(1)
"""
CASES = {"good": 0, "killed": 139, "error": 1, "server": 69, "server stopped": 69, "error and server": 1}
CASES |= {"stopped": 75, "peer": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "temporary").mkdir()
    return tmp_path


def test_the_process_that_is_the_reason_gives_the_exit_code(folder: Path, repository: Path) -> None:
    """After the end of all, and without folders of logs."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *CASES],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{repository}:{folder}", "TMPDIR": str(folder / "temporary")},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.stdout == f"{list(CASES.values())} []\n", done.stderr
    assert "the process of rank 1 ended by SIGSEGV" in done.stderr
    assert "ended by SIGTERM" not in done.stderr
