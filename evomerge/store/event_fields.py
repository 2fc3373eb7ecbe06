"""Dataclasses to JSON data and back, for the run log. Floats keep every bit; NaN and infinities are refused."""

from __future__ import annotations

import dataclasses
import math
import operator
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np


class EventError(ValueError):
    """A line that is no event of this schema; the message says what is wrong with it."""


_known_hints: dict[Any, dict[str, tuple[Any, bool]]] = {}


def _hints(cls: Any) -> dict[str, tuple[Any, bool]]:
    """Field name -> (type, whether it must be given)."""
    if cls not in _known_hints:
        hints = typing.get_type_hints(cls)
        missing = dataclasses.MISSING
        _known_hints[cls] = {
            entry.name: (hints[entry.name], entry.default is missing and entry.default_factory is missing)
            for entry in dataclasses.fields(cls)
        }
    return _known_hints[cls]


def encode(value: Any, where: str) -> Any:
    """JSON data of a value; ``where`` names it in messages.

    Raises:
        ValueError: a NaN or an infinity, named with its field.
    """
    if dataclasses.is_dataclass(value):
        return {name: encode(getattr(value, name), f"{where}.{name}") for name in _hints(type(value))}
    if isinstance(value, Mapping):
        return {str(name): encode(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, tuple | list | np.ndarray):
        return [encode(item, where) for item in value]
    if value is None or isinstance(value, bool | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: only finite numbers go into the log")
        return float(value)
    return operator.index(value)


def decode(kind: Any, value: Any, where: str) -> Any:
    """The value of a type that JSON data stands for; the inverse of `encode`.

    Raises:
        EventError: the data do not fit the type.
    """
    if dataclasses.is_dataclass(kind):
        return _decode_fields(typing.cast("type[Any]", kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else decode(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        if arguments[0] is float and all(type(item) is float and math.isfinite(item) for item in value):
            return tuple(value)
        return tuple(decode(arguments[0], item, where) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {name: decode(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError as error:
            raise EventError(f"has {where} {value!r}, expected one of {[item.value for item in kind]}") from error
    if kind is float and type(value) in (float, int) and math.isfinite(value):
        return float(value)
    if kind is not float and type(value) is kind:
        return value
    raise EventError(f"has {where} {value!r:.80}, expected {getattr(kind, '__name__', kind)}")


def _decode_fields(cls: type[Any], value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise EventError(f"has {where} {value!r:.80}, expected an object")
    hints = _hints(cls)
    unknown = [name for name in value if name not in hints]
    missing = [name for name, (_, required) in hints.items() if required and name not in value]
    if unknown or missing:
        problems = [f"unknown field {name!r}" for name in unknown] + [f"no field {name!r}" for name in missing]
        raise EventError(f"has in {where} " + ", ".join(problems))
    return cls(**{name: decode(hints[name][0], item, f"{where}.{name}") for name, item in value.items()})
