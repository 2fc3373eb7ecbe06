"""What a file may say about each of several objectives that one ``python:`` function returns."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Direction = Literal["maximize", "minimize"]


class ObjectiveConfig(BaseModel):
    """One objective: a direction, or a mapping with more.

    Attributes:
        direction: ``maximize`` or ``minimize``.
        weight: share in weighted means; None = the fitness's.
        reference: the worst value worth counting, natural direction; hypervolume is measured from there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    direction: Direction = "maximize"
    weight: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    reference: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"direction": value} if isinstance(value, str) else value


# A list of names, all in the fitness's direction, or a mapping from name to what is said about it.
ObjectiveList = tuple[str, ...] | dict[str, ObjectiveConfig]


def said_of(objectives: ObjectiveList, name: str) -> ObjectiveConfig | None:
    """What the mapping form says about an objective; None in the list form."""
    return objectives[name] if isinstance(objectives, dict) else None
