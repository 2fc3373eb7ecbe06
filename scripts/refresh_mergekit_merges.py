"""Write tests/golden/mergekit_merges.json and .safetensors: whole merges of tiny models by mergekit.

Needs a Python environment with mergekit, which pins other versions than evomerge. Run it as
``python scripts/refresh_mergekit_merges.py``. The JSON holds configurations, tokenizers, recipes and the random
parameter settings with mergekit's values for them; the safetensors file the tensors of the models and of the results.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "mergekit_merges"
HIDDEN, INNER = 8, 12
SPECIAL = ["<s>", "</s>", "<unk>"]

CHARACTERS = list("abcdefgh")
# Model: blocks, tokenizer, extra rows of its embeddings.
MODELS = {
    "base": (3, "bpe_ab", 0),
    "x": (3, "bpe_ab", 0),
    "y": (3, "bpe_ab", 0),
    "deep": (4, "bpe_ab", 0),
    "other": (3, "bpe_cd", 0),
    "third": (3, "bpe_fg", 0),
    "padded": (3, "bpe_ab", 3),
    "pieces": (3, "wordpiece", 0),
    "grams": (3, "unigram", 0),
    "bound": (3, "bpe_ab", 0),
}
TOKENIZERS = {
    "bpe_ab": ("BPE", ["ab", "abc"], ["<tool>"]),
    "bpe_cd": ("BPE", ["cd", "ab"], ["<call>", "<tool>"]),
    "bpe_fg": ("BPE", ["fg", "cd"], ["<call>"]),
    "wordpiece": ("WordPiece", ["##b", "##c", "ab"], ["<tool>"]),
    "unigram": ("Unigram", ["ab", "gh"], ["<call>"]),
}

STACKS = {
    "depth up-scaling": """
merge_method: passthrough
slices:
  - sources: [{model: ./x, layer_range: [0, 2]}]
  - sources: [{model: ./x, layer_range: [1, 3]}]
dtype: float32
""",
    "interleaved with scales": """
merge_method: passthrough
slices:
  - sources: [{model: ./x, layer_range: [0, 2]}]
  - sources:
      - model: ./deep
        layer_range: [1, 4]
        parameters: {scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: [0.5, 1.0]}, {value: 1.0}]}
  - sources: [{model: ./y, layer_range: [2, 3]}]
parameters: {scale: [{filter: mlp, value: 0.75}]}
dtype: float32
""",
    "different blocks": """
merge_method: linear
slices:
  - sources:
      - {model: ./x, layer_range: [0, 2], parameters: {weight: [0.1, 0.7]}}
      - {model: ./deep, layer_range: [2, 4], parameters: {weight: [{filter: mlp, value: [0.9, 0.3]}]}}
  - sources:
      - {model: ./y, layer_range: [2, 3]}
      - {model: ./base, layer_range: [0, 1]}
    parameters: {weight: [0.25, 0.5, 0.125]}
parameters: {weight: [0.4, 0.6], normalize: false}
dtype: float32
""",
    "ties over other blocks": """
merge_method: ties
base_model: ./base
slices:
  - sources:
      - {model: ./base, layer_range: [1, 3]}
      - {model: ./x, layer_range: [0, 2], parameters: {density: 0.5}}
      - {model: ./y, layer_range: [1, 3], parameters: {weight: [{filter: q_proj, value: 1.5}, {value: [0.2, 0.8]}]}}
    parameters: {lambda: [0.5, 1.0]}
  - sources: [{model: ./base, layer_range: [0, 1]}]
  - sources:
      - {model: ./x, layer_range: [2, 3]}
      - {model: ./base, layer_range: [2, 3]}
    parameters: {normalize: false}
parameters: {weight: 0.5, density: 0.7}
dtype: float32
""",
    "a base for each slice": """
merge_method: slerp
base_model: ./base
slices:
  - sources: [{model: ./base, layer_range: [0, 2]}, {model: ./x, layer_range: [1, 3]}]
    parameters: {t: [0.0, 0.5]}
  - sources: [{model: ./x, layer_range: [2, 3]}, {model: ./y, layer_range: [2, 3]}]
    base_model: ./y
parameters: {t: 0.25}
dtype: float32
""",
    "fewer blocks": """
merge_method: task_arithmetic
base_model: ./base
slices:
  - sources: [{model: ./base, layer_range: [0, 1]}, {model: ./x, layer_range: [0, 1]}]
    parameters: {weight: [0.25, 0.5]}
  - sources: [{model: ./base, layer_range: [1, 2]}, {model: ./x, layer_range: [1, 2]}]
parameters: {weight: 0.75}
dtype: float32
""",
    "tied models": """
merge_method: passthrough
slices:
  - sources: [{model: ./bound, layer_range: [0, 3]}]
  - sources: [{model: ./bound, layer_range: [0, 2]}]
dtype: float32
""",
    "several documents": """
name: inner
merge_method: linear
models:
  - {model: ./x, parameters: {weight: 0.25}}
  - {model: ./y, parameters: {weight: [0.5, 0.75]}}
dtype: float32
---
merge_method: slerp
base_model: ./base
models: [{model: inner}, {model: ./base}]
parameters: {t: [{filter: self_attn, value: [0.1, 0.6]}, {value: 0.3}]}
dtype: float32
""",
}
LINEAR = """
merge_method: linear
models:
  - {model: ./base, parameters: {weight: 0.5}}
  - {model: ./other, parameters: {weight: 0.25}}
  - {model: ./third, parameters: {weight: 0.25}}
dtype: float32
"""
TIES = """
merge_method: ties
base_model: ./base
models:
  - {model: ./other, parameters: {weight: 0.5, density: 0.5}}
  - {model: ./third, parameters: {weight: 0.75, density: 0.75}}
dtype: float32
"""
PAIR = """
merge_method: slerp
base_model: ./%s
models: [{model: ./%s}, {model: ./%s}]
parameters: {t: 0.3}
dtype: float32
"""
TOKENS = """
tokenizer:
  source: union
  tokens:
    "<call>": {source: ./third}
    "<tool>": {source: ./other, force: true}
    "<new>": {source: {kind: zero}}
    "<copy>": {source: {kind: model_token, model: ./other, token: cd}}
    "<third>": {source: {kind: model_token, model: ./base, token_id: 4}}
  pad_to_multiple_of: 8
"""
VOCABULARIES = {
    "union": "base_model: ./base" + LINEAR + "tokenizer_source: union\n",
    "base": "base_model: ./base" + LINEAR + "tokenizer_source: base\n",
    "a model's": "base_model: ./base" + LINEAR + "tokenizer_source: ./other\n",
    "union of task vectors": TIES + "tokenizer_source: union\n",
    "rows of single tokens": "base_model: ./base" + LINEAR + TOKENS,
    "fewer rows": PAIR % ("padded", "padded", "x") + "tokenizer: {source: base}\n",
    "wordpiece": PAIR % ("pieces", "pieces", "base") + "tokenizer_source: union\n",
    "unigram": PAIR % ("grams", "grams", "other") + "tokenizer_source: union\n",
    "stacked": """
merge_method: passthrough
base_model: ./base
slices:
  - sources: [{model: ./other, layer_range: [0, 2]}]
  - sources: [{model: ./base, layer_range: [1, 3]}]
tokenizer_source: union
dtype: float32
""",
}
EXPERTS = """models:
  - {model: ./x, parameters: {weight: 0.3%s}}
  - {model: ./y, parameters: {weight: [0.9, -0.4]%s}}
"""
PARITY = {
    "linear": "merge_method: linear\n" + EXPERTS % ("", ""),
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: ./base\n" + EXPERTS % ("", ""),
    "task_arithmetic normalized": "merge_method: task_arithmetic\nbase_model: ./base\n"
    + EXPERTS % ("", "") + "parameters: {normalize: true, lambda: 0.7}\n",
    "ties": "merge_method: ties\nbase_model: ./base\n" + EXPERTS % (", density: 0.3", ", density: 0.6"),
    "ties scaled": "merge_method: ties\nbase_model: ./base\n"
    + EXPERTS % (", density: 0.3", ", density: 0.6") + "parameters: {int8_mask: true, lambda: 1.2}\n",
    "dare_linear": "merge_method: dare_linear\nbase_model: ./base\n" + EXPERTS % ("", ""),
    "dare_ties": "merge_method: dare_ties\nbase_model: ./base\n" + EXPERTS % ("", ""),
    "della": "merge_method: della\nbase_model: ./base\n" + EXPERTS % ("", ""),
    "breadcrumbs": "merge_method: breadcrumbs\nbase_model: ./base\n"
    + EXPERTS % (", density: 0.4, gamma: 0.05", ", density: 0.8"),
    "breadcrumbs without outliers": "merge_method: breadcrumbs_ties\nbase_model: ./base\n"
    + EXPERTS % (", density: 0.4, gamma: 0.0", ", density: 0.9, gamma: 0.3"),
    "slerp": "merge_method: slerp\nbase_model: ./x\nmodels: [{model: ./x}, {model: ./y}]\n"
    "parameters: {t: [0.2, 0.7]}\n",
    "nuslerp": "merge_method: nuslerp\n" + EXPERTS.replace("-0.4", "0.4") % ("", ""),
    "nuslerp of rows": "merge_method: nuslerp\nbase_model: ./base\n"
    + EXPERTS.replace("-0.4", "0.4") % ("", "") + "parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}\n",
    "multislerp": "merge_method: multislerp\nbase_model: ./base\n" + EXPERTS.replace("-0.4", "0.4") % ("", ""),
    "karcher": "merge_method: karcher\nmodels: [{model: ./x}, {model: ./y}, {model: ./base}]\n",
    "model_stock": "merge_method: model_stock\nbase_model: ./base\nmodels: [{model: ./x}, {model: ./y}]\n",
    "nearswap": "merge_method: nearswap\nbase_model: ./base\nmodels: [{model: ./x}]\nparameters: {t: 0.05}\n",
    "sce": "merge_method: sce\nbase_model: ./base\nmodels: [{model: ./x}, {model: ./y}]\n"
    "parameters: {select_topk: 0.4}\n",
    "sce of small changes": "merge_method: sce\nbase_model: ./base\nmodels: [{model: ./near}, {model: ./nearer}]\n",
    "arcee_fusion": "merge_method: arcee_fusion\nbase_model: ./base\nmodels: [{model: ./x}]\n",
    "passthrough": "merge_method: passthrough\nmodels: [{model: ./x, parameters: {scale: 0.7}}]\n",
    "ram": "merge_method: ram\nbase_model: ./base\nmodels: [{model: ./x}, {model: ./y}]\nparameters: {epsilon: 0.3}\n",
    "ramplus_tl": "merge_method: ramplus_tl\nbase_model: ./base\nmodels: [{model: ./x}, {model: ./y}]\n"
    "parameters: {epsilon: 0.3}\n",
}  # fmt: skip


def tokenizer_json(name: str) -> dict[str, Any]:
    """A small tokenizer in the fast format."""
    kind, words, added = TOKENIZERS[name]
    if kind == "Unigram":
        model: dict[str, Any] = {
            "type": kind, "unk_id": 2, "vocab": [[word, -1.0] for word in [*SPECIAL, *CHARACTERS, *words]],
        }  # fmt: skip
    else:
        model = {
            "type": kind,
            "unk_token": "<unk>",
            "vocab": {w: i for i, w in enumerate([*SPECIAL, *CHARACTERS, *words])},
        }
    if kind == "BPE":
        model["merges"] = [f"{word[:-1]} {word[-1]}" for word in words]
    if kind == "WordPiece":
        model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    count = len(SPECIAL) + len(CHARACTERS) + len(words)
    tokens = [*enumerate(SPECIAL), *((count + index, token) for index, token in enumerate(added))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "added_tokens": [{"id": index, "content": token, **flags} for index, token in tokens], "model": model,
    }  # fmt: skip


def config_json(name: str) -> dict[str, Any]:
    """A small Llama."""
    blocks, tokenizer, extra = MODELS[name]
    _, words, added = TOKENIZERS[tokenizer]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "head_dim": 4,
        "intermediate_size": INNER, "num_hidden_layers": blocks, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": len(SPECIAL) + len(CHARACTERS) + len(words) + len(added) + extra, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu",
        "tie_word_embeddings": name == "bound", "torch_dtype": "float32", "dtype": "float32",
    }  # fmt: skip


def model_tensors(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Random weights, close to those of a common ancestor where shapes allow."""
    import numpy as np

    rows, scale = config["vocab_size"], 0.25
    shapes = {"model.embed_tokens.weight": (rows, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for block in range(config["num_hidden_layers"]):
        inside = {
            "self_attn.q_proj": (8, HIDDEN), "self_attn.k_proj": (4, HIDDEN), "self_attn.v_proj": (4, HIDDEN),
            "self_attn.o_proj": (HIDDEN, 8), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
        }  # fmt: skip
        shapes |= {f"model.layers.{block}.{key}.weight": shape for key, shape in inside.items()}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (rows, HIDDEN)
    own, common = np.random.default_rng(seed), np.random.default_rng(999)
    found = {}
    for key, shape in shapes.items():
        values = common.standard_normal(shape) + scale * own.standard_normal(shape)
        found[key] = values.astype(np.float32)
    return found


def write_model(directory: Path, config: dict[str, Any], tokenizer: dict[str, Any], tensors: dict[str, Any]) -> None:
    """A checkpoint that transformers loads."""
    from safetensors.numpy import save_file

    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def merged(root: Path, text: str) -> tuple[dict[str, Any], dict[str, int], int]:
    """Tensors, tokens and depth of what mergekit makes of a file."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    out = Path(tempfile.mkdtemp(dir=root))
    path = out.with_suffix(".yml")
    path.write_text(text)
    if "---" in text:
        command = ["-m", "mergekit.scripts.multimerge", str(path), "--out-path", str(out), "-I", str(root)]
    else:
        command = ["-m", "mergekit.scripts.run_yaml", str(path), str(out)]
    subprocess.run([sys.executable, *command], cwd=root, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    tensors: dict[str, Any] = {}
    for file in sorted(out.glob("*.safetensors")):
        tensors |= load_file(file)
    config = json.loads((out / "config.json").read_text())
    tokens = AutoTokenizer.from_pretrained(out).get_vocab() if "tokenizer" in text else {}
    return tensors, tokens, config["num_hidden_layers"]


def resolved(config: Any, index: int, name: str, t: float) -> list[float]:
    """mergekit's lambda and weights of a tensor in one output slice."""
    from mergekit import merge_methods
    from mergekit.common import ModelReference
    from mergekit.config import ConfigReader
    from mergekit.parameter_resolver import resolve_parameters

    reader = ConfigReader(config=config, t=t, slice_out=config.slices[index])
    models = [ModelReference.parse(model) for model in ("x", "y", "base")]
    shared, own = resolve_parameters(
        merge_methods.get("task_arithmetic").spec,
        tensor_name=name,
        inputs=dict.fromkeys(models, name),
        sources=reader.parameter_sources,
        base_model=config.base_model,
        t=t,
    )
    return [shared["lambda"], *(own[model]["weight"] for model in models[:2])]


def settings_cases(count: int) -> list[dict[str, Any]]:
    """Random parameters at every level with mergekit's values for every tensor."""
    from mergekit.config import MergeConfiguration

    draw = random.Random(7)

    def number() -> float:
        return round(draw.uniform(-1, 2), 3)

    def plain() -> Any:
        return number() if draw.random() < 0.5 else [number() for _ in range(draw.randint(1, 4))]

    def setting() -> Any:
        if draw.random() < 0.5:
            return plain()
        filters = draw.sample(["self_attn", "mlp", "q_proj", "norm", "embed", "*", "lm_head"], draw.randint(1, 3))
        found: list[dict[str, Any]] = [{"filter": text, "value": plain()} for text in filters]
        return found + ([{"value": plain()}] if draw.random() < 0.7 else [])

    def level(*names: str) -> dict[str, Any]:
        return {name: setting() for name in names if draw.random() < 0.5}

    names = ["self_attn.q_proj", "mlp.up_proj", "input_layernorm"]
    found = []
    for _ in range(count):
        lengths = [draw.randint(1, 4) for _ in range(draw.randint(1, 3))]
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        slices = [
            {
                "sources": [
                    {"model": model, "layer_range": [start, start + length], "parameters": level("weight")}
                    for model in ("x", "y")
                ] + [{"model": "base", "layer_range": [start, start + length]}],
                "parameters": level("weight", "lambda"),
            }
            for start, length in zip(starts, lengths)
        ]  # fmt: skip
        top = {"weight": [{"filter": "mlp", "value": plain()}, {"value": plain()}], **level("lambda")}
        entries = {"merge_method": "task_arithmetic", "base_model": "base", "slices": slices, "parameters": top}
        config = MergeConfiguration.model_validate(entries)
        values = []
        resolve = partial(resolved, config)
        values.append(["model.embed_tokens.weight", None, "embeddings", resolve(0, "model.embed_tokens.weight", 0)])
        for index, (start, length) in enumerate(zip(starts, lengths)):
            for block in range(length):
                t = block / (length - 1) if length > 1 else 1
                for part, component in zip(names, ("attention", "mlp", "norms")):
                    name = f"model.layers.{start + block}.{part}.weight"
                    values.append([name, start + block, component, resolve(index, name, t)])
        for name, component in (("model.norm.weight", "norms"), ("lm_head.weight", "head")):
            values.append([name, None, component, resolve(len(slices) - 1, name, 0)])
        found.append({"recipe": entries, "num_blocks": sum(lengths), "values": values})
    return found


def main() -> None:
    import torch
    from safetensors.torch import save_file

    golden: dict[str, Any] = {"mergekit": version("mergekit"), "torch": torch.__version__, "models": {}, "cases": []}
    stored: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for seed, model in enumerate(MODELS):
            config, tokenizer = config_json(model), tokenizer_json(MODELS[model][1])
            tensors = model_tensors(config, seed)
            write_model(root / model, config, tokenizer, tensors)
            golden["models"][model] = {"config": config, "tokenizer": tokenizer}
            stored |= {f"models/{model}/{key}": torch.from_numpy(tensor) for key, tensor in tensors.items()}
        for model, scale in (("near", 1e-4), ("nearer", 2e-4)):
            config, tokenizer = config_json("base"), tokenizer_json("bpe_ab")
            own = model_tensors(config, 77 + len(model))
            base = model_tensors(config, 0)
            tensors = {key: (base[key] + scale * own[key]).astype("float32") for key in base}
            write_model(root / model, config, tokenizer, tensors)
            golden["models"][model] = {"config": config, "tokenizer": tokenizer}
            stored |= {f"models/{model}/{key}": torch.from_numpy(tensor) for key, tensor in tensors.items()}
        for group, cases in (("stacks", STACKS), ("vocabularies", VOCABULARIES), ("parity", PARITY)):
            for title, text in cases.items():
                dtype = "" if group != "parity" else "dtype: float32\n" if "small" in title else "dtype: bfloat16\n"
                tensors, tokens, depth = merged(root, text + dtype)
                number = len(golden["cases"])
                golden["cases"].append(
                    {"group": group, "title": title, "recipe": text + dtype, "tokens": tokens, "num_blocks": depth}
                )
                stored |= {f"merged/{number}/{key}": tensor for key, tensor in tensors.items()}
    golden["settings"] = settings_cases(40)
    GOLDEN.with_suffix(".json").write_text(json.dumps(golden, indent=None) + "\n")
    save_file(stored, GOLDEN.with_suffix(".safetensors"))
    print(f"{len(golden['cases'])} merges by mergekit {golden['mergekit']} in {GOLDEN}.*")


if __name__ == "__main__":
    main()
