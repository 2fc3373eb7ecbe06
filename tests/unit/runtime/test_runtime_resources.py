"""Resource plans: the right split by default, a clear refusal of what cannot fit."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.errors import UserError
from evomerge.runtime.early_ray import EarlyRay
from evomerge.runtime.resources import (
    Machine,
    RuntimeSettings,
    free_memory_bytes,
    local_machine,
    plan_resources,
    usable_cores,
    worker_environment,
)

GB = 10**9
LAPTOP = Machine(cores=8, memory_bytes=16 * GB, gpus=0)
GPU_BOX = Machine(cores=32, memory_bytes=200 * GB, gpus=4)
CLUSTER = Machine(cores=24, memory_bytes=200 * GB, gpus=3, nodes=((16.0, 2.0), (8.0, 1.0)), local=False)


@pytest.mark.parametrize(
    ("machine", "settings", "worker_bytes", "useful", "expected"),
    [
        (LAPTOP, {}, GB, None, (8, 1, 0.0, "cpu")),
        (LAPTOP, {}, 5 * GB, None, (3, 2, 0.0, "cpu")),
        (LAPTOP, {}, 50 * GB, None, (1, 8, 0.0, "cpu")),
        (LAPTOP, {}, GB, 4, (4, 2, 0.0, "cpu")),
        (LAPTOP, {"workers": 2}, GB, 4, (2, 4, 0.0, "cpu")),
        (LAPTOP, {"threads": 4}, GB, None, (2, 4, 0.0, "cpu")),
        (LAPTOP, {"workers": 3, "threads": 1}, GB, None, (3, 1, 0.0, "cpu")),
        (LAPTOP, {"executor": "inline"}, GB, None, (1, 8, 0.0, "cpu")),
        (GPU_BOX, {}, GB, None, (4, 8, 1.0, "cuda")),
        (GPU_BOX, {}, GB, 3, (3, 10, 1.0, "cuda")),
        (GPU_BOX, {"gpus_per_worker": 0.25}, GB, None, (16, 2, 0.25, "cuda")),
        (GPU_BOX, {"gpus_per_worker": 2}, GB, None, (2, 16, 2.0, "cuda")),
        (GPU_BOX, {"device": "cpu", "workers": 4}, GB, None, (4, 8, 0.0, "cpu")),
        (GPU_BOX, {"gpus_per_worker": 0, "workers": 4}, GB, None, (4, 8, 0.0, "cpu")),
        (GPU_BOX, {"executor": "inline"}, GB, None, (1, 32, 1.0, "cuda")),
        (CLUSTER, {}, GB, None, (3, 8, 1.0, "cuda")),
        (CLUSTER, {"device": "cpu", "workers": 5}, GB, None, (5, 4, 0.0, "cpu")),
    ],
)
def test_plans(
    machine: Machine, settings: dict[str, Any], worker_bytes: int, useful: int | None, expected: Any
) -> None:
    plan = plan_resources(RuntimeSettings(**settings), machine, worker_bytes, useful)
    assert (plan.workers, plan.threads, plan.gpus_per_worker, plan.device) == expected
    assert str(plan.workers) in plan.describe()


@pytest.mark.parametrize(
    ("machine", "settings", "words"),
    [
        (LAPTOP, {"workers": 40}, r"workers: 40 do not fit in memory: one worker takes about 1.0 GB, 16.0 GB are free"),
        (LAPTOP, {"device": "cuda"}, "device: cuda needs a GPU, and none was found"),
        (LAPTOP, {"gpus_per_worker": 1}, "gpus_per_worker: 1 needs a GPU, and none was found"),
        (LAPTOP, {"executor": "inline", "workers": 2}, "workers: 2 needs runtime.executor: ray"),
        (LAPTOP, {"executor": "inline", "address": "10.0.0.1:6379"}, "address needs runtime.executor: ray"),
        (GPU_BOX, {"workers": 5}, "4 GPUs hold 4"),
        (GPU_BOX, {"gpus_per_worker": 1.5}, "whole number, or a fraction"),
        (GPU_BOX, {"gpus_per_worker": 8}, "fits on no node"),
        (GPU_BOX, {"device": "cpu", "gpus_per_worker": 1}, "runtime.device is cpu"),
        (GPU_BOX, {"device": "cuda", "gpus_per_worker": 0}, "gpus_per_worker above 0"),
        (CLUSTER, {"gpus_per_worker": 2, "workers": 2}, "3 GPUs hold 1"),
        (CLUSTER, {"device": "cpu", "workers": 3, "threads": 12}, "24 CPUs hold 1"),
    ],
)
def test_what_cannot_fit_is_refused(machine: Machine, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_resources(RuntimeSettings(**settings), machine, GB)


def test_fewer_workers_than_cores_for_lack_of_memory_is_said() -> None:
    assert "memory allows 3 of 8 workers" in plan_resources(RuntimeSettings(), LAPTOP, 5 * GB).notes[0]
    assert "memory is tight" in plan_resources(RuntimeSettings(), LAPTOP, 50 * GB).notes[-1]
    shared = plan_resources(RuntimeSettings(workers=6, threads=2), LAPTOP, GB)
    assert shared.notes == ("6 workers x 2 threads share 8 cores",)


def test_prepared_state_of_all_workers_fits_together() -> None:
    assert plan_resources(RuntimeSettings(), LAPTOP, GB).state_memory_bytes == GB
    assert plan_resources(RuntimeSettings(state_memory_bytes=5), LAPTOP, GB).state_memory_bytes == 5
    assert plan_resources(RuntimeSettings(), GPU_BOX, GB).state_memory_bytes is None


def test_environment_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("EVOMERGE_CACHE", "/somewhere")
    environment = worker_environment(plan_resources(RuntimeSettings(workers=4), LAPTOP, GB))
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["EVOMERGE_CACHE"] == "/somewhere"
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(plan_resources(RuntimeSettings(), GPU_BOX, GB))


def test_this_machine() -> None:
    machine = local_machine()
    assert machine.cores == usable_cores() >= 1
    assert machine.local
    assert free_memory_bytes() > 10**8


def test_nothing_is_begun_early_for_an_inline_run() -> None:
    early = EarlyRay(RuntimeSettings(executor="inline"))
    assert early.take() is None
    early.close()
