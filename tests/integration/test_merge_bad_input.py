"""Every accident with a user's files, through the command line: one paragraph, nothing written, nothing lost."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.cli.main import main

RECIPE = """
method: {method}
base: {base}
experts: {{first: {first}, second: {second}}}
parameters: {parameters}
"""


def save_models(root: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=64,
        tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    for seed, name in enumerate(("base", "first", "second")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(root / name)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    save_models(root)
    return root


@pytest.fixture
def models(originals: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(originals, tmp_path / "models"))


def contents(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["evomerge", *arguments])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


NAME = "model.layers.1.mlp.up_proj.weight"


def rewrite(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def apply(models: Path) -> None:
        path = models / "second" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return apply


def reheader(change: Callable[[dict[str, Any]], str | None]) -> Callable[[Path], None]:
    def apply(models: Path) -> None:
        path = models / "second" / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        text = (change(header) or json.dumps(header)).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return apply


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(models: Path) -> None:
        path = models / "second" / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return apply


def spoiled(value: float) -> Callable[[Path], None]:
    return rewrite(lambda tensors: tensors[NAME].view(-1)[3:4].fill_(value))


def index(shards: dict[str, str]) -> Callable[[Path], None]:
    def apply(models: Path) -> None:
        folder = models / "second"
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))

    return apply


def pickled(models: Path) -> None:
    folder = models / "second"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def overlapping(header: dict[str, Any]) -> None:
    up, gate = header[NAME], header[NAME.replace("up", "gate")]
    up["data_offsets"] = [gate["data_offsets"][0] + 8, gate["data_offsets"][1] + 8]


def twice(header: dict[str, Any]) -> str:
    return json.dumps(header)[:-1] + f', "{NAME}": {json.dumps(header[NAME])}}}'


def wider(tensors: dict[str, Tensor]) -> None:
    tensors["model.embed_tokens.weight"] = torch.zeros(70, 16)


# what is done to the second expert, then what the message must say
MODELS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "shape": (rewrite(lambda t: t.update({NAME: torch.zeros(3, 16)})), ("second", NAME, "[3, 16], expected [32, 16]")),
    "missing tensor": (rewrite(lambda t: t.pop(NAME)), ("second", NAME, "complete model")),
    "renamed tensor": (rewrite(lambda t: t.update({"x.y": t.pop(NAME)})), ("second", NAME, "x.y")),
    "vocabulary": (rewrite(wider), ("second", "70 tokens, expected 64", "tokenizer: union")),
    "integers": (rewrite(lambda t: t.update({NAME: t[NAME].int()})), ("second", NAME, "I32", "cannot be merged")),
    "fp8": (rewrite(lambda t: t.update({NAME: t[NAME].to(torch.float8_e4m3fn)})), ("second", NAME, "F8_E4M3")),
    "nan": (spoiled(float("nan")), ("second", NAME, "NaN or infinite", "download it again")),
    "infinity": (spoiled(float("-inf")), ("second", NAME, "NaN or infinite")),
    "empty file": (raw(lambda data: b""), ("second/model.safetensors", "Download")),
    "truncated": (raw(lambda data: data[:-100]), ("second/model.safetensors", "truncated", "Download")),
    "cut in the header": (raw(lambda data: data[:500]), ("second/model.safetensors", "truncated")),
    "huge header": (raw(lambda data: b"\xff" * 8 + data[8:]), ("second/model.safetensors", "header would be")),
    "long header": (raw(lambda data: (90_000_000).to_bytes(8, "little") + data[8:]), ("truncated", "header alone")),
    "short header": (raw(lambda data: (40).to_bytes(8, "little") + data[8:]), ("second/model.safetensors", "Download")),
    "garbage": (raw(lambda data: data[:8] + b"\x80" * 200 + data[208:]), ("second/model.safetensors", "Download")),
    "overlap": (reheader(overlapping), ("second/model.safetensors", "gate_proj", "up_proj", "overlap")),
    "out of range": (
        reheader(lambda h: h[NAME].update(data_offsets=[10**9, 10**9 + 2048])),
        ("second/model.safetensors", "truncated", NAME),
    ),
    "negative": (reheader(lambda h: h[NAME].update(data_offsets=[-2048, 0])), (NAME, "impossible")),
    "described twice": (reheader(twice), ("second/model.safetensors", NAME, "twice")),
    "no shape": (reheader(lambda h: h[NAME].pop("shape") and None), ("second/model.safetensors", "'shape' is missing")),
    "list": (reheader(lambda h: "[1, 2]"), ("second/model.safetensors",)),
    "nested": (reheader(lambda h: "[" * 200_000), ("second/model.safetensors", "nested")),
    "pickle": (pickled, ("second", "pytorch_model.bin", "save_pretrained")),
    "index out of the folder": (index({NAME: "../first/model.safetensors"}), ("index.json", "../first", "outside")),
    "absolute index": (index({NAME: "/etc/passwd"}), ("index.json", "/etc/passwd", "outside")),
    "missing shard": (index({NAME: "b.safetensors"}), ("index.json", "b.safetensors", "missing")),
    "index of numbers": (index({NAME: 3}), ("index.json", "Download")),  # type: ignore[dict-item]
    "index of nothing": (index({}), ("index.json", "Download")),
    "broken configuration": (lambda m: (m / "second" / "config.json").write_text("{") and None, ("config.json",)),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_damaged_models(
    case: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words = MODELS[case]
    damage(models)
    before = contents(models)
    text = RECIPE.format(
        method="ties", base=models / "base", first=models / "first", second=models / "second",
        parameters="{coefficient: 0.5, density: 0.5}",
    )  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(text)
    code, shown = run(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out")], monkeypatch, capsys)
    assert code == (2 if case in ("nan", "infinity") else 1)
    assert_one_paragraph(shown, words)
    assert contents(models) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "recipe.yaml"]


def assert_one_paragraph(shown: str, words: tuple[str, ...]) -> None:
    assert "Traceback" not in shown
    assert shown.startswith("error ")
    assert shown.count("\n") == 1
    assert len(shown) < 1500
    for word in words:
        assert word in shown


RECIPES: dict[str, tuple[dict[str, str], int, tuple[str, ...]]] = {
    "density 0": ({"parameters": "{coefficient: 1, density: 0}"}, 1, ("recipe.yaml: parameters.density", "above 0")),
    "sum of 0": (
        {"method": "linear", "base": "null", "parameters": "{coefficient: {first: 1, second: -1}}"},
        2, ("tensor model.", "sum to 0", "normalize: false"),
    ),
    "overflow": (
        {"method": "task_arithmetic", "parameters": "{coefficient: 1.0e+38}\ndtype: float16"},
        2, ("NaN or infinite", "smaller coefficients"),
    ),
    "no such model": ({"second": "nobody/nothing"}, 1, ("nobody/nothing", "HF_HUB_OFFLINE")),
    "no such folder": ({"second": "./nowhere"}, 1, ("nowhere", "no such directory")),
    "no such user": ({"second": "~no-such-user-here/model"}, 1, ("no-such-user-here", "no such directory")),
    "endless name": ({"second": "./" + "x" * 300}, 1, ("xxx", "no such directory")),
    "a text file": ({"second": "{models}/base/config.json"}, 1, ("config.json", "got another file")),
    "unknown method": ({"method": "tie"}, 1, ("method", "ties")),
    "out of range when prepared": (
        {"method": "star", "parameters": "{eta: 0}"}, 1, ("star, tensor model.", "eta must be in (0, 100], got 0"),
    ),
    "out of range in a survey": (
        {"method": "opcm", "parameters": "{alpha: 2}"}, 1, ("recipe: opcm", "alpha must be in [0, 1], got 2"),
    ),
    "out of range when applied": (
        {"method": "pcb", "parameters": "{ratio: 3}"}, 1, ("pcb, tensor model.", "ratio must be in [0, 1], got 3"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RECIPES)
def test_bad_recipes(
    case: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, expected, words = RECIPES[case]
    given = {"method": "ties", "parameters": "{coefficient: 0.5}"}
    given |= {name: str(models / name) for name in ("base", "first", "second")}
    given |= {name: value.replace("{models}", str(models)) for name, value in changes.items()}
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(**given))
    code, shown = run(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out")], monkeypatch, capsys)
    assert code == expected
    assert_one_paragraph(shown, words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "recipe.yaml"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("full", ("not empty",)),
        ("file", ("is a file",)),
        ("hash", ("--hash", "headers or full")),
        ("under", ("cannot",)),
    ],
)
def test_bad_places(
    kind: str, words: tuple[str, ...], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = {name: models / name for name in ("base", "first", "second")}
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(method="ties", parameters="{coefficient: 0.5}", **given))
    out, more = tmp_path / "out", []
    if kind == "full":
        out.mkdir()
        (out / "mine.txt").write_text("precious")
    elif kind == "file":
        out.write_text("precious")
    elif kind == "under":
        (tmp_path / "file").write_text("precious")
        out = tmp_path / "file" / "out"
    else:
        more = ["--hash", "everything"]
    before = contents(tmp_path)
    code, shown = run(["merge", str(tmp_path / "recipe.yaml"), str(out), *more], monkeypatch, capsys)
    assert code == 1
    assert_one_paragraph(shown, words)
    assert contents(tmp_path) == before


def test_links_out_of_the_folder_are_followed(models: Path, tmp_path: Path) -> None:
    from evomerge import merge

    blob = tmp_path / "blob"
    weights = models / "second" / "model.safetensors"
    weights.rename(blob)
    weights.symlink_to(blob)
    given = {name: models / name for name in ("base", "first", "second")}
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(method="ties", parameters="{coefficient: 0.5}", **given))
    merge(tmp_path / "recipe.yaml", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
