"""What to tell when a model does not fit the others: which tensors, what was expected, and the way out."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.engine.architecture import FILES_ONLY, Architecture, Slot

MAX_LISTED = 3

Shapes = Sequence[tuple[Slot, tuple[int, ...]]]


def missing_tensors(missing: Sequence[str], architecture: Architecture, model_type: str, others: Sequence[str]) -> str:
    """A model lacks tensors.

    Args:
        missing: names of the tensors.
        architecture: what the model should be.
        model_type: what its configuration says it is.
        others: names of tensors in its files that nothing was found for.
    """
    count = f"{len(missing)} of {len(architecture.slots)} tensors"
    kind = "reference" if architecture.model_type == FILES_ONLY else architecture.model_type
    text = f"lacks {count} of the {kind} model: {some(missing)}."
    if others:
        text += f" Its files hold other tensors ({some(others)})."
    if model_type != architecture.model_type:
        return (
            f"{text} It is a {model_type} model; all models of a merge need one architecture. A model that is only a "
            "part of the others is given as {model: ..., into: <that part, for example language_model>}."
        )
    return f"{text} Is it a complete model of the same size?"


def unconverted_tensors(names: Sequence[str], reason: str) -> str:
    """Stored tensors could not be turned into those of the model."""
    return f"transformers cannot make {some(names)} from the stored tensors ({reason}). Is the checkpoint complete?"


def other_shapes(shapes: Shapes, architecture: Architecture, model_type: str) -> str:
    """Tensors have other shapes than the reference's."""
    listed = some([f"{slot.name} is {shape_text(shape)}, expected {shape_text(slot.shape)}" for slot, shape in shapes])
    vocabulary = [(slot, shape) for slot, shape in shapes if slot.is_vocabulary and slot.shape[1:] == shape[1:]]
    if len(vocabulary) == len(shapes):
        slot, shape = vocabulary[0]
        return (
            f"{listed}. Only the vocabulary differs: {shape[0]} tokens, expected {slot.shape[0]}. Give the "
            "recipe `tokenizer: union` (the tokens of all models) or `tokenizer: base`, or choose models that share a "
            "tokenizer."
        )
    hint = "" if model_type == architecture.model_type else f" It is a {model_type} model."
    return f"{listed}.{hint} All models of a merge need the same sizes; are they fine-tunes of one base model?"


def part_without_place(path: str, unused: Sequence[str], known: Sequence[str]) -> str:
    """A part's tensors have no place in the whole model."""
    parts = f" Its parts: {', '.join(known)}." if known else ""
    return f"the whole model has no place under {path!r} for its tensors {some(unused)}.{parts}"


def some(names: Sequence[str]) -> str:
    """The first few of a list."""
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape for a person."""
    return "[" + ", ".join(map(str, shape)) + "]"
