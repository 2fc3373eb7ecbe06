"""A model that is one part of a larger one: a text model and the language part of a vision-language model."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.engine.architecture import Architecture


@dataclass(frozen=True)
class PartMap:
    """Tensors of the whole model and of the part that belong together.

    Attributes:
        own_names: name in the whole model to name in the part.
        missing: names of the whole model's tensors that lie in the part and that the part's model does not have.
        unused: names of the part's tensors that the whole model has no place for.
    """

    own_names: dict[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def map_part(whole: Architecture, own: Architecture, path: str) -> PartMap:
    """Find the tensors of a model inside a larger one.

    Args:
        whole: the larger model.
        own: the model that is a part of it.
        path: modules of the larger model that are the part, for example ``language_model``. Its output head may lie
            outside of them.
    """
    prefix = str(getattr(own.model, "base_model_prefix", "")) + "."
    head = _head(own)
    own_names: dict[str, str] = {}
    missing = []
    for slot in whole.slots:
        inside = _inside(slot.name, path)
        if inside is not None:
            found = next((name for name in (inside, prefix + inside) if name in own.by_name), None)
            if found is None and head is not None and slot.component == "head":
                found = head
            if found is None:
                missing.append(slot.name)
            else:
                own_names[slot.name] = found
        elif slot.component == "head" and head is not None:
            own_names[slot.name] = head
    used = set(own_names.values())
    unused = tuple(slot.name for slot in own.slots if slot.name not in used and slot.name != head)
    return PartMap(own_names, tuple(missing), unused)


def part_names(whole: Architecture) -> tuple[str, ...]:
    """Module paths that a part may have: what the lists of blocks lie in."""
    parents = [stack.name.rpartition(".")[0] for stack in whole.stacks]
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in parents if name))


def _inside(name: str, path: str) -> str | None:
    at = f".{name}".find(f".{path}.")
    return None if at < 0 else name[at + len(path) + 1 :]


def _head(own: Architecture) -> str | None:
    heads = [slot.name for slot in own.slots if slot.component == "head"]
    return heads[0] if heads else next((name for name, _ in own.tied), None)
