"""Stop signals: first a wish, then an interruption; a stopped Ray run leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from evomerge.runtime.signals import StopRequest

CONTRACTS = str(Path(__file__).parents[2] / "contracts")

STOPPED_RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from plain_worker import HANG, PlainWorker
from evomerge.recipes.recipe import Recipe, Source
from evomerge.runtime.early_ray import EarlyRay
from evomerge.runtime.executor import Job
from evomerge.runtime.resources import ResourcePlan, RuntimeSettings
from evomerge.runtime.signals import StopRequest
early = EarlyRay(RuntimeSettings(workers=1))
from evomerge.runtime.ray_executor import RayExecutor
plan = ResourcePlan("ray", 1, 1, 0.0, "cpu")
executor = RayExecutor(early.take(), PlainWorker, plan, import_paths=sys.argv[1:])
with StopRequest() as stop:
    executor.submit(Job("c0", Recipe(Source("nowhere")), "search", 1))
    while not executor.wait(1.0): pass
    executor.submit(Job("hang", Recipe(Source("nowhere")), "search", HANG))
    executor.wait(0.1)
    print("working", flush=True)
    while not stop.stop_requested: assert executor.wait(1.0) == []
    print("stopping on", stop.signal_name, flush=True)
    executor.close()
print("closed", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.stop_requested
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop.stop_requested
        assert stop.signal_name == number.name
        with pytest.raises(KeyboardInterrupt):
            _send(number)
    assert signal.getsignal(number) is before


def test_inline_runs_are_interrupted_at_once() -> None:
    with StopRequest(interrupt_at_once=True) as stop:
        with pytest.raises(KeyboardInterrupt):
            _send(signal.SIGINT)
        assert stop.stop_requested


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with StopRequest() as stop:
            seen.append((stop.stop_requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_stopped_ray_run_ends_in_ten_seconds_and_leaves_no_process() -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", STOPPED_RUN, CONTRACTS], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "working\n"
    family = psutil.Process(run.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in family)
    # As Ctrl-C does: to every process of the group.
    os.killpg(run.pid, signal.SIGINT)
    began = time.monotonic()
    output = run.stdout.read()
    assert run.wait(20) == 0
    assert time.monotonic() - began < 10
    assert output == "stopping on SIGINT\nclosed\n"
    _, alive = psutil.wait_procs(family, timeout=2)
    assert not alive


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)
