"""Builds zoo models with their parents: skips what is complete, runs independent ones side by side, shows progress."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evomerge.errors import UserError
from evomerge.files import fsync_dir
from evomerge.zoo.catalogue import CATALOGUE, ZooModel, expand, is_built, look_up, read_manifest, zoo_dir

MAX_JOBS = 2
PHASES = {"math-en": 2}
"""Models trained in several runs; the result of each is kept until the model is complete, so a build can go on."""


@dataclass(frozen=True)
class BuildEvent:
    """Progress of one model.

    Attributes:
        model: its name; ``NAME@1`` for the first of several training runs.
        text: what is going on (``"done"`` at the end).
        step: training steps done; 0 outside training.
        num_steps: training steps in all; 0 outside training.
        loss: training loss of this step, or None.
        elapsed_seconds: since this model was begun.
    """

    model: str
    text: str
    step: int = 0
    num_steps: int = 0
    loss: float | None = None
    elapsed_seconds: float = 0.0


class Progress(Protocol):
    """Receives the events of a build; may be called from several threads."""

    def __call__(self, event: BuildEvent) -> None:
        """Show one event."""


def plain_progress(event: BuildEvent) -> None:
    """One line per event, every tenth training step."""
    if event.num_steps and event.step % 10 and event.step != event.num_steps:
        return
    detail = f"step {event.step}/{event.num_steps}, loss {event.loss:.3f}" if event.loss is not None else event.text
    print(f"zoo {event.model}: {detail} ({event.elapsed_seconds:.0f} s)", flush=True)


def build(name: str, progress: Progress = plain_progress) -> list[Path]:
    """Build a model with its parents, a group (`smollm2`, `micro`) or `all`; what is complete is kept.

    Args:
        name: model, group or `all`.
        progress: receives the events.

    Returns:
        Folders of the models asked for with their parents, parents first.

    Raises:
        UserError: unknown name, no network for the base model, disk full, or a build that failed.
    """
    models = expand(name)
    root = zoo_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the zoo folder {root}: {error.strerror}. Set EVOMERGE_CACHE.") from error
    with _lock(root, progress):
        missing = [model for model in models if not is_built(model.name)]
        if missing:
            _build_all(missing, progress)
    return [root / model.name for model in models]


@contextlib.contextmanager
def _lock(root: Path, progress: Progress) -> Iterator[None]:
    """One builder at a time per zoo folder; the others wait and then find the models made."""
    with (root / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(BuildEvent("zoo", f"waiting for another build in {root}"))
            fcntl.flock(stream, fcntl.LOCK_EX)
        for leftover in root.glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _build_all(models: list[ZooModel], progress: Progress) -> None:
    """Build models as soon as their parents are there, the longest first."""
    waiting = deque(sorted(models, key=lambda model: -model.minutes))
    running: dict[Future[None], str] = {}
    jobs = max(1, min(MAX_JOBS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))
    stop = _Stop()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                unfinished = {model.name for model in waiting} | set(running.values())
                for model in list(waiting):
                    if len(running) < jobs and model.parent not in unfinished:
                        waiting.remove(model)
                        running[pool.submit(_build_model, model, progress, stop)] = model.name
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    del running[future]
                    future.result()
        except BaseException:
            stop.now()
            raise


class _Stop:
    """Ends the workers of a build that is given up."""

    def __init__(self) -> None:
        self.asked = False
        self.workers: set[subprocess.Popen[str]] = set()

    def now(self) -> None:
        self.asked = True
        for worker in list(self.workers):
            worker.terminate()


def _build_model(model: ZooModel, progress: Progress, stop: _Stop) -> None:
    root = zoo_dir()
    num_phases = PHASES.get(model.name, 1)
    phase_names = [f"{model.name}@{phase}" for phase in range(1, num_phases)]
    for phase_name in phase_names:
        manifest = read_manifest(root / phase_name)
        if manifest is None or manifest.get("version") != model.version:
            _run_worker(phase_name, progress, stop)
    _run_worker(model.name, progress, stop)
    for phase_name in phase_names:
        shutil.rmtree(root / phase_name, ignore_errors=True)


def _run_worker(name: str, progress: Progress, stop: _Stop) -> None:
    """Run one worker into a temporary folder and rename it into place."""
    root, started = zoo_dir(), time.perf_counter()
    scratch = Path(tempfile.mkdtemp(prefix=f".tmp-{name}-", dir=root))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    quiet = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    # glibc in huge pages: a seventh of a training step went into page faults.
    memory = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    command = [sys.executable, "-m", "evomerge.zoo.worker", name, str(scratch)]
    error_lines: deque[str] = deque(maxlen=20)
    try:
        with tempfile.TemporaryFile("w+") as errors:
            worker = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **threads, **quiet, **memory},
            )
            stop.workers.add(worker)
            if stop.asked:
                worker.terminate()
            assert worker.stdout is not None
            message = ""
            for line in worker.stdout:
                values = json.loads(line)
                message = values.get("error", message)
                progress(
                    BuildEvent(
                        name,
                        values.get("text", values.get("error", "training")),
                        values.get("step", 0),
                        values.get("num_steps", 0),
                        values.get("loss"),
                        time.perf_counter() - started,
                    )
                )
            code = worker.wait()
            errors.seek(0)
            error_lines.extend(errors.read().splitlines())
        stop.workers.discard(worker)
        if code:
            raise UserError(message or f"building zoo model {name} failed (exit {code}):\n" + "\n".join(error_lines))
        _move_into_place(scratch, root / name)
        progress(BuildEvent(name, "done", elapsed_seconds=time.perf_counter() - started))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move_into_place(scratch: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    scratch.chmod(0o755)
    fsync_dir(scratch)
    scratch.replace(target)
    fsync_dir(target.parent)


def describe() -> list[tuple[ZooModel, bool]]:
    """Every model of the catalogue and whether it is built."""
    return [(look_up(name), is_built(name)) for name in CATALOGUE]
