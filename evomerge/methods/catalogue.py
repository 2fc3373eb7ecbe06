"""Every merge method, as torch-free specs. A new method is one file and one entry in a list of specs.

A user's own needs no entry, see own_method.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from evomerge.errors import UserError, did_you_mean
from evomerge.methods.adapter_specs import ADAPTER_SPECS
from evomerge.methods.base import MergeMethod, MethodSpec
from evomerge.methods.model_specs import MODEL_SPECS
from evomerge.methods.modifier_specs import MODIFIER_SPECS
from evomerge.methods.optimised_specs import OPTIMISED_SPECS
from evomerge.methods.own_method import load_own_spec
from evomerge.methods.selection_specs import SELECTION_SPECS
from evomerge.methods.spectral_specs import SPECTRAL_SPECS
from evomerge.methods.task_vector_specs import TASK_VECTOR_SPECS
from evomerge.methods.whole_model_specs import WHOLE_MODEL_SPECS


def _collect(specs: Iterable[MethodSpec]) -> dict[str, MethodSpec]:
    collected: dict[str, MethodSpec] = {}
    for spec in specs:
        if spec.name in collected:
            raise ValueError(f"two methods are called {spec.name!r}: {spec.target}, {collected[spec.name].target}")
        collected[spec.name] = spec
    return collected


_ALL = (
    *MODEL_SPECS,
    *TASK_VECTOR_SPECS,
    *SELECTION_SPECS,
    *SPECTRAL_SPECS,
    *OPTIMISED_SPECS,
    *WHOLE_MODEL_SPECS,
    *MODIFIER_SPECS,
)
SPECS: dict[str, MethodSpec] = _collect(_ALL)  # on tensors
ALL_SPECS: dict[str, MethodSpec] = _collect((*_ALL, *ADAPTER_SPECS))


def get_spec(name: str) -> MethodSpec:
    """The spec of a merge method: one of evomerge's, or ``module:NAME`` in a user's file.

    Raises:
        UserError: there is no such method.
    """
    if ":" in name:
        return load_own_spec(name)
    if name not in ALL_SPECS:
        raise UserError(f"no merge method is called {name!r}. {did_you_mean(name, ALL_SPECS)}")
    return ALL_SPECS[name]


def load_method(name: str) -> MergeMethod:
    """The method itself; imports torch.

    Raises:
        UserError: there is no such method.
    """
    module_name, class_name = get_spec(name).target.split(":")
    method = getattr(importlib.import_module(module_name), class_name)()
    if not isinstance(method, MergeMethod):
        raise TypeError(f"{module_name}:{class_name} is not a MergeMethod")
    return method
