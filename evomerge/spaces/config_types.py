"""Types of the values in search space files."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

COUNT_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[int, Field(strict=True, ge=1)]


def parse_count(value: Any) -> Any:
    """A whole number from a text such as ``200M`` or ``1.5B``; anything else as it is."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGBT]?)\s*", value)
    if not match:
        raise ValueError(f"expected a number of parameters such as 200M or 7.2B, got {value!r}")
    return round(float(match[1]) * COUNT_UNITS[match[2]])


Count = Annotated[int, Field(strict=True, ge=1), BeforeValidator(parse_count)]


class Strict(BaseModel):
    """Unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
