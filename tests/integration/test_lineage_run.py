"""A search over merges of merges on tiny real models, as a user runs it: M2N2 from the file to the export."""

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import evomerge
from evomerge.errors import InvalidInput, UserError
from evomerge.experiment.load import resolve_experiment
from evomerge.recipes.recipe_yaml import load_recipe
from evomerge.search.lineage import Lineage
from evomerge.store.event_log import EventLog
from evomerge.store.events import Asked, Evaluated, Told
from tests.integration.conftest import EXPERIMENT

Entries = dict[str, Any]
TOY = {
    **EXPERIMENT,
    "name": "lineage",
    "search_space": {"kind": "lineage"},
    "optimizer": {"name": "m2n2", "mode": "steady_state", "population_size": 4},
    "budget": {"evaluations": 12},
    "finish": {"baselines": False, "top_k": 2, "bootstrap_samples": 200},
}


def changed(**changes: Any) -> Entries:
    return {**copy.deepcopy(TOY), **changes}


def events(folder: Path) -> list[Any]:
    return EventLog(folder / "events.jsonl", writable=False).read()


def sequence(folder: Path) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for event in events(folder):
        if isinstance(event, Asked):
            found.append(("asked", event.candidate, event.genotype, event.recipe_id, event.parents))
        elif isinstance(event, Evaluated) and event.candidate is not None:
            found.append(("evaluated", event.candidate, event.fitness))
        elif isinstance(event, Told):
            found.append(("told", event.candidates))
    return found


@pytest.fixture(scope="module")
def finished(micro_zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lineage")
    (folder / "toy.yaml").write_text(yaml.safe_dump(TOY))
    assert evomerge.run(folder / "toy.yaml", run_dir=folder / "run").exit_code == 0
    return folder / "run"


def test_seeds_come_first_and_children_have_parents(finished: Path) -> None:
    asked = [event for event in events(finished) if isinstance(event, Asked)]
    lineages = [Lineage.from_genotype(event.array) for event in asked]
    assert [one.coefficients.tolist() for one in lineages[:2]] == [[[1.0, 0.0]], [[0.0, 1.0]]]
    assert all(one.num_segments == 2 for one in lineages[2:4])  # random merges of the seeds
    assert all(len(event.parents) == 2 for event in asked[4:])
    assert len({len(event.genotype) for event in asked}) > 2
    kept = yaml.safe_load((finished / "experiment.yaml").read_text())["search_space"]
    assert kept == {"kind": "lineage"}


def test_the_best_recipe_is_complete_and_exports_as_a_plain_model(finished: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (out,) = evomerge.export(finished, tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(out)
    winner = json.loads((finished / "summary.json").read_text())["winner"]["candidate"]
    fitness = yaml.safe_load((finished / "experiment.yaml").read_text())["fitness"]
    scored = evomerge.evaluate(str(out), fitness, "held_out")
    recorded = next(e for e in events(finished) if isinstance(e, Evaluated) and e.key == f"held_out:c{winner}")
    assert scored.evaluation.fitness == recorded.fitness
    number = next(e.candidate for e in events(finished) if isinstance(e, Asked) and len(e.genotype) > 10)
    (child,) = evomerge.export(finished, tmp_path / "child", candidate=number)
    recipe = load_recipe(child / "evomerge_recipe.yaml")
    asked = next(e for e in events(finished) if isinstance(e, Asked) and e.candidate == number)
    assert recipe.recipe_id == asked.recipe_id
    assert not (child / "mergekit_config.yml").exists()


def test_the_report_and_the_front_know_runs_without_genes(finished: Path) -> None:
    assert len(evomerge.front(finished)) >= 1
    assert (finished / "report.html").exists()


@pytest.mark.parametrize(("last", "torn"), [("told", ""), ("asked", '{"type": "evalua')])
def test_a_killed_run_goes_on_with_the_same_archive(finished: Path, tmp_path: Path, last: str, torn: str) -> None:
    """What a kill leaves: the log up to some line, and the files that were there by then."""
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("summary.json", "front.json", "best", "run.lock"))
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    ends = [index for index, line in enumerate(lines) if f'"{last}"' in line]
    (run / "events.jsonl").write_text("".join(lines[: ends[len(ends) // 2] + 1]) + torn)
    cells = (run / "seed_gram.npz").read_bytes()
    assert 8 < len(sequence(run)) < len(sequence(finished))
    assert evomerge.resume(run).exit_code == 0
    assert sequence(run) == sequence(finished)
    assert (run / "seed_gram.npz").read_bytes() == cells
    assert (run / "front.json").read_bytes() == (finished / "front.json").read_bytes()


def test_chromosomes_split_on_their_own(micro_zoo: dict[str, Path], tmp_path: Path) -> None:
    space = {"kind": "lineage", "seeds": ["let", "base"], "chromosomes": {"attention": ["attention"], "others": "rest"}}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(changed(search_space=space, budget={"evaluations": 4})))
    assert evomerge.run(tmp_path / "toy.yaml", run_dir=tmp_path / "run").exit_code == 0
    asked = [event for event in events(tmp_path / "run") if isinstance(event, Asked)]
    child = Lineage.from_genotype(asked[2].array)
    assert child.num_segments > 2
    assert len(np.unique(child.coefficients, axis=0)) <= 4  # two weights, each turned around once


def problems_of(entries: Entries, tmp_path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        resolve_experiment(entries, "x.yaml", tmp_path)
    return str(caught.value)


def test_what_cannot_work_is_told_before_anything_is_read(micro_zoo: dict[str, Path], tmp_path: Path) -> None:
    text = problems_of(changed(search_space={"kind": "lineage", "seeds": ["add"]}), tmp_path)
    assert "one seed has nobody to be merged with" in text
    text = problems_of(changed(search_space={"kind": "lineage", "seeds": ["add", "lett"]}), tmp_path)
    assert "there is no model 'lett'" in text
    text = problems_of(changed(optimizer={"name": "cma_es"}), tmp_path)
    assert "searches genes, and a `kind: lineage` space has none. Use m2n2" in text
    text = problems_of(changed(search_space="task_arithmetic_whole_model"), tmp_path)
    assert "m2n2 merges whole models and has no use for genes" in text
    space = {"kind": "lineage", "seeds": ["add", "let", "base"]}
    text = problems_of(changed(search_space=space, optimizer={"name": "m2n2", "population_size": 2}), tmp_path)
    assert "an archive of 2 cannot hold the 3 seeds" in text
    text = problems_of(changed(fitness=["micro_add", {"cost": "num_parameters"}], racing=True), tmp_path)
    assert "num_parameters has no documents" in text
    assert "m2n2 needs the real fitness of every candidate" in text
    text = problems_of(changed(fitness=["micro_add", {"python": "module:function"}]), tmp_path)
    assert "one number for each" in text
    text = problems_of(changed(constraints=["micro_add >= 0.1"]), tmp_path)
    assert "m2n2 knows nothing of constraints" in text
    space = {"kind": "lineage", "chromosomes": {"a": ["attention"], "b": ["attention", "mlp"]}}
    text = problems_of(changed(search_space=space), tmp_path)
    assert "a and b hold it" in text
    assert "none holds it" in text


def test_one_number_for_all_documents_is_refused_when_it_comes(
    micro_zoo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_all.py").write_text("def score(model, tokenizer, documents, seed):\n    return 0.5\n")
    (tmp_path / "documents.jsonl").write_text('{"text": "1+1"}\n{"text": "1+2"}\n')
    monkeypatch.setattr(sys, "path", [*sys.path])
    fitness = {
        "name": "all",
        "python": "of_all:score",
        "documents": {"search": {"path": str(tmp_path / "documents.jsonl")}},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(changed(fitness=[fitness])))
    with pytest.raises(UserError, match="none for single documents"):
        evomerge.run(tmp_path / "toy.yaml", run_dir=tmp_path / "run")
