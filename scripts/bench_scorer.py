"""Our prepared scorer against lm-eval's own HFLM: the same model, documents and scores, seconds side by side.

    python scripts/bench_scorer.py [--model zoo:smollm2-135m] [--dtype float32] [--threads 1] [--documents 100]

Stock seconds are those of lm-eval's `evaluate` on loaded tasks (what a loop around lm-eval pays for each candidate),
ours those of one `Evaluator.evaluate`; `start_cpu` is what building and the self-check cost once. "pure forward" is the
time inside the model during our evaluation.
CPU seconds are shown beside wall seconds because other work on the machine disturbs the latter.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.evaluator import build_evaluator
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.presets import preset_dir


@dataclass
class Case:
    name: str
    fitness: dict[str, Any]
    metric: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:smollm2-135m", help="zoo:<name> or a local folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--cases", nargs="*", help="default: all of them")
    parser.add_argument("--stock-batches", type=int, nargs="*", default=[1, 16, 32])
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(options.threads)
    folder = _folder(options.model)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as made:
        cases = {case.name: case for case in _cases(Path(made), options.documents)}
        for name in options.cases or cases:
            print(json.dumps(_compare(cases[name], model, tokenizer, Path(made), options)), flush=True)


def _folder(model: str) -> Path:
    if not model.startswith("zoo:"):
        return Path(model)
    from evomerge.zoo.catalogue import locate

    return locate(model.removeprefix("zoo:"))


def _cases(folder: Path, num_documents: int) -> list[Case]:
    """Tasks over the zoo's documents; multiple choice asks for a country's capital among four.

    Examples in the prompt are the same for all documents, or, where the name says so, drawn for each one.
    """
    data = preset_dir("fitness") / "tasks" / "zoo" / "data"
    files = {}
    for task in ("zoo_math_en", "zoo_capitals"):
        parts = [data / f"{task}.{split}.jsonl" for split in ("search", "validation", "held_out")]
        documents = [json.loads(line) for path in parts for line in path.read_text().splitlines()]
        answers = sorted({document["answer"] for document in documents})
        for number, document in enumerate(documents):
            wrong = random.Random(number).sample([answer for answer in answers if answer != document["answer"]], 3)
            document |= {"choices": [document["answer"], *wrong], "label": 0}
            document["long_choices"] = [f"what was asked for is {choice}" for choice in document["choices"]]
        random.Random(0).shuffle(documents)
        for split, chosen in (("search", documents[:num_documents]), ("shots", documents[num_documents:])):
            path = folder / f"{task}.{split}.jsonl"
            path.write_text("".join(json.dumps(document) + "\n" for document in chosen))
            files[task, split] = str(path)
    generate = {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {
                "name": "last_number",
                "filter": [
                    {"function": "regex", "regex_pattern": r"(-?\d+)", "group_select": -1},
                    {"function": "take_first"},
                ],
            }
        ],
    }
    choose = {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    choose_long = {**choose, "doc_to_choice": "long_choices"}
    made = {
        "generation": ("zoo_math_en", generate, 0, "exact_match", "first_n"),
        "generation_4shot": ("zoo_math_en", generate, 4, "exact_match", "first_n"),
        "generation_4shot_random": ("zoo_math_en", generate, 4, "exact_match", "default"),
        "choice": ("zoo_capitals", choose, 0, "acc", "first_n"),
        "choice_5shot": ("zoo_capitals", choose, 5, "acc", "first_n"),
        "choice_5shot_random": ("zoo_capitals", choose, 5, "acc", "default"),
        "long_choice_5shot": ("zoo_math_en", choose_long, 5, "acc", "first_n"),
        "long_choice_5shot_random": ("zoo_math_en", choose_long, 5, "acc", "default"),
    }
    cases = []
    for name, (task, kind, shots, metric, sampler) in made.items():
        config = {
            "task": name, "dataset_path": "json", "doc_to_text": "{{prompt}}", "num_fewshot": shots or None,
            "dataset_kwargs": {"data_files": {split: files[task, split] for split in ("search", "shots")}},
            "test_split": "search", "fewshot_split": "shots", "fewshot_config": {"sampler": sampler}, **kind,
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        fitness = {"task": name, "metric": metric, "documents": {"search": {"split": "search"}}}
        cases.append(Case(name, {**fitness, "include_path": str(folder)}, metric))
    return cases


def _compare(case: Case, model: Any, tokenizer: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    configs = load_fitness(case.fitness)
    evaluator = build_evaluator(configs, plan_documents(configs))
    _, _, start_cpu = _timed(lambda: evaluator.bind(model, tokenizer), 1)
    ours, our_wall, our_cpu = _timed(lambda: evaluator.evaluate("search"), options.repeats)
    assert ours.ok, ours.failure
    theirs: dict[str, Any] = {}
    for batch_size in options.stock_batches:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        loaded = TaskManager(include_path=str(folder), include_defaults=False).load([case.name])
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(1234)
        found, wall, cpu = _timed(lambda lm=lm, loaded=loaded: evaluate(lm, loaded, bootstrap_iters=0), 1)
        score = next(value for key, value in found["results"][case.name].items() if key.startswith(f"{case.metric},"))
        theirs[f"stock_bs{batch_size}"] = {"score": score, "wall": round(wall, 3), "cpu": round(cpu, 3)}
        if str(model.dtype) == "torch.float32":
            assert abs(score - ours.fitness[0]) < 1e-9, (case.name, batch_size, score, ours.fitness[0])
    best = min(entry["cpu"] for entry in theirs.values())
    return {
        "case": case.name,
        "dtype": str(model.dtype),
        "score": ours.fitness[0],
        "ours": {"wall": round(our_wall, 3), "cpu": round(our_cpu, 3)},
        "engines": evaluator.notes,
        "start_cpu": round(start_cpu, 3),
        "wall_over_pure_forward": round(ours.seconds.busy / ours.seconds.forward, 3),
        **theirs,
        "speedup_over_best_stock_cpu": round(best / our_cpu, 2),
    }


def _timed(run: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    best = (float("inf"), float("inf"))
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        result = run()
        best = min(best, (time.process_time() - cpu, time.perf_counter() - wall))
    return result, best[1], best[0]


if __name__ == "__main__":
    main()
