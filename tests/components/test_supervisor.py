"""The supervisor of the training process, with small programs in its place; tests/components/test_train.py has the real
training, killed."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from components.train import supervisor
from components.train.supervisor import CrashedError, supervise
from tests.yolact.engine.test_kills import REPOSITORY, SETTINGS, assert_same_end, finish, start
from yolact.engine.checkpoint_files import newest_checkpoint
from yolact.errors import EX_TEMPFAIL

PR_SET_CHILD_SUBREAPER = 36
"""Of prctl (linux/prctl.h)."""

CHILD = """
import os, signal, subprocess, sys, time
from pathlib import Path
from components.train import supervisor
from components.train.supervisor import supervised
from yolact.engine.checkpoint_files import checkpoint_name

starts = len(list(Path().glob("start_*")))      # earlier ones
Path(f"start_{starts}").touch()

def save(step):
    Path(checkpoint_name(step, step, "0" * 16)).touch()

def wait():
    for second in range(600):
        Path(f"later_{second}").touch()     # again and again: an earlier sign of life may arrive after the first
        time.sleep(1)

with supervised() as (work, alive):
    assert work == "the work"
"""

PARENT = """
import logging, sys
from functools import partial
from pathlib import Path
from components.train.supervisor import supervise
from yolact.engine.checkpoint_files import newest_checkpoint
from yolact_ops.commands.errors import clear_errors

logging.basicConfig(level=logging.INFO, format="%(message)s")
print("ready", flush=True)
with clear_errors("train"):
    sys.exit(supervise([sys.executable, "child.py"], "the work", newest_checkpoint=partial(newest_checkpoint, Path()),
                       max_restarts=3, hang_timeout=0))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return tmp_path


def write_child(body: str) -> None:
    """Write the program that the supervisor starts."""
    Path("child.py").write_text(CHILD + textwrap.indent(textwrap.dedent(body), "    "))


def run(body: str, *, max_restarts: int = 3, hang_timeout: float = 0) -> int:
    """Supervise a program in this process."""
    write_child(body)
    return supervise_child(max_restarts=max_restarts, hang_timeout=hang_timeout)


def supervise_child(*, max_restarts: int = 3, hang_timeout: float = 0) -> int:
    """Supervise what `write_child` has written."""
    return supervise(
        [sys.executable, "child.py"],
        "the work",
        newest_checkpoint=partial(newest_checkpoint, Path()),
        max_restarts=max_restarts,
        hang_timeout=hang_timeout,
    )


def starts() -> int:
    return len(list(Path().glob("start_*")))


def test_each_new_checkpoint_allows_the_restarts_again(caplog: pytest.LogCaptureFixture) -> None:
    body = """
        if starts % 2:
            save(starts)
        if starts < 7:
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(body, max_restarts=2) == 0
    assert starts() == 8
    restarts = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert restarts == [
        "starting again from the beginning (restart 1 of 2 without progress)",
        "starting again from the checkpoint of step 1 (restart 1 of 2 without progress)",
        "starting again from the checkpoint of step 1 (restart 2 of 2 without progress)",
        "starting again from the checkpoint of step 3 (restart 1 of 2 without progress)",
        "starting again from the checkpoint of step 3 (restart 2 of 2 without progress)",
        "starting again from the checkpoint of step 5 (restart 1 of 2 without progress)",
        "starting again from the checkpoint of step 5 (restart 2 of 2 without progress)",
    ]


@pytest.mark.parametrize(
    ("crash", "what", "code", "in_the_log"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed (SIGKILL)", 137, ""),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed (SIGSEGV)", 139, "Fatal Python error: Segmentation fault"),
        ("raise KeyError('lost')", "ended with the error above", 70, "KeyError: 'lost'"),
    ],
)
def test_crashes_without_progress_end_the_training_after_the_last_restart(
    crash: str, what: str, code: int, in_the_log: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CrashedError) as ended:
        run(f"save(4)\n{crash}", max_restarts=1)
    assert starts() == 2
    assert str(ended.value) == (
        f"the training process {what}, 2 times without a new checkpoint in between (runtime.max_restarts: 1). The last "
        "checkpoint is of step 4; the same command resumes from there"
    )
    assert ended.value.exit_code == code
    assert in_the_log in capfd.readouterr().err


@pytest.mark.parametrize("code", [0, 1, 75])
def test_an_end_of_its_own_is_final(code: int, caplog: pytest.LogCaptureFixture) -> None:
    assert run(f"sys.exit({code})") == code
    assert starts() == 1
    assert not caplog.records


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that waits less, and whose clock is 1000 s ahead for each file ``later_*``."""

    def clock() -> float:
        return time.monotonic() + 1000 * len(list(Path().glob("later_*")))

    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    monkeypatch.setattr(supervisor, "STOP_PATIENCE", 0.5)
    monkeypatch.setattr(supervisor, "LOOK_EVERY", 0.1)


@pytest.fixture
def first_process() -> Iterator[None]:
    """Orphans become children of this process, as of process 1 in a container (only on Linux)."""
    set_subreaper = partial(getattr(ctypes.CDLL(None), "prctl", lambda *_: None), PR_SET_CHILD_SUBREAPER)
    set_subreaper(1)
    yield
    set_subreaper(0)


@pytest.mark.usefixtures("impatient", "first_process")
def test_a_hang_is_shown_and_ended_with_all_processes_and_started_again(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    body = """
        def wait_for_the_volume():
            wait()
        if starts == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            Path("loader").write_text(str(os.fork() or time.sleep(600)))
            save(2)
            alive()
            wait_for_the_volume()
    """
    assert run(body, hang_timeout=999) == 0
    assert starts() == 2
    assert "in wait_for_the_volume" in capfd.readouterr().err
    assert caplog.messages == [
        "no sign of life for 999 s; the stacks of all threads:",
        "the training process hung: no sign of life for 999 s (runtime.hang_timeout): starting again from the "
        "checkpoint of step 2 (restart 1 of 3 without progress)",
    ]
    assert not psutil.pid_exists(int(Path("loader").read_text()))


def wait_for_end(process: int, seconds: float = 60) -> None:
    """Wait until a process has ended; its parent may not have asked how."""
    end = time.monotonic() + seconds
    while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, f"process {process} goes on"
        time.sleep(0.01)


@pytest.mark.usefixtures("impatient")
def test_a_process_that_stops_by_itself_after_a_hang_is_started_again() -> None:
    """It was only slow, and has written a checkpoint: exit code 75."""
    body = """
        if starts == 0:
            signal.signal(signal.SIGTERM, lambda *_: (save(3), sys.exit(75)))
            wait()
        assert Path(checkpoint_name(3, 3, "0" * 16)).exists()
    """
    assert run(body, hang_timeout=999) == 0
    assert starts() == 2


@pytest.mark.usefixtures("impatient")
def test_slow_steps_are_no_hang() -> None:
    body = """
        supervisor.LOOK_EVERY = 0
        for step in range(3):
            Path(f"later_{step}").touch()
            time.sleep(0.5)     # the parent looks at the clock
            alive()
            time.sleep(0.5)
    """
    assert run(body, hang_timeout=1999) == 0
    assert starts() == 1


@contextmanager
def running_parent() -> Iterator[subprocess.Popen[str]]:
    """A supervisor as a process of its own, of what `write_child` has written."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """A supervisor whose child tells its number and waits."""
    write_child("Path('child').write_text(str(os.getpid()))\nPath('child').rename('begun')\ntime.sleep(600)\n")
    with running_parent() as process:
        yield process


def wait_for(path: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not Path(path).exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_before_the_training_can_act_on_it_is_no_crash(
    parent: subprocess.Popen[str], number: signal.Signals
) -> None:
    wait_for("begun")
    parent.send_signal(number)
    _, log = parent.communicate(timeout=60)
    assert parent.returncode == EX_TEMPFAIL
    assert f"train failed: stopped by {number.name}. The same command resumes from the last checkpoint" in log
    assert starts() == 1


def test_a_request_to_stop_that_comes_at_once_is_not_lost(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    wait_for("start_0")
    parent.terminate()
    parent.communicate(timeout=60)
    assert parent.returncode == EX_TEMPFAIL
    assert starts() == 1


def test_the_training_ends_with_a_killed_supervisor(parent: subprocess.Popen[str]) -> None:
    wait_for("begun")
    parent.kill()
    parent.communicate(timeout=60)  # the child has standard error too
    wait_for_end(int(Path("begun").read_text()))


# Several processes -----------------------------------------------------------------------------------------------

LAUNCHER = """
Path("launcher").write_text(str(os.getpid()))
alive.give_to_children()
ranks = [subprocess.Popen([sys.executable, "rank.py", str(rank)], start_new_session=True) for rank in range(2)]
sys.exit(max(128 - code if code < 0 else code for code in [rank.wait() for rank in ranks]))
"""
"""As torchrun starts processes: each leads a session."""

RANK = """
import fcntl, os, signal, sys, termios, time
from pathlib import Path
from components.train.supervisor import supervised

rank, starts = sys.argv[1], len(list(Path().glob("start_*")))     # the launcher's

def wait():
    while len(list(Path().glob("hangs_?"))) < 2:
        time.sleep(0.01)
    for second in range(600):
        Path(f"later_{second}").touch()
        time.sleep(1)

with supervised() as (work, alive):
    assert work == "the work"
    signal.signal(signal.SIGTERM, lambda *_: (Path(f"stopped_{rank}").touch(), sys.exit(75)))
    alive()
    while int.from_bytes(fcntl.ioctl(alive._link, termios.TIOCOUTQ, bytes(4)), sys.byteorder):  # not read yet
        time.sleep(0.01)
    Path(f"number_{rank}").write_text(str(os.getpid()))
    Path(f"number_{rank}").rename(f"rank_{rank}")
    BODY
"""


def write_ranks(body: str) -> None:
    """Write a launcher of two processes, and what both do."""
    write_child(LAUNCHER)
    Path("rank.py").write_text(RANK.replace("BODY", textwrap.indent(textwrap.dedent(body), "    ").strip()))


@pytest.fixture
def launched() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A supervisor as a process of its own, and the two processes that its child has launched, which wait."""
    write_ranks("time.sleep(600)")
    with running_parent() as process:
        for rank in range(2):
            wait_for(f"rank_{rank}")
        yield process, [int(Path(f"rank_{rank}").read_text()) for rank in range(2)]


def test_a_request_to_stop_reaches_the_launched_processes_not_the_launcher(
    launched: tuple[subprocess.Popen[str], list[int]],
) -> None:
    """A launcher that gets it gives them little time."""
    parent, ranks = launched
    parent.terminate()
    parent.communicate(timeout=60)
    assert parent.returncode == EX_TEMPFAIL
    assert Path("stopped_0").exists()
    assert Path("stopped_1").exists()
    assert starts() == 1
    for process in ranks:
        wait_for_end(process)


def test_launched_processes_end_with_a_killed_supervisor(launched: tuple[subprocess.Popen[str], list[int]]) -> None:
    parent, ranks = launched
    parent.kill()
    parent.communicate(timeout=60)
    for process in (*ranks, int(Path("launcher").read_text())):
        wait_for_end(process)


def test_launched_processes_end_with_a_killed_launcher_and_all_start_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = """
        if starts == 1:
            if rank == "1":
                while not Path("rank_0").exists():
                    time.sleep(0.01)
                os.kill(int(Path("launcher").read_text()), signal.SIGKILL)
            time.sleep(600)
    """
    write_ranks(body)
    assert supervise_child() == 0
    assert starts() == 2
    assert "was killed (SIGKILL" in caplog.text


def test_a_launcher_reports_a_signal_as_a_shell_does(caplog: pytest.LogCaptureFixture) -> None:
    write_ranks("if starts == 1 and rank == '0': os.kill(os.getpid(), signal.SIGSEGV)")
    assert supervise_child() == 0
    assert starts() == 2
    assert "was killed (SIGSEGV): starting again from the beginning" in caplog.text


@pytest.mark.usefixtures("impatient", "first_process")
def test_a_hang_shows_the_stacks_of_the_launched_processes(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    body = """
        def wait_for_the_others():
            Path(f"loader_{rank}").rename(f"hangs_{rank}")
            wait()
        if starts == 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            Path(f"loader_{rank}").write_text(str(os.fork() or time.sleep(600)))
            wait_for_the_others()
    """
    write_ranks(body)
    assert supervise_child(hang_timeout=999) == 0
    assert starts() == 2
    assert capfd.readouterr().err.count("in wait_for_the_others") == 2
    assert "the training process hung: no sign of life for 999 s" in caplog.text
    for rank in range(2):
        assert not psutil.pid_exists(int(Path(f"hangs_{rank}").read_text()))


# Lack of memory --------------------------------------------------------------------------------------------------


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group (version 1) with 200 MiB of memory."""
    own = [line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line]
    if not own:
        pytest.skip("no control groups of version 1 for memory")
    group = Path("/sys/fs/cgroup/memory") / own[0].strip("/") / f"supervisor-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    (group / "memory.limit_in_bytes").write_text(str(200 * 2**20))
    yield group
    for _ in range(100):
        try:
            group.rmdir()
            return
        except OSError:  # the kernel takes a moment
            time.sleep(0.05)


def test_a_training_that_the_kernel_kills_for_lack_of_memory_is_started_again_with_the_reason(
    memory_group: Path,
) -> None:
    """Version 1 kills one process, the largest: the supervisor survives."""
    write_child("if starts == 0:\n    save(6)\n    rest = b'x' * 400 * 2**20\n")
    enter = f"import os, pathlib; pathlib.Path({str(memory_group / 'cgroup.procs')!r}).write_text(str(os.getpid()))\n"
    done = subprocess.run([sys.executable, "-c", enter + PARENT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (
        "the training process was killed (SIGKILL, by the kernel for lack of memory (limit 0.20 GiB); more memory, or "
        "a smaller train.batch_size, helps): starting again from the checkpoint of step 6 (restart 1 of 3 without "
        "progress)"
    ) in done.stderr
    assert starts() == 2


# The real training -----------------------------------------------------------------------------------------------

HANGING = """
import json, sys, time
from pathlib import Path
import torch
from components.train.supervisor import supervised
from tests.yolact.engine import runs
from yolact.distributed import World
from yolact.engine.trainer import Trainer

class Alive(runs.SilentListener):
    after = 0       # calls since the checkpoint of step 2

    def on_alive(self):
        alive()
        self.after += any(Path("models/checkpoints").glob("*-step_00000002-*"))
        if self.may_hang and self.after == 2:   # step 3 is lost
            for second in range(600):           # an earlier sign of life may arrive after the first
                Path(f"later_{second}").touch()
                time.sleep(1)

torch.set_num_threads(1)
Alive.may_hang = not Path("models").exists()
runs.SilentListener = Alive
with supervised() as (work, alive):
    trainer = runs.train(json.loads(work), World())
    outcome = {"weights": trainer.model.state_dict(), "rows": trainer.validate.rows}
    torch.save(outcome | {"history": trainer.history}, "done.pt")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_training_that_hangs_ends_as_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    straight, quick = tmp_path / "straight", {"epochs": 2, "checkpoint_every_steps": 2}
    finish(start(straight, **quick))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = supervise(
        [sys.executable, "-c", HANGING],
        json.dumps(SETTINGS | quick),
        newest_checkpoint=partial(newest_checkpoint, Path("models/checkpoints")),
        max_restarts=1,
        hang_timeout=999,
    )
    assert code == 0
    assert "(runtime.hang_timeout): starting again from the checkpoint of step 2" in caplog.text
    assert_same_end(tmp_path, straight)
