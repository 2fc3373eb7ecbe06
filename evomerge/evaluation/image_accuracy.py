"""Accuracy of an image model, document by document: the ``python:`` functions of vision experiments.

``image_accuracy`` is for classifiers with a head of their own, ``zero_shot_accuracy`` for CLIP's vision towers with a
fixed head of class embeddings. A document holds its image (see ``image_reading``) and its class in ``label``. Copy this
file as a start for your own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import UserError
from evomerge.evaluation.image_reading import load_processor, read_images

Documents = Sequence[Mapping[str, Any]]


def image_accuracy(
    model: Any, tokenizer: Any, documents: Documents, seed: int, *, folder: str = ".", batch_size: int = 32
) -> list[float]:
    """1 for each document whose class has the largest logit, else 0.

    Args:
        model: a transformers image classifier: takes ``pixel_values``, gives ``logits``.
        tokenizer: not used.
        documents: each with an image and ``label``, a number, or a name out of the model's ``label2id``.
        seed: not used; nothing is drawn.
        folder: of the documents' file.
        batch_size: images of one forward pass.
    """
    names = {str(name): int(index) for name, index in (model.config.label2id or {}).items()}
    labels = [_label(document, names, model.config.num_labels) for document in documents]
    return _share_right(model, documents, labels, folder, batch_size, lambda pixels: model(pixel_values=pixels).logits)


def zero_shot_accuracy(
    model: Any, tokenizer: Any, documents: Documents, seed: int, *, head: str, folder: str = ".", batch_size: int = 32
) -> list[float]:
    """1 for each document whose class embedding is the most alike to its image's embedding, else 0.

    The largest cosine is the largest dot product with class embeddings of length 1, whatever the image's length.

    Args:
        model: `CLIPModel`, `CLIPVisionModelWithProjection`, or `CLIPVisionModel` (then the head holds the projection).
        tokenizer: not used.
        documents: each with an image and ``label``, the number of its class.
        seed: not used; nothing is drawn.
        head: safetensors file with ``class_embeddings`` ``(classes, projected)`` and, for a tower without one,
            ``visual_projection`` ``(projected, hidden)``; relative to the folder.
        folder: of the documents' file.
        batch_size: images of one forward pass.
    """
    embeddings, projection = _read_head(str(Path(folder) / head))
    labels = [_label(document, {}, len(embeddings)) for document in documents]
    classes = embeddings.to(model.device)

    def logits(pixels: Tensor) -> Tensor:
        return _image_embeddings(model, pixels, projection) @ classes.T

    return _share_right(model, documents, labels, folder, batch_size, logits)


def _share_right(
    model: Any,
    documents: Documents,
    labels: Sequence[int],
    folder: str,
    batch_size: int,
    logits: Callable[[Tensor], Tensor],
) -> list[float]:
    right: list[float] = []
    with torch.inference_mode():
        for first in range(0, len(documents), batch_size):
            pixels = _pixels(documents[first : first + batch_size], folder, str(model.name_or_path))
            scores = logits(pixels.to(model.device, model.dtype)).float()
            if not bool(torch.isfinite(scores).all()):
                # A class would be named all the same, and a broken merge would look like a poor one.
                return [float("nan")] * len(documents)
            wanted = torch.tensor(labels[first : first + batch_size], device=scores.device)
            right += (scores.argmax(dim=-1) == wanted).float().tolist()
    return right


# Documents do not change from one candidate to the next: images are read once for each worker, as far as they fit.
_KEPT: dict[tuple[str, str, str], Tensor] = {}
MAX_KEPT_BYTES = 1 << 29


def _pixels(documents: Documents, folder: str, model_dir: str) -> Tensor:
    key = (folder, model_dir, hashlib.sha256(repr(documents).encode()).hexdigest())
    if (kept := _KEPT.get(key)) is not None:
        return kept
    found = read_images(documents, folder, load_processor(model_dir))
    if sum(tensor.nbytes for tensor in (*_KEPT.values(), found)) <= MAX_KEPT_BYTES:
        _KEPT[key] = found
    return found


def _image_embeddings(model: Any, pixels: Tensor, projection: Tensor | None) -> Tensor:
    if hasattr(model, "get_image_features"):
        found = model.get_image_features(pixel_values=pixels)
    else:
        found = model(pixel_values=pixels)
    if isinstance(found, Tensor):
        return found.float()
    if (embeddings := getattr(found, "image_embeds", None)) is not None:
        projected: Tensor = embeddings.float()
        return projected
    pooled: Tensor = found.pooler_output.float()
    if hasattr(model, "visual_projection"):  # transformers 5 returns what it projected as pooled output
        return pooled
    if projection is None:
        raise UserError(f"{type(model).__name__} does not project images: the head needs `visual_projection`")
    return pooled @ projection.to(pooled.device).T


@lru_cache(maxsize=16)
def _read_head(path: str) -> tuple[Tensor, Tensor | None]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as a head of class embeddings ({error})") from error
    if (found := tensors.get("class_embeddings")) is None or found.ndim != 2:
        raise UserError(f"{path}: needs `class_embeddings` (classes, projected); it has {', '.join(tensors) or 'none'}")
    embeddings = torch.nn.functional.normalize(found.float(), dim=-1)
    projection = tensors.get("visual_projection")
    return embeddings, None if projection is None else projection.float()


def _label(document: Mapping[str, Any], names: Mapping[str, int], num_labels: int) -> int:
    label = document.get("label")
    if isinstance(label, str) and label in names:
        return names[label]
    if isinstance(label, int) and 0 <= label < num_labels:
        return label
    known = f" or one of {', '.join(list(names)[:5])}, ..." if names else ""
    raise UserError(f"a document's `label` must be a number below {num_labels}{known}; got {label!r}")
