"""Methods that a user wrote: ``module:NAME`` names a spec in a Python file, and nothing of evomerge has to change."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from evomerge.errors import UserError, did_you_mean
from evomerge.methods.base import MethodSpec


@lru_cache(maxsize=64)
def load_own_spec(name: str) -> MethodSpec:
    """The spec that ``module:NAME`` names, under that name.

    Raises:
        UserError: the module cannot be imported, or holds no such spec.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise UserError(
            f"merge method {name!r}: cannot import {module_name!r} ({type(error).__name__}: {error}). "
            "Put its folder into the experiment's import_paths, or on PYTHONPATH"
        ) from None
    spec = getattr(module, attribute, None)
    if not isinstance(spec, MethodSpec):
        known = [key for key, value in vars(module).items() if isinstance(value, MethodSpec)]
        raise UserError(
            f"merge method {name!r}: {module_name!r} has no MethodSpec {attribute!r}. {did_you_mean(attribute, known)}"
        )
    return replace(spec, name=name)


def source_fingerprint(name: str) -> str:
    """Hash of the file that holds a user's method, "" where there is no file.

    Raises:
        UserError: see load_own_spec.
    """
    module = importlib.import_module(load_own_spec(name).target.partition(":")[0])
    path = inspect.getsourcefile(module)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else ""
