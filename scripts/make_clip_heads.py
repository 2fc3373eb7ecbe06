"""Class embeddings of zero-shot image tasks, once, with a CLIP model's text tower; and its vision tower as a base.

    python scripts/make_clip_heads.py MODEL FOLDER

reads FOLDER/classes/<task>.json, ``{"templates": ["a photo of a {}."], "classes": ["cat", "dog"]}``, and writes
FOLDER/<task>.head.safetensors (`class_embeddings`, and `visual_projection` for towers that have none) and FOLDER/base,
the vision tower with its preprocessor. A class's embedding is the mean over the templates of embeddings of length 1, as
in Radford et al. 2021, section 3.1.4.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def class_embeddings(model: Any, tokenizer: Any, templates: list[str], classes: list[str]) -> torch.Tensor:
    """``(classes, projected)``, each of length 1."""
    rows = []
    for name in classes:
        tokens = tokenizer([template.format(name) for template in templates], padding=True, return_tensors="pt")
        with torch.no_grad():
            pooled = model.text_model(**tokens).pooler_output
            each = torch.nn.functional.normalize(model.text_projection(pooled), dim=-1)
        rows.append(torch.nn.functional.normalize(each.mean(0), dim=-1))
    return torch.stack(rows).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="CLIP model with text tower: hub id or directory")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write(arguments.model, arguments.folder)


def write(source: str, folder: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel, CLIPVisionModel
    from transformers.utils import cached_file

    descriptions = sorted((folder / "classes").glob("*.json"))
    if not descriptions:
        raise SystemExit(f'{folder / "classes"}: no <task>.json with {{"templates": [...], "classes": [...]}}')
    model, tokenizer = CLIPModel.from_pretrained(source).float().eval(), AutoTokenizer.from_pretrained(source)
    for path in descriptions:
        described = json.loads(path.read_text())
        head = {
            "class_embeddings": class_embeddings(model, tokenizer, described["templates"], described["classes"]),
            "visual_projection": model.visual_projection.weight.detach().contiguous(),
        }
        save_file(head, folder / f"{path.stem}.head.safetensors")
        print(f"{path.stem}: {len(described['classes'])} classes, {len(described['templates'])} templates")
    CLIPVisionModel.from_pretrained(source).save_pretrained(folder / "base")
    shutil.copyfile(cached_file(source, "preprocessor_config.json"), folder / "base" / "preprocessor_config.json")


if __name__ == "__main__":
    main()
