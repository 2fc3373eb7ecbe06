"""Accuracy of image models, on real tiny ones."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import UserError
from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.evaluator import EvaluatorSettings, build_evaluator
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.evaluation.image_accuracy import image_accuracy, zero_shot_accuracy
from evomerge.terms import FailureKind

PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": False, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 8, "patch_size": 4}  # fmt: skip
NUM_IMAGES = 7


def saved(model: Any, folder: Path) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "position" not in name:  # what is alike in all images would drown them
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return type(model).from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    names = {0: "cat", 1: "dog", 2: "newt"}
    config = ViTConfig(**VISION, id2label=names, label2id={name: index for index, name in names.items()})
    return saved(ViTForImageClassification(config), tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 3, 8, 8), dtype=np.uint8)


def as_input(images: Any) -> torch.Tensor:
    return (torch.tensor(images, dtype=torch.float32) / 255 - 0.5) / 0.25


def documents(kind: str, images: Any, folder: Path) -> list[dict[str, Any]]:
    from PIL import Image
    from safetensors.numpy import save_file

    if kind == "pixels":
        return [{"pixels": image.tolist()} for image in images]
    if kind == "npz":
        np.savez(folder / "all.npz", images=images)
        return [{"array": "all.npz", "index": index} for index in range(NUM_IMAGES)]
    if kind == "safetensors":
        save_file({"mine": images}, folder / "all.safetensors")
        return [{"array": "all.safetensors", "key": "mine", "index": index} for index in range(NUM_IMAGES)]
    for index, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{index}.png")
    return [{"image": f"{index}.png"} for index in range(NUM_IMAGES)]


@pytest.mark.parametrize("kind", ["pixels", "npz", "safetensors", "png"])
def test_documents_score_as_the_plain_model_does(kind: str, vit: Any, images: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        best = vit(pixel_values=as_input(images)).logits.argmax(-1).tolist()
    labels = [label if index % 2 else (label + 1) % 3 for index, label in enumerate(best)]
    listed = [{**document, "label": label} for document, label in zip(documents(kind, images, tmp_path), labels)]
    found = image_accuracy(vit, None, listed, 0, folder=str(tmp_path), batch_size=3)
    assert found == [float(index % 2) for index in range(NUM_IMAGES)]
    named = [{**document, "label": vit.config.id2label[document["label"]]} for document in listed]
    assert image_accuracy(vit, None, named, 0, folder=str(tmp_path)) == found


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"pixels": [[0] * 8] * 8, "label": 3}, "a number below 3 or one of cat, dog"),
        ({"pixels": [[0] * 8] * 8, "label": "bird"}, "got 'bird'"),
        ({"picture": "x.png", "label": 0}, "needs `pixels`, `image` or `array`; this one has picture, label"),
        ({"image": "gone.png", "label": 0}, "gone.png: cannot be read as an image"),
        ({"array": "gone.npz", "index": 0, "label": 0}, "gone.npz: cannot read images"),
        ({"pixels": [1, 2], "label": 0}, "expected an image"),
    ],
)
def test_bad_documents_are_told(document: dict[str, Any], told: str, vit: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        image_accuracy(vit, None, [document], 0, folder=str(tmp_path))


def evaluator_of(model: Any, folder: Path, listed: list[dict[str, Any]], **spec: Any) -> Any:
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, listed)))
    roles = {"search": {"path": "documents.jsonl"}}
    configs = load_fitness({"name": "images", "documents": roles, **spec}, base_dir=folder)
    evaluator = build_evaluator(configs, plan_documents(configs), EvaluatorSettings())
    evaluator.bind(model, None)
    return evaluator


def test_a_broken_model_is_a_failure_and_no_class(vit: Any, images: Any, tmp_path: Path) -> None:
    from copy import deepcopy

    listed = [{**document, "label": 0} for document in documents("pixels", images, tmp_path)]
    python = "evomerge.evaluation.image_accuracy:image_accuracy"
    evaluator = evaluator_of(broken := deepcopy(vit), tmp_path, listed, python=python)
    assert evaluator.evaluate("search").ok
    with torch.no_grad():
        broken.classifier.weight.fill_(float("nan"))
    failure = evaluator.evaluate("search").failure
    assert failure.kind is FailureKind.NON_FINITE


def test_a_text_task_refuses_an_image_model(vit: Any, tmp_path: Path) -> None:
    configs = load_fitness("micro_add")
    evaluator = build_evaluator(configs, plan_documents(configs), EvaluatorSettings())
    with pytest.raises(UserError) as caught:
        evaluator.bind(vit, None)
    assert "fitness micro_add" in str(caught.value)
    assert "this ViTForImageClassification has no tokenizer beside it and does not predict tokens" in str(caught.value)
    assert "python:" in str(caught.value)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import CLIPConfig, CLIPModel

    text = {**VISION, "vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": 0}  # fmt: skip
    vision = {**VISION, "projection_dim": 8}  # which a tower loaded alone reads
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    return saved(CLIPModel(config), tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("kind", ["clip", "projected", "tower"])
def test_zero_shot_is_what_the_whole_clip_says(kind: str, clip: Any, images: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

    prompts = torch.tensor([[1, 5 + 4 * index, 6 + 4 * index, 2] for index in range(12)])
    with torch.no_grad():
        logits = clip(input_ids=prompts, pixel_values=as_input(images)).logits_per_image
        texts = clip.text_projection(clip.text_model(input_ids=prompts).pooler_output)
    best = logits.argmax(-1).tolist()
    assert len(set(best)) > 1
    head = {"class_embeddings": texts.contiguous()}
    model = clip
    if kind != "clip":
        model_class = CLIPVisionModelWithProjection if kind == "projected" else CLIPVisionModel
        model = model_class.from_pretrained(clip.name_or_path).eval()
    if kind == "tower":
        head["visual_projection"] = clip.visual_projection.weight.detach().contiguous()
    save_file(head, tmp_path / "head.safetensors")
    labels = [label if index % 2 else (label + 1) % 12 for index, label in enumerate(best)]
    listed = [{**document, "label": label} for document, label in zip(documents("png", images, tmp_path), labels)]
    found = zero_shot_accuracy(model, None, listed, 0, head="head.safetensors", folder=str(tmp_path), batch_size=3)
    assert found == [float(index % 2) for index in range(NUM_IMAGES)]


def test_a_tower_without_a_projection_is_told_what_the_head_lacks(clip: Any, images: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import CLIPVisionModel

    save_file({"class_embeddings": torch.eye(8)}, tmp_path / "head.safetensors")
    tower = CLIPVisionModel.from_pretrained(clip.name_or_path).eval()
    listed = [{**document, "label": 0} for document in documents("pixels", images, tmp_path)]
    with pytest.raises(UserError, match="the head needs `visual_projection`"):
        zero_shot_accuracy(tower, None, listed, 0, head="head.safetensors", folder=str(tmp_path))
    with pytest.raises(UserError, match="cannot be read as a head"):
        zero_shot_accuracy(tower, None, listed, 0, head="gone.safetensors", folder=str(tmp_path))


def test_the_script_writes_a_head_and_a_base_that_score(clip: Any, images: Any, tmp_path: Path) -> None:
    from transformers import CLIPVisionModel

    from tests.unit.engine.conftest import save_tokenizer

    source = tmp_path / "source"
    shutil.copytree(clip.name_or_path, source)
    save_tokenizer(source)
    names = [f"w{index}" for index in range(1, 8)]
    (tmp_path / "classes").mkdir()
    described = {"templates": ["w20 w21 {}", "{} w22 w23"], "classes": names}
    (tmp_path / "classes" / "newts.json").write_text(json.dumps(described))
    script = runpy.run_path(str(Path(__file__).resolve().parents[3] / "scripts" / "make_clip_heads.py"))
    script["write"](str(source), tmp_path)

    pairs = torch.tensor([[[24, 25, 4 + index], [4 + index, 26, 27]] for index in range(1, 8)])
    with torch.no_grad():
        texts = clip.text_projection(clip.text_model(input_ids=pairs.flatten(0, 1)).pooler_output)
        each = torch.nn.functional.normalize(texts, dim=-1).view(7, 2, -1)
        classes = torch.nn.functional.normalize(each.mean(1), dim=-1)
        features = clip.visual_projection(clip.vision_model(pixel_values=as_input(images)).pooler_output)
    best = (features @ classes.T).argmax(-1).tolist()
    assert len(set(best)) > 1
    listed = [{**document, "label": label} for document, label in zip(documents("png", images, tmp_path), best)]
    tower = CLIPVisionModel.from_pretrained(tmp_path / "base").eval()
    found = zero_shot_accuracy(tower, None, listed, 0, head="newts.head.safetensors", folder=str(tmp_path))
    assert found == [1.0] * NUM_IMAGES
