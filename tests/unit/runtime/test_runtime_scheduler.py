"""The scheduler in simulated time: nothing lost, nothing twice, no worker idle, no endless loops."""

from __future__ import annotations

import random
import time

import pytest
from simulated_pool import FOREVER, SimulatedPool, lost

from evomerge.errors import UserError
from evomerge.recipes.recipe import Recipe, Source
from evomerge.runtime.deadlines import FIRST_SECONDS, FLOOR_SECONDS, Deadlines
from evomerge.runtime.executor import Job, Outcome, WorkersLost
from evomerge.runtime.scheduler import Scheduler
from evomerge.runtime.worker_pool import LogLine, Raised, Ran, Started
from evomerge.terms import Evaluation, FailureKind

RECIPE = Recipe(Source("nowhere"))


def jobs(count: int) -> list[Job]:
    return [Job(f"c{number}", RECIPE, "search", number) for number in range(count)]


def run_all(scheduler: Scheduler, batch: list[Job]) -> list[Outcome]:
    for job in batch:
        scheduler.submit(job)
    outcomes: list[Outcome] = []
    while scheduler.num_pending:
        outcomes += scheduler.wait(1.0)
    assert sorted(outcome.job.key for outcome in outcomes) == sorted(job.key for job in batch)
    return outcomes


@pytest.mark.parametrize("seed", range(10))
def test_random_losses_lose_no_job(seed: int) -> None:
    draw = random.Random(seed)
    pool = SimulatedPool(duration=lambda job: draw.choice([0.1, 1.0, 5.0, FOREVER if draw.random() < 0.2 else 2.0]))
    pool.reply = lambda job: (
        lost(draw.choice(["worker_died", "out_of_memory"]))
        if draw.random() < 0.2
        else Ran(Evaluation(fitness=(1.0,)), time.time(), time.time())
    )
    scheduler = Scheduler(pool, 3, max_attempts=2, deadlines=Deadlines(10.0), clock=pool.clock)
    outcomes = run_all(scheduler, jobs(60))
    assert all(outcome.attempts <= 2 for outcome in outcomes)
    kinds = {outcome.evaluation.failure.kind for outcome in outcomes if outcome.evaluation.failure}
    assert kinds <= {FailureKind.WORKER_DIED, FailureKind.OUT_OF_MEMORY, FailureKind.TIMEOUT}
    assert sum(outcome.evaluation.ok for outcome in outcomes) > 30
    assert len(set(pool.killed)) == len(pool.killed) == pool.launches - 3


def test_sixty_four_workers_are_kept_busy() -> None:
    draw = random.Random(1)
    durations = {job.key: draw.uniform(5.0, 15.0) for job in jobs(1200)}
    pool = SimulatedPool(duration=lambda job: durations[job.key])
    scheduler = Scheduler(pool, 64, clock=pool.clock)
    began = time.perf_counter()
    waiting, done = jobs(1200), 0
    while done < 1100:
        while waiting and scheduler.num_pending < 64:
            scheduler.submit(waiting.pop(0))
        arrived = len(scheduler.wait(1.0))
        done += arrived
        # What a driver does with an outcome: record it, tell the optimizer.
        pool.now += 0.005 * arrived
    assert done * 10.0 / (64 * pool.now) > 0.95
    assert (time.perf_counter() - began) / done < 0.01


def test_a_job_in_its_last_attempt_fails_with_the_reason() -> None:
    pool = SimulatedPool(reply=lambda job: lost("out_of_memory") if job.seed == 3 else _ran())
    outcomes = run_all(Scheduler(pool, 2, max_attempts=3, clock=pool.clock), jobs(5))
    bad = next(outcome for outcome in outcomes if not outcome.evaluation.ok)
    assert bad.evaluation.failure is not None
    assert (bad.job.seed, bad.attempts, bad.evaluation.failure.kind) == (3, 3, FailureKind.OUT_OF_MEMORY)
    assert bad.evaluation.failure.message == "simulated out_of_memory"


def test_a_result_that_came_while_the_driver_was_busy_is_not_late() -> None:
    pool = SimulatedPool(duration=lambda job: 2.0)
    scheduler = Scheduler(pool, 1, deadlines=Deadlines(3.0), clock=pool.clock)
    scheduler.wait(1.0)
    scheduler.submit(jobs(1)[0])
    pool.now += 100
    assert scheduler.wait(0.0)[0].evaluation.ok
    assert pool.killed == []


def test_when_every_job_kills_its_worker_the_run_ends() -> None:
    pool = SimulatedPool(reply=lambda job: lost("worker_died"))
    with pytest.raises(WorkersLost, match="before any job ended"):
        run_all(Scheduler(pool, 2, clock=pool.clock), jobs(100))
    assert pool.launches < 15


def test_starts_that_fail_are_tried_three_times() -> None:
    pool = SimulatedPool(start_reply=lambda index: Raised("no driver"))
    scheduler = Scheduler(pool, 2, clock=pool.clock)
    scheduler.submit(jobs(1)[0])
    with pytest.raises(WorkersLost, match="no driver"):
        scheduler.wait(20.0)
    assert pool.launches == 6
    with pytest.raises(WorkersLost):
        scheduler.wait(1.0)


def test_a_start_that_hangs_is_given_up() -> None:
    pool = SimulatedPool(start_seconds=FOREVER)
    scheduler = Scheduler(pool, 1, clock=pool.clock)
    with pytest.raises(WorkersLost, match="not ready after 1800 s"):
        scheduler.wait(10_000.0)
    assert pool.launches == 3


def test_users_mistakes_and_logs_of_workers_reach_the_driver(caplog: pytest.LogCaptureFixture) -> None:
    line = LogLine("evomerge.runtime.worker", 30, "c1 ran out of memory")
    pool = SimulatedPool(start_reply=lambda index: Raised("no such model", by_user=True, log=(line,)))
    with pytest.raises(UserError, match="no such model"):
        Scheduler(pool, 1, clock=pool.clock).wait(1.0)
    assert "worker 0: c1 ran out of memory" in caplog.text


def test_close_is_final() -> None:
    pool = SimulatedPool()
    scheduler = Scheduler(pool, 2, clock=pool.clock)
    scheduler.submit(jobs(1)[0])
    scheduler.close()
    assert pool.closed
    assert sorted(pool.killed) == [1, 2]
    assert scheduler.num_pending == 0


def test_deadlines_are_learnt_for_each_split() -> None:
    learnt = Deadlines()
    assert learnt.allowed_seconds("search") == FIRST_SECONDS
    for seconds in (1.0, 2.0, 3.0):
        learnt.observe("search", seconds)
    assert learnt.allowed_seconds("search") == FLOOR_SECONDS
    assert learnt.allowed_seconds("held_out") == FIRST_SECONDS
    for seconds in (10.0, 20.0, 30.0):
        learnt.observe("validation", seconds)
    assert learnt.allowed_seconds("validation") == 400.0
    for seconds in (10.0, 1000.0, 10.0):
        learnt.observe("held_out", seconds)
    assert learnt.allowed_seconds("held_out") == 4000.0
    assert Deadlines(7.0).allowed_seconds("search") == 7.0


def _ran() -> Ran:
    return Ran(Evaluation(fitness=(1.0,)), time.time(), time.time())


def test_reports_are_the_latest() -> None:
    pool = SimulatedPool()
    scheduler = Scheduler(pool, 2, clock=pool.clock)
    assert scheduler.reports == ()
    run_all(scheduler, jobs(4))
    assert [report.worker for report in scheduler.reports] == [0, 1]
    assert isinstance(pool.start_reply(0), Started)
