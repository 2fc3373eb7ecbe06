"""Tokenizer, chat template and what else lies beside the weights of a merged model."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.engine.vocabulary import TOKENIZER_FILES, TokenPlan
from evomerge.errors import UserError
from evomerge.recipes.chat_templates import AUTO, TEMPLATES

TEMPLATE_FILE = "chat_template.jinja"
# Everything beside the weights that scoring or serving reads. Copied as it is from the recipe's reference.
COPIED = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
COPIED_TOKENIZER = (
    "tokenizer*.json", "tokenizer.model", "*.tiktoken", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "spiece.model", "sentencepiece*.model", TEMPLATE_FILE, "chat_template.json",
)  # fmt: skip

# Of models of no known class everything is copied but weights, which are merged or would not be the merged model's.
WEIGHT_FILES = (
    "*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx",
    "*.onnx_data",
)  # fmt: skip


def has_tokenizer(directory: Path) -> bool:
    """Whether a tokenizer lies in a model directory."""
    return any((directory / name).is_file() for name in TOKENIZER_FILES)


def copy_other_files(source: Path, directory: Path) -> None:
    """Copy all that lies beside the weights of a model of no known class, but hidden files."""
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        target = directory / path.relative_to(source)
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        is_weight = any(map(path.match, WEIGHT_FILES))
        if path.is_file() and not hidden and not is_weight and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def write_side_files(reference: Path, directory: Path, tokens: TokenPlan | None, template: str | None) -> None:
    """Copy or write everything but weights and configuration.

    Args:
        reference: directory of the model that lends the files.
        directory: the merged model's.
        tokens: its tokens, None where they are the reference's.
        template: chat template as Jinja, None = the reference's.
    """
    _copy(COPIED, reference, directory)
    if tokens is None:
        _copy(COPIED_TOKENIZER, reference, directory)
    else:
        tokens.tokenizer.save_pretrained(str(directory))
        generation = directory / "generation_config.json"
        if generation.is_file():
            settings = tokens.translated_ids(json.loads(generation.read_text()))
            generation.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    if template is not None:
        _write_template(template, directory)


def find_template(setting: str | None, reference: Path, sources: Sequence[Path]) -> str | None:
    """The Jinja text that a recipe's ``chat_template`` means, None where the reference's own is kept.

    Args:
        setting: ``auto``, a name, Jinja, or None.
        reference: directory of the model that lends the tokenizer.
        sources: directories of all models; ``auto`` takes their most common template, of equally many the first.

    Raises:
        UserError: no tokenizer to write it into, or not valid Jinja.
    """
    if setting is None:
        return None
    if not has_tokenizer(reference):
        raise UserError(f"{reference}: no tokenizer that a chat template could be written into")
    if setting == AUTO:
        found = [text.strip() for path in sources if (text := read_template(path))]
        return Counter(found).most_common(1)[0][0] if found else None
    if setting in TEMPLATES:
        return TEMPLATES[setting]
    _check_jinja(setting)
    return setting


def read_template(directory: Path) -> str | None:
    """The chat template of the tokenizer in a directory, None where it has none."""
    if (directory / TEMPLATE_FILE).is_file():
        return (directory / TEMPLATE_FILE).read_text()
    path = directory / "tokenizer_config.json"
    found: Any = json.loads(path.read_text()).get("chat_template") if path.is_file() else None
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found if isinstance(found, str) else None


def _check_jinja(template: str) -> None:
    import jinja2

    # Tags that transformers adds to the language.
    plain = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"recipe: chat_template: not valid Jinja, line {error.lineno}: {error.message}") from error


def _write_template(template: str, directory: Path) -> None:
    (directory / TEMPLATE_FILE).write_text(template)
    # An older place that would contradict it.
    (directory / "chat_template.json").unlink(missing_ok=True)
    path = directory / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text())
        if settings.pop("chat_template", None) is not None:
            path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _copy(patterns: Sequence[str], source: Path, directory: Path) -> None:
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and not (directory / path.name).exists():
                shutil.copyfile(path, directory / path.name)
