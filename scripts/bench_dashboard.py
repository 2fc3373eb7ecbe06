"""The dashboard on a long run: time and size of its answers, and time of the projection that feeds it.

python scripts/bench_dashboard.py [--trials 1000] [--parameters 64] [--objectives 1 2 3] [--storage journal sqlite]
                                  [--repeats 9]

A synthetic event log, written and read by the code of a real run, is projected trial by trial as a live run does; then
the dashboard is started on a free port and asked over HTTP what its page asks. Wall seconds on this machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evomerge.store.dashboard import serve_dashboard
from evomerge.store.events import Asked, Evaluated, Event, Failed, RunStarted
from evomerge.store.optuna_study import StudyProjection
from evomerge.store.run_dir import RunDir
from evomerge.store.run_state import RunState, read_state
from evomerge.terms import FailureKind, Gene, Objective, Seconds


def make_events(num_trials: int, num_genes: int, num_objectives: int) -> list[Event]:
    """A search that gets better, with failures, constraints, parents and a score of each task."""
    rng = np.random.default_rng(0)
    genes = tuple(Gene(f"layer {i // 4}.expert_{i % 4}.coefficient", high=1.5) for i in range(num_genes))
    objectives = tuple(Objective(f"task_{i}") for i in range(num_objectives))
    events: list[Event] = [
        RunStarted("bench", "0", "f", 1.7e9, {"run": 0}, objectives, genes=genes, constraints=("task_0 >= 0.3",))
    ]
    for index in range(num_trials):
        genotype = tuple(float(x) for x in 1.5 * rng.random(num_genes))
        started = 1.7e9 + 3 * index
        events.append(Asked(index, index // 20, genotype, f"{index:016x}", (index // 2, index // 3)))
        if index % 50 == 7:
            kind = FailureKind.TIMEOUT
            events.append(Failed(f"c{index}", index, "search", kind, "no answer in 30 s", 0, started, started + 30))
            continue
        direction = np.abs(rng.standard_normal(num_objectives))
        scores = direction / np.linalg.norm(direction) * (0.5 + 0.5 * rng.random()) * (0.6 + 0.4 * index / num_trials)
        fitness = tuple(round(float(value) * 200) / 200 for value in scores)
        metrics = {f"task_{i}/exact_match,last_number": value for i, value in enumerate(fitness)}
        seconds = Seconds(0.2, 2.5, 0.1, 0.2)
        times = (index % 4, started, started + 12.5)
        missed = (0.3 - fitness[0],)
        events.append(
            Evaluated(f"c{index}", index, "search", fitness, metrics, seconds, None, *times, constraints=missed)
        )
    return events


def project(place: str | Path, state: RunState) -> list[float]:
    """Milliseconds of each trial's projection, in order."""
    assert state.started is not None
    study = StudyProjection(place, state.started)
    milliseconds = []
    for record in state.candidates:
        outcome = state.outcomes[f"c{record.id}"]
        began = time.perf_counter()
        study.add(outcome, record.asked)
        milliseconds.append(1000 * (time.perf_counter() - began))
    study.close()
    return milliseconds


def start(run_dir: RunDir, storage: str | None) -> tuple[http.client.HTTPConnection, str]:
    """A connection to a served dashboard, and the path of its study."""
    listening = threading.Event()
    urls: list[str] = []

    def ready(url: str) -> None:
        urls.append(url)
        listening.set()

    threading.Thread(target=serve_dashboard, args=(run_dir, 0, storage, ready), daemon=True).start()
    if not listening.wait(600):
        raise SystemExit("the dashboard does not start")
    _, _, host, *_, study = urls[0].split("/")
    return http.client.HTTPConnection(host, timeout=120), f"/api/studies/{study}"


def answer(connection: http.client.HTTPConnection, path: str) -> tuple[float, bytes]:
    """Milliseconds until the whole answer is here, and the answer."""
    began = time.perf_counter()
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {body[:200]!r}")
    return 1000 * (time.perf_counter() - began), body


def measure(num_objectives: int, storage: str, options: argparse.Namespace) -> str:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = RunDir.create(Path(folder) / "run")
        with run_dir.event_log() as log:
            log.append(*make_events(options.trials, options.parameters, num_objectives))
            state = read_state(log.read())
        url = f"sqlite:///{folder}/study.db" if storage == "sqlite" else None
        added = project(url or run_dir.study_path, state)
        began = time.perf_counter()
        connection, path = start(run_dir, url)
        up = time.perf_counter() - began
        first, body = answer(connection, path)
        again = statistics.median(answer(connection, path)[0] for _ in range(options.repeats))
        after = statistics.median(
            answer(connection, f"{path}?after={options.trials}")[0] for _ in range(options.repeats)
        )
        assert len(json.loads(body)["trials"]) == options.trials
        best = len(json.loads(body)["best_trials"])
        cells = [f"{num_objectives} ({best} best)", storage, f"{statistics.median(added[:100]):.1f}"]
        cells += [f"{statistics.median(added[-100:]):.1f}", f"{up:.1f}", f"{first:.0f}", f"{again:.0f}"]
        return "| " + " | ".join([*cells, f"{after:.0f}", f"{len(body) / 1e6:.1f}"]) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--parameters", type=int, default=64)
    parser.add_argument("--objectives", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--storage", nargs="+", default=["journal", "sqlite"], choices=["journal", "sqlite"])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args(arguments)
    print(f"{options.trials} trials, {options.parameters} parameters each\n")
    print("| objectives | storage | add ms, first | add ms, last | up s | first ms | median ms | poll ms | MB |")
    print("|---" * 9 + "|")
    for storage in options.storage:
        for num_objectives in options.objectives:
            print(measure(num_objectives, storage, options), flush=True)


if __name__ == "__main__":
    main()
