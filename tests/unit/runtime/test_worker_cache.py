"""A worker with an evaluation cache: what is known costs nothing, and nothing stale is ever known."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.evaluation.rungs import RungSettings
from evomerge.evaluation.score_cache import cache_use
from evomerge.recipes.recipe import Hop, Merge, Recipe, Rule, Source, route_through
from evomerge.runtime.executor import Job, WorkerPlan
from evomerge.runtime.worker import Worker
from evomerge.terms import Evaluation, SplitName

BASE = Source("zoo:micro-base")
TASKS = Path(__file__).parents[3] / "fitness" / "tasks" / "micro"


@dataclass(frozen=True)
class Place:
    """A folder with a task, its data, an expert's weights and a cache that one worker has filled."""

    folder: Path
    answers: dict[str, Evaluation]

    @property
    def expert(self) -> Source:
        return Source(str(self.folder / "expert"))

    def plan(self, fitness: dict[str, Any] | None = None, **changes: Any) -> WorkerPlan:
        documents = {split: {"split": split, "limit": 8} for split in ("search", "validation", "held_out")}
        task = {"task": "tasks/own.yaml", "metric": "exact_match,strip", "documents": documents}
        configs = load_fitness([{**task, **(fitness or {})}, {"cost": "num_hops"}], base_dir=self.folder)
        plan = WorkerPlan(
            BASE,
            (("expert", self.expert),),
            tuple(config.model_dump(mode="json") for config in configs),
            plan_documents(configs).to_json(),
            dtype="float32",
            score_cache=str(self.folder / "cache"),
        )
        return replace(plan, **changes)

    def job(self, split: SplitName = "search", coefficient: float = 0.75, seed: int = 0) -> Job:
        rules = (("coefficient", (Rule(coefficient),)),)
        return Job("c0", Recipe(Merge("task_arithmetic", (("expert", self.expert),), BASE, rules)), split, seed)


@pytest.fixture(scope="module")
def place(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(TASKS, folder / "tasks")
    config = yaml.safe_load((TASKS / "micro_add.yaml").read_text())
    config["filter_list"].append({"name": "raw", "filter": [{"function": "take_first"}]})
    del config["num_fewshot"]  # so that a fitness may ask for some
    (folder / "tasks" / "own.yaml").write_text(yaml.safe_dump({**config, "task": "own"}))
    shutil.copytree(micro_zoo["micro-add"], folder / "expert")
    found = Place(folder, {})
    worker = Worker(found.plan())
    for split in ("search", "validation", "held_out"):
        found.answers[split] = worker.run(found.job(split))
        assert found.answers[split].ok
        assert not found.answers[split].known_documents
    return found


def same(left: Evaluation, right: Evaluation) -> bool:
    tables = [
        [(table.objective, table.document_ids, table.values.tolist()) for table in one.document_scores]
        for one in (left, right)
    ]
    return (left.fitness, left.metrics) == (right.fitness, right.metrics) and tables[0] == tables[1]


@contextmanager
def changed(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    try:
        yield
    finally:
        path.write_bytes(before)


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old.encode(), new.encode())


def test_what_is_known_costs_no_merge_and_no_forward(place: Place) -> None:
    worker = Worker(place.plan())
    calls: list[Any] = []
    before = [parameter.clone() for parameter in worker._live.model.parameters()]
    with torch.nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: calls.append(module)):
        for split in ("search", "validation", "held_out"):
            # Another run's seed; nothing here is drawn at random.
            evaluation = worker.run(place.job(split, seed=5))
            assert evaluation.is_recalled
            assert evaluation.known_documents == 8
            assert same(evaluation, place.answers[split])
            assert (evaluation.seconds.merge, evaluation.seconds.forward) == (0.0, 0.0)
    assert not calls
    assert all(map(torch.equal, before, worker._live.model.parameters()))
    # What is not known is merged and scored as ever.
    new = worker.run(place.job(coefficient=0.3))
    assert not new.known_documents
    assert same(new, Worker(place.plan(score_cache=None)).run(place.job(coefficient=0.3)))


CHANGES: dict[str, Any] = {
    "metric": {"fitness": {"metric": "exact_match,raw"}},
    "documents": {"fitness": {"documents": {"search": {"split": "search", "limit": 7}}}},
    "few-shot": {"fitness": {"fewshot": 1, "fewshot_split": "validation"}},
    "generation": {"fitness": {"gen_kwargs": {"max_gen_toks": 5}}},
    "batch": {"batch_size": 3},
    "scorer": {"scorer": "exact"},
    "dtype": {"dtype": "bfloat16"},
    "rungs": {"rungs": RungSettings(2, 4, "equal", 1)},
}
FILES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "prompt": ("tasks/own.yaml", replaced("{{prompt}}", "{{question}} =")),
    "filter": ("tasks/own.yaml", replaced("(.+?)", "(.)")),
    "answers": ("tasks/data/micro_add.search.jsonl", replaced('"answer": "8', '"answer": "9')),
    "questions": ("tasks/data/micro_add.search.jsonl", replaced('"prompt": "7', '"prompt": "6')),
    "weights": ("expert/model.safetensors", lambda data: data[:-2_000_000] + bytes(2_000_000)),
    "tokenizer": ("expert/tokenizer_config.json", lambda data: data + b" "),
}


@pytest.mark.parametrize("change", [*CHANGES, *FILES])
def test_nothing_stale_is_known(place: Place, change: str) -> None:
    if change in CHANGES:
        evaluation = Worker(place.plan(**CHANGES[change])).run(place.job())
    else:
        name, alter = FILES[change]
        with changed(place.folder / name, alter):
            evaluation = Worker(place.plan()).run(place.job())
            if change in ("weights", "answers"):
                assert same(evaluation, Worker(place.plan(score_cache=None)).run(place.job()))
                assert not same(evaluation, place.answers["search"])
    assert evaluation.ok
    assert not evaluation.is_recalled
    assert not evaluation.known_documents


def test_versions_and_code_are_part_of_the_key(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(place.plan())
    assert worker.run(place.job()).is_recalled
    monkeypatch.setattr("evomerge.__version__", "0.0.1")
    assert not Worker(place.plan()).run(place.job()).is_recalled
    monkeypatch.undo()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert not Worker(place.plan()).run(place.job()).is_recalled


@pytest.mark.parametrize("how", ["flipped", "cut", "swapped", "gone"])
def test_damaged_entries_are_scored_anew(place: Place, how: str) -> None:
    entries = sorted((place.folder / "cache").glob("??/*.scores"))
    kept = [path.read_bytes() for path in entries]
    for path, data, other in zip(entries, kept, [*kept[1:], kept[0]], strict=True):
        place_of_flip = len(data) - 5
        flipped = data[:place_of_flip] + bytes([data[place_of_flip] ^ 1]) + data[place_of_flip + 1 :]
        path.write_bytes({"flipped": flipped, "cut": data[: len(data) // 2], "swapped": other, "gone": b""}[how])
    evaluation = Worker(place.plan()).run(place.job())
    assert not evaluation.known_documents
    assert same(evaluation, place.answers["search"])
    for path, data in zip(entries, kept, strict=True):
        path.write_bytes(data)


def test_weights_that_change_under_a_worker_end_its_use_of_the_cache(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(place.plan())
    assert worker.run(place.job()).is_recalled
    before = cache_use(place.folder / "cache")
    weights = place.folder / "expert" / "model.safetensors"
    spare = weights.with_name("spare.tmp")
    spare.write_bytes(weights.read_bytes())
    spare.replace(weights)
    evaluation = worker.run(place.job())
    assert not evaluation.known_documents
    assert same(evaluation, place.answers["search"])  # the worker has the old file open
    worker.run(place.job(coefficient=0.1))
    assert "files changed while they were in use" in caplog.text
    assert cache_use(place.folder / "cache") == before


def test_failures_are_not_kept(place: Place) -> None:
    before = cache_use(place.folder / "cache").entries
    worker = Worker(place.plan())
    failed = worker.run(place.job(coefficient=1e39))
    assert failed.failure is not None
    assert cache_use(place.folder / "cache").entries == before
    # Weights that are nobody's do not choose engines for splits that were not prepared before.
    assert not worker.run(place.job("validation")).is_recalled
    assert worker.run(place.job()).is_recalled


def test_latency_is_measured_again_beside_known_answers(place: Place) -> None:
    configs = load_fitness([{"cost": "latency", "tokens": 4, "repeats": 1}])
    plan = place.plan()
    planned = [*plan.documents["fitness"], *plan_documents(configs).to_json()["fitness"]]
    documents = {**plan.documents, "fitness": planned}
    fitness = (*plan.fitness, *(config.model_dump(mode="json") for config in configs))
    evaluation = Worker(replace(plan, fitness=fitness, documents=documents)).run(place.job())
    assert evaluation.known_documents == 8
    assert not evaluation.is_recalled
    assert evaluation.seconds.merge > 0
    assert evaluation.fitness[:2] == place.answers["search"].fitness


def test_routes_are_known_too_and_their_hops_are_not_mixed_up(place: Place) -> None:
    def job(*blocks: int) -> Job:
        hops = tuple(Hop("expert", block) for block in blocks)
        return Job("c1", Recipe(route_through({"expert": place.expert}, hops, "expert")))

    plan = place.plan(lanes=1)
    first = Worker(plan)
    one, other = first.run(job(0, 1)), first.run(job(0, 1, 1))
    second = Worker(plan)
    for path, evaluation, hops in ((job(0, 1, 1), other, 3), (job(0, 1), one, 2)):
        again = second.run(path)
        assert again.is_recalled
        assert same(again, evaluation)
        assert again.fitness[1] == -hops
    assert not second.run(job(1, 0)).known_documents
