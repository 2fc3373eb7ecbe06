"""The real worker on tiny models and a user's fitness function: equal inline and on Ray, faults are failures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty_fitness as faults
import numpy as np
import pytest
import torch

from evomerge.errors import UserError
from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source
from evomerge.runtime.build import build_executor, estimate_worker_bytes
from evomerge.runtime.executor import Executor, Job, Outcome, WorkerPlan
from evomerge.runtime.resources import PROCESS_BYTES, RuntimeSettings
from evomerge.runtime.worker import Worker
from evomerge.terms import FailureKind

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, Source], ...]:
    """Two random Llamas of two blocks, with a tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, **{chr(97 + index): index + 1 for index in range(26)}}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")))
    config = LlamaConfig(
        vocab_size=27, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    sources = []
    for number in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            folder = tmp_path_factory.mktemp("models") / f"expert{number}"
            LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        sources.append((f"expert{number}", Source(str(folder))))
    return tuple(sources)


@pytest.fixture(scope="module")
def plan(experts: tuple[tuple[str, Source], ...]) -> WorkerPlan:
    entry = {"name": "faulty", "python": "faulty_fitness:score"}
    configs = load_fitness([entry], "test")
    documents = plan_documents(configs, [HERE]).to_json()
    dumped = tuple(config.model_dump(mode="json") for config in configs)
    return WorkerPlan(None, experts, dumped, documents, import_paths=(HERE,))


@pytest.fixture(scope="module", autouse=True)
def flags(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_TEST_FLAGS", str(tmp_path_factory.mktemp("flags")))
        yield


def job(experts: Any, coefficient: float, seed: int = 0, key: str = "") -> Job:
    rules = (Rule(coefficient, expert="expert0"), Rule(1.0 - coefficient, expert="expert1"))
    recipe = Recipe(Merge("linear", experts, parameters=(("coefficient", rules),)))
    return Job(key or f"c{coefficient}-{seed}", recipe, "search", seed)


def run_all(executor: Executor, jobs: list[Job]) -> list[Outcome]:
    for item in jobs:
        executor.submit(item)
    outcomes: dict[str, Outcome] = {}
    while executor.num_pending:
        outcomes |= {outcome.job.key: outcome for outcome in executor.wait(1.0)}
    return [outcomes[item.key] for item in jobs]


@pytest.fixture(scope="module")
def inline(plan: WorkerPlan) -> Iterator[Executor]:
    executor = build_executor(RuntimeSettings(executor="inline", threads=1), plan)
    yield executor
    executor.close()


def test_inline_and_ray_give_equal_evaluations(
    plan: WorkerPlan, experts: Any, inline: Executor, ray_session: Any, flags: None
) -> None:
    jobs = [job(experts, coefficient / 4) for coefficient in range(5)]
    jobs += [job(experts, 0.3, faults.RAISE), job(experts, float("nan"), key="nan"), job(experts, 0.5, faults.DRAW)]
    here = run_all(inline, jobs)
    settings = RuntimeSettings(executor="ray", workers=2, threads=1, device="cpu", deadline_seconds=60)
    executor = build_executor(settings, plan)
    there = run_all(executor, jobs)
    executor.close()
    for mine, theirs in zip(here, there):
        assert mine.evaluation.fitness == theirs.evaluation.fitness
        assert mine.evaluation.failure == theirs.evaluation.failure
        assert theirs.evaluation.seconds.merge > 0 or theirs.evaluation.failure
    assert len({outcome.evaluation.fitness for outcome in here[:5]}) == 5
    report = executor.reports[0]
    assert (report.device, report.dtype) == ("cpu", "float32")
    assert "live model" in report.memory_plan
    assert report.model_bytes > 10_000


@pytest.mark.parametrize(
    ("seed", "kind", "words"),
    [
        (faults.RAISE, FailureKind.EXCEPTION, "the fitness is broken"),
        (faults.EXIT, FailureKind.EXCEPTION, "SystemExit"),
        (faults.NOT_FINITE, FailureKind.NON_FINITE, "nan"),
        (faults.OUT_OF_MEMORY, FailureKind.OUT_OF_MEMORY, "memory"),
    ],
)
def test_faults_are_failures_and_the_worker_goes_on(
    inline: Executor, experts: Any, seed: int, kind: FailureKind, words: str
) -> None:
    bad, good = run_all(inline, [job(experts, 0.5, seed), job(experts, 0.5)])
    assert bad.evaluation.failure is not None
    assert bad.evaluation.failure.kind is kind
    assert words in bad.evaluation.failure.message
    assert bad.evaluation.fitness == ()
    assert good.evaluation.ok


def test_a_merge_of_nan_is_not_finite(inline: Executor, experts: Any) -> None:
    bad, good = run_all(inline, [job(experts, float("nan")), job(experts, 0.5)])
    assert bad.evaluation.failure is not None
    assert bad.evaluation.failure.kind is FailureKind.NON_FINITE
    assert good.evaluation.ok


def test_out_of_memory_is_tried_again_with_a_smaller_batch(
    plan: WorkerPlan, experts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(plan)
    assert worker.run(job(experts, 0.5, faults.OUT_OF_MEMORY_ONCE)).ok
    assert "going on with batches of 16" in caplog.text


def test_an_evaluation_leaves_the_process_as_it_was(inline: Executor, experts: Any) -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    before = (random.getstate(), torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads())
    expected = float(np.random.RandomState(5).random())
    assert run_all(inline, [job(experts, 0.5, faults.MEDDLE)])[0].evaluation.ok
    after = (random.getstate(), torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads())
    assert after == before
    assert torch.is_grad_enabled()
    assert float(np.random.random()) == expected  # noqa: NPY002


def test_random_draws_of_a_fitness_follow_the_jobs_seed(inline: Executor, experts: Any) -> None:
    first, second = run_all(inline, [job(experts, 0.5, faults.DRAW, "a"), job(experts, 0.1, faults.DRAW, "b")])
    assert first.evaluation.fitness == second.evaluation.fitness


def test_memory_of_a_worker_is_estimated_from_the_checkpoints(plan: WorkerPlan) -> None:
    stored = (Path(plan.experts[0][1].model) / "model.safetensors").stat().st_size
    full = estimate_worker_bytes(plan, "float32") - PROCESS_BYTES
    assert 1.8 * stored < full < 2.1 * stored
    assert estimate_worker_bytes(plan, "bfloat16", 0) - PROCESS_BYTES == pytest.approx(full / 4, rel=0.05)


def test_missing_models_are_a_users_mistake(plan: WorkerPlan, tmp_path: Path) -> None:
    from dataclasses import replace

    lost = replace(plan, experts=(("gone", Source(str(tmp_path / "gone"))),))
    with pytest.raises(UserError, match="gone"):
        build_executor(RuntimeSettings(executor="inline"), lost)
    with pytest.raises(UserError, match="gone"):
        build_executor(RuntimeSettings(executor="ray"), lost)
