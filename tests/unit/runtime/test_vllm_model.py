"""A vLLM process beside the worker: texts as of a live model, swaps that are checked, an end without orphans.

The process is real; its vLLM is a stand-in (tests/standins).
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from evomerge.engine.live_model import LiveModel
from evomerge.errors import MergeFailed, UserError
from evomerge.evaluation.failures import WorkerBroken
from evomerge.evaluation.lm_eval_engine import EngineScorer
from evomerge.evaluation.lm_eval_scorer import PreparedScorer
from evomerge.evaluation.text_engine import safe_stops
from evomerge.recipes.recipe import Hop, Merge, Recipe, Route, Rule, Source
from evomerge.runtime import vllm_client
from evomerge.runtime.vllm_client import VllmServer
from evomerge.runtime.vllm_environment import find_environment
from evomerge.runtime.vllm_extension import why_unsupported
from evomerge.runtime.vllm_model import VllmModel, VllmModels
from evomerge.runtime.vllm_server import Server
from evomerge.runtime.vllm_settings import VllmSettings
from evomerge.runtime.vllm_wire import Closed, receive, send
from tests.standins.environment import STANDINS, make_python

ROOT = Path(vllm_client.__file__).parents[2]


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file that says what the stand-in does wrong."""
    path = tmp_path_factory.mktemp("fault") / "fault"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_STANDIN_FAULT", str(path))
        yield path


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_python(tmp_path_factory.mktemp("environment"), STANDINS)


@pytest.fixture(scope="module")
def models(micro_zoo: dict[str, Path]) -> VllmModels:
    experts = tuple((name, Source(str(micro_zoo[f"micro-{name}"]))) for name in ("add", "let"))
    return VllmModels(Source(str(micro_zoo["micro-base"])), experts, "float32", "cpu", 1, None, ())


@pytest.fixture(scope="module")
def engine(models: VllmModels, python: str, fault: Path) -> Iterator[VllmModel]:
    found = VllmModel(VllmSettings(python, max_model_len=100), models)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def no_fault(fault: Path) -> Iterator[None]:
    yield
    fault.unlink(missing_ok=True)


def recipes(models: VllmModels) -> list[Recipe]:
    base, experts = models.base, models.experts
    assert base is not None

    def rules(first: float, second: float) -> tuple[Rule, ...]:
        return Rule(first, expert="add"), Rule(second, expert="let")

    return [
        Recipe(base),
        Recipe(Merge("task_arithmetic", experts, base, (("coefficient", rules(0.9, 0.3)),))),
        Recipe(Merge("ties", experts, base, (("coefficient", rules(1.0, 0.8)), ("density", rules(0.4, 0.6))))),
        Recipe(Merge("linear", experts, None, (("coefficient", rules(0.5, 0.5)),)), dtype="bfloat16"),
        Recipe(experts[0][1]),
    ]


def asked(texts: list[str], **arguments: Any) -> list[Instance]:
    return [
        Instance("generate_until", {}, (text, dict(arguments)), index, ("task", index, 1))
        for index, text in enumerate(texts)
    ]


def test_texts_are_those_of_a_live_model(engine: VllmModel, models: VllmModels) -> None:
    live = LiveModel(models.base, models.experts, "float32", "cpu", 1)
    ours, theirs = EngineScorer(engine.model, engine.tokenizer, engine), PreparedScorer(live.model, live.tokenizer)
    shots = "1+2=3\n5+4=9\n3+3=6\n7+1=8\n"  # longer than a block of the prefix cache
    texts = [shots + f"{left}+{right}=" for left in range(3, 7) for right in (2, 8)] + ["abc>", "4"]
    asks = [
        {"until": ["\n"], "max_gen_toks": 6},
        {"until": ["0", "1", "\n"], "max_gen_toks": 9},
        {"until": ["1", "1+1=2"], "max_gen_toks": 12},  # the second contains the first
        {"until": [], "max_gen_toks": 5},
    ]
    told = set()
    for recipe in recipes(models):
        live.apply(recipe)
        assert engine.apply(recipe) > 0
        for arguments in asks:
            found = ours.generate_until(asked(texts, **arguments))
            assert found == theirs.generate_until(asked(texts, **arguments))
            told.add(tuple(found))
    assert len(told) > 3 * len(asks)


def test_what_it_is_not_used_for_is_refused(engine: VllmModel, models: VllmModels) -> None:
    scorer = EngineScorer(engine.model, engine.tokenizer, engine)
    likelihood = Instance("loglikelihood", {}, ("a", "b"), 0, ("choices", 0, 1))
    with pytest.raises(UserError, match=r"task choices asks for loglikelihood.*backend: hf"):
        scorer.prepare([[likelihood]])
    with pytest.raises(UserError, match="sampling is asked for"):
        scorer.prepare([asked(["a"], until=["\n"], max_gen_toks=5, do_sample=True, temperature=0.7)])
    with pytest.raises(UserError, match=r"max_model_len: 100 is too short.*has 101 tokens"):
        scorer.prepare([asked(["1" * 91], until=["\n"], max_gen_toks=10)])
    assert models.base is not None
    with pytest.raises(UserError, match="routes"):
        engine.apply(Recipe(Route((("base", models.base),), (Hop("base", 0),), "base")))
    with pytest.raises(UserError, match="gone"):
        engine.apply(Recipe(Source("/gone")))


def test_a_broken_merge_is_the_candidates_failure(engine: VllmModel, models: VllmModels) -> None:
    for number, words in ((float("nan"), "expected finite numbers"), (1e39, "NaN or infinite in")):
        rules = (Rule(number, expert="add"), Rule(1.0, expert="let"))
        with pytest.raises(MergeFailed, match=words):
            engine.apply(Recipe(Merge("task_arithmetic", models.experts, models.base, (("coefficient", rules),))))
    prompt = engine.tokenizer.encode("1+2=3\n5+4=")
    for recipe in recipes(models)[:2]:  # the engine goes on
        engine.apply(recipe)
        assert engine.generate([prompt], ["\n"], [1], [4])


def test_a_prefix_cache_that_is_not_reset_is_noticed(engine: VllmModel, fault: Path) -> None:
    fault.write_text("reset forgotten")
    with pytest.raises(UserError, match="depend on what earlier weights left in the prefix cache"):
        engine._check(has_adapter=True)
    fault.unlink()
    engine._check(has_adapter=True)


class OddEngine:
    """What a server asks of vLLM, with answers that may not happen."""

    def __init__(self, reset: Any = True, error: Exception | None = None, merged: str = "") -> None:
        self.reset, self.error, self.merged = reset, error, merged

    def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[str]:
        return [self.merged or '{"ok": {"seconds": 0.1, "state_bytes": 0}}']

    def reset_prefix_cache(self) -> Any:
        return self.reset

    def generate(self, *_: Any, **__: Any) -> Any:
        assert self.error is not None
        raise self.error


@pytest.mark.parametrize(
    ("engine", "kind", "words"),
    [
        (OddEngine(reset=False), "engine", "did not confirm"),
        (OddEngine(reset=None), "engine", "did not confirm"),
        (OddEngine(merged='{"error": "merge", "message": "NaN"}'), "merge", "NaN"),
        (OddEngine(merged='{"error": "memory", "message": "CUDA out of memory"}'), "memory", "CUDA"),
    ],
)
def test_a_swap_that_is_not_sure_is_an_error(engine: OddEngine, kind: str, words: str) -> None:
    server = Server()
    server._llm = engine
    answer = server.answer({"op": "apply", "recipe": "model: x"})
    assert answer["error"] == kind
    assert words in answer["message"]


def test_an_interpreter_that_ends_at_once_is_a_lost_worker(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no such module; exit 3\n")
    script.chmod(0o755)
    server = VllmServer(VllmSettings(str(script)))
    folder = server._folder
    with pytest.raises(WorkerBroken, match=r"died during 'open' \(no such module\)"):
        server.ask("open", engine={}, models={})
    server.close()
    assert not folder.exists()
    with pytest.raises(UserError, match=r"runtime\.vllm\.python: /none/python cannot be started"):
        VllmServer(VllmSettings("/none/python"))


def test_messages_are_whole_or_the_connection_is_closed() -> None:
    left, right = socket.socketpair()
    send(left, {"text": "ü\n", "number": 0.1, "list": [1, None]})
    assert receive(right) == {"text": "ü\n", "number": 0.1, "list": [1, None]}
    for broken in (struct.pack(">I", 5) + b"12345", struct.pack(">I", 2**31), struct.pack(">I", 3) + b"{]}"):
        left.sendall(broken)
        with pytest.raises(Closed):
            receive(right)
        left, right = socket.socketpair()
    left.sendall(struct.pack(">I", 9) + b"half")
    left.close()
    with pytest.raises(Closed, match="ended"):
        receive(right)
    with pytest.raises(Closed):
        send(right, {})


def test_only_stops_that_hide_no_longer_one_are_handed_to_an_engine() -> None:
    assert safe_stops(["\n", "", "\n\n", "Q:"]) == ["\n", "\n\n", "Q:"]
    assert safe_stops(["b", "abc", "ab", "c"]) == ["abc", "ab", "c"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_local_experts": 8}, "routed experts"),
        ({"kv_lora_rank": 512}, "MLA"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"text_config": {"num_experts": 64}}, "routed experts"),
    ],
)
def test_only_plain_dense_models_are_taken(config: dict[str, Any], words: str) -> None:
    assert words in (why_unsupported(config) or "")
    assert why_unsupported({"layer_types": ["full_attention", "sliding_attention"], "num_experts": None}) is None


def test_an_environment_is_looked_at_without_starting_vllm(python: str, tmp_path: Path) -> None:
    found = find_environment(python)
    assert (found.vllm, found.problems) == ("0.25.1", ())
    without = find_environment(make_python(tmp_path))
    assert [problem.partition(" beside")[0] for problem in without.problems] == ["vllm is not installed"]
    old = tmp_path / "old" / "vllm-0.11.2.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.11.2\n")
    too_old = find_environment(make_python(tmp_path / "old", tmp_path / "old"))
    assert len(too_old.problems) == 1
    assert "vllm 0.11.2" in too_old.problems[0]
    assert "0.25 or newer" in too_old.problems[0]
    (missing,) = find_environment("/none/python").problems
    assert "cannot be started" in missing
    (odd,) = find_environment("/bin/false").problems
    assert "no Python interpreter that works" in odd


def test_the_other_environment_needs_none_of_our_heavy_libraries() -> None:
    absent = ("ray", "lm_eval", "optuna", "cmaes", "moocore", "peft", "datasets", "typer", "rich", "pydantic", "gguf",
              "num2words", "matplotlib", "accelerate", "optuna_dashboard", "threadpoolctl")  # fmt: skip
    script = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {absent!r}: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import evomerge.runtime.vllm_server, evomerge.runtime.vllm_extension, evomerge.engine.merge_stream
import evomerge.recipes.recipe_yaml, importlib, pkgutil, evomerge.methods
for module in pkgutil.iter_modules(evomerge.methods.__path__):
    importlib.import_module('evomerge.methods.' + module.name)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
