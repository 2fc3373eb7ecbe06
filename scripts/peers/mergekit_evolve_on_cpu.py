"""Runs mergekit-evolve 0.1.5 without vLLM and without a GPU, and writes the time and score of every candidate.

Run by `scripts/bench_peers.py` with the Python of an environment that holds mergekit, lm-eval, ray, cma and pandas; it
imports nothing of evomerge. mergekit itself stays untouched: what is needed to start it at all is changed at run time,

1. a stand-in for ``lm_eval.models.vllm_causallms``, which mergekit-evolve names in class bodies, and which needs vLLM;
2. two pretended GPUs in Ray, because every actor asks for one;
3. ``torch.accelerator``-style calls on "cpu" do nothing;
4. with ``--float32``: models are built and loaded in float32 instead of bfloat16, which this CPU computes slowly;
5. with ``--rows N``: the in-memory evaluator gets lm-eval's batch size N; mergekit leaves it at 1;
6. in-memory merges are planned without pydantic's check of the node's type, which ends in a TypeError.

Usage: mergekit_evolve_on_cpu.py LOG WORKERS [--float32] [--rows N] -- <arguments of mergekit-evolve>
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import types
from typing import Any


def prepare_process() -> None:
    """Make mergekit.evo importable and usable here; runs in the driver and in every Ray worker."""
    stand_in = types.ModuleType("lm_eval.models.vllm_causallms")
    stand_in.VLLM = type("VLLM", (), {})  # type: ignore[attr-defined]
    sys.modules.setdefault("lm_eval.models.vllm_causallms", stand_in)
    import lm_eval.models

    lm_eval.models.vllm_causallms = sys.modules["lm_eval.models.vllm_causallms"]
    import mergekit.evo.actors as actors
    import mergekit.io.tasks
    import mergekit.plan

    nothing = types.SimpleNamespace(empty_cache=lambda: None)
    actors.get_torch_accelerator_module = lambda device: nothing
    mergekit.plan.ReturnTensor = mergekit.io.tasks.ReturnTensor.model_construct
    _patch_precision(actors)
    _patch_rows(actors)


def _patch_precision(actors: Any) -> None:
    if os.environ.get("PEER_FLOAT32") != "1":
        return
    import torch

    torch.nn.Module.bfloat16 = lambda module: module.float()  # type: ignore[assignment, method-assign]
    import mergekit.evo.helpers as helpers

    whole = helpers._eval_model

    def evaluate(model: Any, tasks: Any, model_args: Any = None, **others: Any) -> Any:
        if model_args is not None:
            model_args = {**model_args, "dtype": "float32"}
        return whole(model, tasks, model_args, **others)

    helpers._eval_model = evaluate
    actors._eval_model = evaluate


def _patch_rows(actors: Any) -> None:
    rows = int(os.environ.get("PEER_ROWS", "0"))
    if not rows:
        return
    import lm_eval.models.huggingface as huggingface

    stock = huggingface.HFLM

    class Batched(stock):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            named.setdefault("batch_size", rows)
            super().__init__(*arguments, **named)

    huggingface.HFLM = Batched


def main() -> None:
    """Run mergekit-evolve's own command, with its strategy's calls timed."""
    split = sys.argv.index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("workers", type=int)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--rows", type=int, default=0)
    options = parser.parse_args(sys.argv[1:split])
    os.environ["PEER_FLOAT32"] = "1" if options.float32 else "0"
    os.environ["PEER_ROWS"] = str(options.rows)
    prepare_process()
    import ray

    passed = {name: os.environ[name] for name in ("PEER_FLOAT32", "PEER_ROWS")}
    hook = {"worker_process_setup_hook": prepare_process, "env_vars": passed}
    ray.init(num_cpus=options.workers, num_gpus=options.workers, runtime_env=hook, include_dashboard=False)
    import mergekit.evo.strategy as strategy
    import mergekit.scripts.evolve as evolve

    whole = strategy.ActorPoolEvaluationStrategy.evaluate_genotypes
    began = time.time()
    with open(options.log, "w") as log:

        def timed(self: Any, genotypes: Any) -> Any:
            started = time.time()
            found = whole(self, genotypes)
            line = {
                "started": started - began,
                "finished": time.time() - began,
                "finished_at": time.time(),
                "genotypes": [list(map(float, genotype)) for genotype in genotypes],
                "scores": [entry["score"] for entry in found],
                "results": [entry["results"] for entry in found],
            }
            print(json.dumps(line, default=str), file=log, flush=True)
            return found

        strategy.ActorPoolEvaluationStrategy.evaluate_genotypes = timed  # type: ignore[method-assign]
        evolve.main(sys.argv[split + 1 :], standalone_mode=False)


if __name__ == "__main__":
    main()
