"""Images of documents as a model's ``pixel_values``: from pixels in the document, image files, or arrays in files.

A document names its image in one of three ways. ``pixels``: nested lists ``(height, width)`` or ``(channels, height,
width)``. ``image``: an image file. ``array``: a safetensors or npz file that holds many images under ``images`` (or
``key``), ``(images, height, width)`` or ``(images, channels, height, width)``, with this one's ``index``. Paths are
relative to the documents' folder. What the model's ``preprocessor_config.json`` says (size, crop, rescaling, mean and
deviation) is done by transformers' own image processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evomerge.errors import UserError

PREPROCESSOR = "preprocessor_config.json"
KEPT_FILES = 4


@lru_cache(maxsize=KEPT_FILES)
def load_processor(directory: str) -> Any:
    """The image processor of a model directory.

    Raises:
        UserError: there is none, or transformers cannot read it.
    """
    from transformers import AutoImageProcessor

    path = Path(directory) / PREPROCESSOR
    if not path.is_file():
        raise UserError(f"{path}: missing; it says how images become the model's input. Copy it beside the model.")
    try:
        return AutoImageProcessor.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(f"{path}: transformers cannot read it ({str(error).strip().splitlines()[0]})") from error


def read_images(documents: Sequence[Mapping[str, Any]], folder: str, processor: Any) -> Tensor:
    """The images of some documents, ready for the model.

    Args:
        documents: each with ``pixels``, ``image`` or ``array``.
        folder: paths are relative to it.
        processor: of the model, see `load_processor`.

    Returns:
        ``(documents, channels, height, width)``.

    Raises:
        UserError: an image is not there or not of a shape that images have.
    """
    images = [_image(document, Path(folder)) for document in documents]
    if len(getattr(processor, "image_mean", None) or ()) == 3:  # a grey image for a model of colours
        images = [np.repeat(image, 3, axis=0) if len(image) == 1 else image for image in images]
    found = processor(images, return_tensors="pt", input_data_format="channels_first")
    pixels: Tensor = found["pixel_values"]
    return pixels


def _image(document: Mapping[str, Any], folder: Path) -> Any:
    """One image ``(channels, height, width)``."""
    if "pixels" in document:
        return _with_channels(np.asarray(document["pixels"]), "pixels")
    if "image" in document:
        return _read_file(folder / str(document["image"]))
    if "array" in document:
        path, key = folder / str(document["array"]), str(document.get("key", "images"))
        images, index = _read_arrays(str(path), key), int(document.get("index", -1))
        if not 0 <= index < len(images):
            raise UserError(f"{path}: holds {len(images)} images, the document's `index` is {index}")
        return _with_channels(images[index], str(path))
    raise UserError(f"a document needs `pixels`, `image` or `array`; this one has {', '.join(document)}")


def _read_file(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, ValueError) as error:  # missing, damaged, or of no known form
        raise UserError(f"{path}: cannot be read as an image ({error})") from error


@lru_cache(maxsize=KEPT_FILES)
def _read_arrays(path: str, key: str) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as arrays:
                return arrays[key]
        with safe_open(path, framework="pt") as tensors:
            return tensors.get_tensor(key).numpy()
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot read images under {key!r} ({error})") from error


def _with_channels(image: Any, where: str) -> Any:
    if image.dtype == object or image.ndim not in (2, 3) or not np.issubdtype(image.dtype, np.number):
        raise UserError(f"{where}: expected an image (height, width) or (channels, height, width)")
    if np.issubdtype(image.dtype, np.integer) and image.size and image.min() >= 0 and image.max() <= 255:
        image = image.astype(np.uint8)
    else:
        image = image.astype(np.float32)
    return image[None] if image.ndim == 2 else image
