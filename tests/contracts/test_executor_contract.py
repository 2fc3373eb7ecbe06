"""Any executor: every job ends in one outcome, in every way a job can end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from plain_worker import (
    BROKEN,
    BROKEN_ONCE,
    ENVIRONMENT,
    HANG,
    HANG_ONCE,
    KILLED,
    KILLED_ONCE,
    OUT_OF_MEMORY,
    RAISE,
    SCRATCH,
    UNPICKLABLE,
    PlainWorker,
)

from evomerge.errors import UserError
from evomerge.recipes.recipe import Recipe, Source
from evomerge.runtime.deadlines import Deadlines
from evomerge.runtime.executor import Executor, Job, Outcome, WorkersLost
from evomerge.runtime.inline_executor import InlineExecutor
from evomerge.runtime.resources import ResourcePlan, RuntimeSettings, plan_resources
from evomerge.terms import Evaluation, FailureKind

DEADLINE = 2.0
ONE = ResourcePlan("ray", 1, 1, 0.0, "cpu")
HERE = str(Path(__file__).parent)


def job(seed: int, key: str = "") -> Job:
    return Job(key or f"c{seed}", Recipe(Source("nowhere")), "search", seed)


def run_all(executor: Executor, jobs: list[Job], seconds: float = 60.0) -> dict[str, Outcome]:
    for item in jobs:
        executor.submit(item)
    outcomes: dict[str, Outcome] = {}
    end = time.monotonic() + seconds
    while executor.num_pending:
        assert time.monotonic() < end, f"{executor.num_pending} jobs never ended"
        for outcome in executor.wait(0.5):
            assert outcome.job.key not in outcomes, "one job, two outcomes"
            outcomes[outcome.job.key] = outcome
    return outcomes


Build = Callable[..., Executor]


@pytest.fixture(scope="session")
def flags(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder where faults that happen once leave their mark."""
    return str(tmp_path_factory.mktemp("flags"))


@pytest.fixture(scope="session")
def build_ray(ray_session: Any, flags: str) -> Iterator[Build]:
    """Builds a Ray executor of plain workers; closes it at the end."""
    from evomerge.runtime.ray_executor import RayExecutor

    built: list[Executor] = []

    def build(plan: ResourcePlan | None = None, deadline: float = DEADLINE, start: str = "") -> Executor:
        # On a borrowed session: closing the executor must leave this Ray alone.
        from evomerge.runtime.ray_executor import RaySession

        environment = {"EVOMERGE_TEST_FLAGS": flags, "EVOMERGE_TEST_START": start}
        chosen = plan or ResourcePlan("ray", 2, 1, 0.0, "cpu")
        built.append(
            RayExecutor(
                RaySession(), PlainWorker, chosen, 2, Deadlines(deadline), environment=environment, import_paths=[HERE]
            )
        )
        return built[-1]

    yield build
    for executor in built:
        executor.close()


@pytest.fixture(scope="module")
def two_workers(build_ray: Build) -> Iterator[Executor]:
    executor = build_ray()
    yield executor
    executor.close()


@pytest.fixture(params=["inline", "ray"])
def executor(request: pytest.FixtureRequest) -> Executor:
    if request.param == "inline":
        return InlineExecutor(PlainWorker)
    shared: Executor = request.getfixturevalue("two_workers")
    return shared


def plain(evaluation: Evaluation) -> tuple[Any, ...]:
    return (evaluation.fitness, dict(evaluation.metrics), evaluation.failure, evaluation.seconds.merge)


def test_every_job_ends_once_with_the_same_evaluation_everywhere(executor: Executor) -> None:
    jobs = [job(seed) for seed in range(40)] + [job(OUT_OF_MEMORY)]
    outcomes = run_all(executor, jobs)
    expected = {item.key: plain(PlainWorker(0).run(item)) for item in jobs}
    assert {key: plain(outcome.evaluation) for key, outcome in outcomes.items()} == expected
    for outcome in outcomes.values():
        assert outcome.attempts == 1
        assert outcome.started <= outcome.finished <= time.time()
        assert outcome.evaluation.seconds.wait >= 0
    assert max(outcome.evaluation.seconds.wait for outcome in outcomes.values()) > 0.05
    assert executor.num_pending == 0
    assert executor.wait(0.0) == []


def test_reports_name_each_worker(executor: Executor) -> None:
    run_all(executor, [job(1)])
    end = time.monotonic() + 20
    while len(executor.reports) < executor.num_workers and time.monotonic() < end:
        executor.wait(0.2)
        run_all(executor, [job(2)])
    assert [report.worker for report in executor.reports] == list(range(executor.num_workers))


@pytest.mark.parametrize(
    ("seed", "kind", "attempts", "words"),
    [
        (RAISE, FailureKind.EXCEPTION, 1, "the task is broken"),
        (UNPICKLABLE, FailureKind.EXCEPTION, 1, "pickle"),
        (HANG, FailureKind.TIMEOUT, 2, "deadline of 2 s"),
        (KILLED, FailureKind.WORKER_DIED, 2, "died"),
    ],
)
def test_a_job_that_always_fails_ends_as_a_failure_and_the_others_go_on(
    two_workers: Executor, seed: int, kind: FailureKind, attempts: int, words: str
) -> None:
    outcomes = run_all(two_workers, [job(1), job(seed, "bad"), *(job(number) for number in range(2, 12))])
    failure = outcomes["bad"].evaluation.failure
    assert failure is not None
    assert (failure.kind, outcomes["bad"].attempts) == (kind, attempts)
    assert words in failure.message
    assert outcomes["bad"].evaluation.fitness == ()
    assert all(outcomes[f"c{number}"].evaluation.fitness == (2.0 * number,) for number in range(1, 12))


@pytest.mark.parametrize("seed", [HANG_ONCE, KILLED_ONCE])
def test_a_job_that_loses_its_worker_once_is_done_again(two_workers: Executor, seed: int) -> None:
    two_workers.submit(job(seed, f"once{seed}"))
    began = time.monotonic()
    assert two_workers.wait(0.1) == []
    assert time.monotonic() - began < 1.1
    outcomes = run_all(two_workers, [job(number) for number in range(6)])
    assert outcomes[f"once{seed}"].evaluation.fitness == (2.0 * seed,)
    assert outcomes[f"once{seed}"].attempts == 2
    assert {outcomes[f"c{number}"].attempts for number in range(6)} == {1}


def test_a_worker_that_calls_itself_broken_is_replaced(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    monkeypatch.setenv("EVOMERGE_TEST_FLAGS", flags)
    name = type(executor).__name__
    outcomes = run_all(executor, [job(BROKEN, f"bad{name}"), job(BROKEN_ONCE, f"broken{name}"), job(1)])
    failure = outcomes[f"bad{name}"].evaluation.failure
    assert failure is not None
    assert (failure.kind, outcomes[f"bad{name}"].attempts) == (FailureKind.WORKER_DIED, 2)
    assert "the engine beside the worker died" in failure.message
    assert outcomes[f"broken{name}"].evaluation.fitness == (2.0 * BROKEN_ONCE,)
    assert outcomes[f"broken{name}"].attempts == 2
    assert outcomes["c1"].attempts == 1


def test_a_worker_killed_from_outside_is_replaced(two_workers: Executor) -> None:
    def live() -> set[int]:
        run_all(two_workers, [job(1)])
        pids = {int(report.memory_plan.split()[1]) for report in two_workers.reports}
        return {pid for pid in pids if psutil.pid_exists(pid)}

    old = _until(live, 2)
    psutil.Process(min(old)).kill()
    outcomes = run_all(two_workers, [job(number) for number in range(8)])
    assert all(outcome.evaluation.ok for outcome in outcomes.values())
    assert len(_until(live, 2) & old) == 1


def _until(live: Callable[[], set[int]], number: int) -> set[int]:
    end = time.monotonic() + 60
    while len(live()) < number and time.monotonic() < end:
        time.sleep(0.1)
    return live()


def test_close_in_the_middle_of_jobs_ends_workers_and_removes_scratch(build_ray: Build) -> None:
    executor = build_ray(ONE, deadline=60.0)
    scratch = run_all(executor, [job(SCRATCH)])[f"c{SCRATCH}"]
    path = Path(next(iter(scratch.evaluation.metrics)))
    assert path.exists()
    workers = [psutil.Process(int(report.memory_plan.split()[1])) for report in executor.reports]
    executor.submit(job(HANG, "one"))
    executor.submit(job(HANG, "queued"))
    executor.wait(0.2)
    began = time.monotonic()
    executor.close()
    executor.close()
    assert time.monotonic() - began < 5
    assert not path.exists()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


def test_a_users_mistake_comes_out_of_wait(build_ray: Build) -> None:
    executor = build_ray(ONE, start="user_error")
    with pytest.raises(UserError, match=r"models\.base: no such directory"):
        run_all(executor, [job(1)])
    executor.close()


def test_workers_that_die_at_start_end_the_run(build_ray: Build) -> None:
    executor = build_ray(ONE, start="dies")
    with pytest.raises(WorkersLost, match="died"):
        run_all(executor, [job(1)])
    executor.close()


def test_one_worker_that_cannot_start_leaves_the_rest_working(build_ray: Build) -> None:
    executor = build_ray(start="raises 0")
    outcomes = run_all(executor, [job(number) for number in range(4)])
    end = time.monotonic() + 20
    while executor.num_workers == 2 and time.monotonic() < end:
        executor.wait(0.2)
    assert (len(outcomes), executor.num_workers) == (4, 1)
    executor.close()


def test_workers_are_packed_on_gpus(ray_session: Any, build_ray: Build) -> None:
    plan = plan_resources(RuntimeSettings(threads=1), ray_session.machine())
    assert (plan.workers, plan.device) == (2, "cuda")
    executor = build_ray(plan)
    while len(executor.reports) < 2:
        executor.wait(0.5)
    outcomes = run_all(executor, [job(ENVIRONMENT, f"e{number}") for number in range(6)])
    assert {next(iter(outcome.evaluation.metrics)) for outcome in outcomes.values()} == {"0/1", "1/1"}
    executor.close()


def test_cpu_workers_see_no_gpu_and_their_share_of_threads(two_workers: Executor) -> None:
    outcome = run_all(two_workers, [job(ENVIRONMENT)])[f"c{ENVIRONMENT}"]
    assert list(outcome.evaluation.metrics) == ["/1"]


@pytest.mark.parametrize(
    "plan", [ResourcePlan("ray", 3, 1, 1.0, "cuda"), ResourcePlan("ray", 3, 2, 0.0, "cpu")], ids=["gpus", "cpus"]
)
def test_what_ray_would_wait_for_forever_is_refused(build_ray: Build, plan: ResourcePlan) -> None:
    with pytest.raises(UserError, match="has room for 2"):
        build_ray(plan)


def test_a_borrowed_ray_survives(ray_session: Any) -> None:
    from evomerge.runtime.ray_executor import RaySession

    RaySession().close()
    assert RaySession.connected()
