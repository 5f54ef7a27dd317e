"""Python's search for cyclic garbage pauses while a server starts; in processes of their own, as it is global."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


def test_a_resumed_collector_searches_what_is_made_later_and_nothing_older() -> None:
    assert run("""
import gc, weakref
from yolact_ops.commands.collector import collector_paused, resume_collector

class Cycle:
    def __init__(self):
        self.itself = self

with collector_paused():
    print(gc.isenabled())
    older = weakref.ref(Cycle())
    resume_collector()
    print(gc.isenabled())
    later = weakref.ref(Cycle())
    gc.collect()
    print(older() is None, later() is None)
""") == ["False", "True", "False", "True"]


def test_the_collector_works_after_a_start_that_failed_and_nothing_is_kept_from_it() -> None:
    assert run("""
import gc
from yolact_ops.commands.collector import collector_paused, resume_collector

try:
    with collector_paused():
        raise ValueError
except ValueError:
    resume_collector()
print(gc.isenabled(), gc.get_freeze_count())
""") == ["True", "0"]


@pytest.mark.parametrize("source", ["models:/yolact@champion", "model"])
def test_a_server_resumes_the_collector_whether_the_model_loads_or_fails(source: str) -> None:
    """A registry without a champion is waited for, with the collector at work."""
    assert run(f"""
import asyncio, gc
from serving.following import Following
from serving.metrics import Metrics
from yolact.errors import YolactError
from yolact_ops.commands.collector import collector_paused

class Source:
    follows = {source != "model"}
    def offered(self):
        print(gc.isenabled())
        raise YolactError("nothing to serve")

async def main():
    following = Following(Source(), 60, Metrics(), lambda error: None)
    task = asyncio.create_task(following.run())
    await asyncio.sleep(0)
    while following.source_error is None or not gc.isenabled():
        await asyncio.sleep(0.01)
    print(gc.isenabled(), gc.get_freeze_count() > 0)
    task.cancel()

with collector_paused():
    asyncio.run(main())
""") == ["False", "True", "True"]
