"""The genes of one searched hyperparameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import UserError
from evomerge.methods.base import Hyperparameter
from evomerge.recipes.recipe import Rule, Scalar
from evomerge.spaces.groups import Grid
from evomerge.spaces.simplex import coordinates_of, weights_of
from evomerge.terms import Gene, GeneKind


@dataclass(frozen=True)
class SearchedParameter:
    """One hyperparameter, its cells, and how genes become its values.

    Attributes:
        parameter: what is searched.
        grid: the groups of tensors that have a value of their own.
        experts: names of the experts with a value of their own; ``(None,)`` = one value for all.
        on_simplex: only ratios count; the genes are stick-breaking coordinates (see simplex.py).
        low: smallest value of a number.
        high: largest value of a number.
        choices: values of a category.
        initial: start value of each of ``experts``.
    """

    parameter: Hyperparameter
    grid: Grid
    experts: tuple[str | None, ...]
    on_simplex: bool
    low: float
    high: float
    choices: tuple[Scalar, ...]
    initial: Mapping[str | None, Scalar]

    @property
    def name(self) -> str:
        """Name of the hyperparameter."""
        return self.parameter.name

    @property
    def gene_experts(self) -> tuple[str | None, ...]:
        """The experts that have genes: on the simplex the last one takes what the others leave."""
        return self.experts[:-1] if self.on_simplex else self.experts

    def group_name(self, expert: str | None) -> str:
        """Name of the genes of one expert together."""
        stem = f"{self.name}_share" if self.on_simplex else self.name
        return stem if expert is None else f"{stem}/{expert}"

    def genes(self) -> list[Gene]:
        """The genes, expert by expert, in each cell by cell."""
        start: Sequence[float]
        if self.on_simplex:
            start = coordinates_of([float(self.initial[expert]) for expert in self.experts])
        else:
            start = [self._coordinate(self.initial[expert]) for expert in self.experts]
        found = []
        for expert, initial in zip(self.gene_experts, start):
            for label in self.grid.labels:
                name = "/".join(part for part in (self.group_name(expert), label) if part)
                found.append(self._gene(name, initial))
        return found

    def _gene(self, name: str, initial: float) -> Gene:
        if self.choices:
            texts = tuple(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in self.choices)
            return Gene(name, GeneKind.CATEGORY, 0, len(texts) - 1, initial, texts)
        kind = GeneKind.INTEGER if self.parameter.kind == "int" else GeneKind.REAL
        low, high = (0.0, 1.0) if self.on_simplex else (self.low, self.high)
        return Gene(name, kind, low, high, initial)

    def rules(self, genes: Sequence[float]) -> tuple[Rule, ...]:
        """The rules that the values of the genes amount to."""
        cells = len(self.grid.labels)
        columns = [genes[index * cells : (index + 1) * cells] for index in range(len(self.gene_experts))]
        values: dict[str | None, Sequence[Scalar]]
        if self.on_simplex:
            weights = [weights_of(cell) for cell in zip(*columns)] if columns else [(1.0,)] * cells
            values = dict(zip(self.experts, zip(*weights)))
        else:
            values = {expert: [self._value(gene) for gene in column] for expert, column in zip(self.experts, columns)}
        return tuple(self.grid.rules(values))

    def coordinates(self, rules: Sequence[Rule]) -> list[float]:
        """The values of the genes that give these rules, the nearest ones where the rules are finer than the genes.

        Raises:
            UserError: a value is missing, of the wrong type or outside the bounds.
        """
        columns = [[self._checked(value) for value in self.grid.values(rules, expert)] for expert in self.experts]
        if self.on_simplex:
            cells = [coordinates_of([float(value) for value in cell]) for cell in zip(*columns)]
            return [gene for column in zip(*cells) for gene in column]
        return [self._coordinate(value) for column in columns for value in column]

    def _value(self, gene: float) -> Scalar:
        if self.choices:
            return self.choices[round(gene)]
        return round(gene) if self.parameter.kind == "int" else float(gene) + 0.0

    def _coordinate(self, value: Scalar) -> float:
        return float(self.choices.index(value)) if self.choices else float(value)

    def _checked(self, value: Scalar | None) -> Scalar:
        value = self.parameter.default if value is None else value
        if value is None:
            raise UserError(f"the recipe gives no {self.name}")
        if self.choices:
            if value not in self.choices:
                raise UserError(f"the recipe's {self.name} {value!r} is none of {', '.join(map(str, self.choices))}")
            return value
        number = float(value)
        if self.on_simplex:
            if number < 0:
                raise UserError(f"the recipe's {self.name} {number:g} is negative; on the simplex none is")
            return number
        if not self.low <= number <= self.high and not math.isclose(number, min(max(number, self.low), self.high)):
            raise UserError(f"the recipe's {self.name} {number:g} lies outside {self.low:g} to {self.high:g}")
        return min(max(number, self.low), self.high)

    def describe(self) -> str:
        """One line for a person."""
        per = "" if self.experts == (None,) else f" for each of {len(self.experts)} experts"
        cells = len(self.grid.labels)
        where = f" in {cells} groups" if cells > 1 else ""
        if self.grid.smooth and self.grid.num_groups > 1:
            where = f", {cells} values at {self.grid.num_groups} knots, interpolated between"
        if self.choices:
            return f"{self.name}{per}{where}: one of {', '.join(map(str, self.choices))}"
        starts = dict.fromkeys(format(float(value), ".4g") for value in self.initial.values())
        span = "summing to 1 (only ratios count)" if self.on_simplex else f"{self.low:g} to {self.high:g}"
        return f"{self.name}{per}{where}: {span}, starting at {' / '.join(starts)}"
