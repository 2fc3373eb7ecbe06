"""``kind: lineage``: merges of merges of seed models, cut anywhere, in place of a fixed list of genes.

A genotype is ``Lineage.genotype()``, of any length: boundaries among the flattened parameters, and the seeds'
coefficients between them. Only optimizers that merge seeds propose such genotypes (``m2n2``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, PrivateAttr

from evomerge.errors import InvalidInput, Problem, UserError, did_you_mean
from evomerge.recipes.recipe import Merge, Recipe, Rule, Source
from evomerge.recipes.tensor_layout import TensorLayout
from evomerge.recipes.validate import component_problems
from evomerge.search.lineage import Chromosome, Lineage
from evomerge.spaces.config_types import Strict
from evomerge.spaces.space import SpaceModels
from evomerge.terms import Array, Gene

REST = "rest"
METHOD = "linear"


class LineageConfig(Strict):
    """The keys of ``kind: lineage``.

    Attributes:
        kind: ``lineage``.
        description: for people.
        seeds: names of the experts that are merged, or ``base``; None = all experts.
        chromosomes: name to the components (or ``regex:`` patterns) of the tensors that a crossover splits on their
            own; ``rest`` = whatever no other has. None = all parameters are one.
    """

    kind: Literal["lineage"]
    description: str = ""
    seeds: list[str] | None = Field(default=None, min_length=1)
    chromosomes: dict[str, list[str] | Literal["rest"]] | None = Field(default=None, min_length=1)
    _where: str = PrivateAttr(default="search space")

    @property
    def where(self) -> str:
        """The file, as shown in errors."""
        return self._where

    def located(self, where: str) -> LineageConfig:
        """The same with the file's name for errors."""
        self._where = where
        return self

    def problems(self, where: str) -> list[Problem]:
        """Everything wrong that shows without the models."""
        return [Problem(f"{where}: {key}", message) for key, message in self._problems()]

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            yield "seeds", "a model is listed twice"
        elif self.seeds is not None and len(self.seeds) < 2:
            yield "seeds", f"one seed has nobody to be merged with; name two or more, got {self.seeds[0]!r}"
        groups = self.chromosomes or {}
        if sum(members == REST for members in groups.values()) > 1:
            yield "chromosomes", "only one chromosome can be the rest"
        for name, members in groups.items():
            for member in () if members == REST else members:
                for message in component_problems(member):
                    yield f"chromosomes.{name}", message


def build_lineage(config: LineageConfig, models: SpaceModels) -> LineageSpace | None:
    """The space over given models; None while they are not on this machine.

    Raises:
        InvalidInput: everything that does not fit the models.
    """
    known: dict[str, Any] = dict(models.experts)
    if models.base is not None:
        known.setdefault("base", models.base)
    names = list(models.names) if config.seeds is None else config.seeds
    problems = [
        Problem(f"{config.where}: seeds", f"there is no model {name!r}. {did_you_mean(name, known)}")
        for name in names
        if name not in known
    ]
    problems += [
        Problem(
            f"{config.where}: seeds",
            f"{name} is a merge, and seeds are models on disk: merge it to disk (evomerge merge) and use the directory",
        )
        for name in names
        if name in known and not isinstance(known[name], Source)
    ]
    if len(names) < 2:
        message = f"needs two seeds or more to merge, the experiment has {', '.join(names) or 'none'}"
        problems.append(Problem(f"{config.where}: seeds", message))
    chromosomes: tuple[Chromosome, ...] = ()
    if models.tensors and config.chromosomes is not None:
        chromosomes, found = _chromosomes(config, models)
        problems += found
    if problems:
        raise InvalidInput(problems)
    if not models.tensors:
        return None
    layout = TensorLayout((name, size) for (name, _), size in zip(models.tensors, models.sizes, strict=True))
    seeds = tuple((name, known[name]) for name in names)
    return LineageSpace(seeds, layout, chromosomes, models.base, models.dtype)


class LineageSpace:
    """Everything that seed models can be crossed into.

    Attributes:
        seeds: name and model of each.
        layout: their parameters in a row.
        chromosomes: parameters with split points of their own; empty = all are one.
    """

    def __init__(
        self,
        seeds: tuple[tuple[str, Source], ...],
        layout: TensorLayout,
        chromosomes: tuple[Chromosome, ...],
        base: Source | None,
        dtype: str | None,
    ) -> None:
        self.seeds, self.layout, self.chromosomes = seeds, layout, chromosomes
        self._base = base
        self._dtype = None if dtype in (None, "auto") else dtype

    @property
    def genes(self) -> tuple[Gene, ...]:
        """There are none."""
        return ()

    @property
    def gene_groups(self) -> Mapping[str, list[int]]:
        """There are none."""
        return {}

    @property
    def num_lanes(self) -> int:
        """No candidate is a route."""
        return 0

    def decode(self, genotype: Array) -> Recipe:
        """The recipe of a lineage: a seed itself where it is one, else a weighted sum by stretches.

        Raises:
            ValueError: no lineage, or one of other seeds.
        """
        lineage = Lineage.from_genotype(np.asarray(genotype, dtype=np.float64))
        if (lineage.num_seeds, lineage.size) != (len(self.seeds), self.layout.size):
            raise ValueError(
                f"a lineage of {lineage.num_seeds} seeds with {lineage.size} parameters; here are {len(self.seeds)} "
                f"with {self.layout.size}"
            )
        if lineage.noises:
            raise ValueError("a lineage with noise is no merge of its seeds")
        rows = lineage.coefficients.tolist()
        if len(rows) == 1 and sorted(rows[0]) == [0.0] * (len(self.seeds) - 1) + [1.0]:
            seed = self.seeds[rows[0].index(1.0)][1]
            return Recipe(seed, self._dtype, None if seed == self._base else self._base)
        stretches = self.layout.stretches(lineage.boundaries.tolist(), rows)
        merge = Merge(METHOD, self.seeds, parameters=(("normalize", (Rule(False),)),), stretches=stretches)
        return Recipe(merge, self._dtype, self._base)

    def encode(self, recipe: Recipe) -> Array:
        """The genotype of a recipe that ``decode`` gave.

        Raises:
            UserError: it is another merge, or one of other seeds.
        """
        models, node = [model for _, model in self.seeds], recipe.model
        if isinstance(node, Source) and node in models:
            return Lineage.of_seed(models.index(node), len(models), self.layout.size).genotype()
        if not isinstance(node, Merge) or node.stretches is None:
            raise UserError("the recipe is no merge by stretches of parameters")
        if node.experts != self.seeds or dict(node.parameters) != {"normalize": (Rule(False),)}:
            listed = ", ".join(name for name, _ in node.experts)
            raise UserError(f"the recipe merges {listed}, the seeds are {', '.join(name for name, _ in self.seeds)}")
        try:
            boundaries = self.layout.boundaries(node.stretches)
        except ValueError as error:
            raise UserError(f"the recipe does not fit the seeds: {error}") from None
        return Lineage(np.array(boundaries), np.array([part.value for part in node.stretches.parts])).genotype()

    def describe(self) -> str:
        """A few lines for a person."""
        names = ", ".join(name for name, _ in self.seeds)
        lines = [f"merges of merges of {names}, split anywhere among {self.layout.size:,} parameters"]
        lines += [f"  chromosome {group.name}: {group.size:,} parameters" for group in self.chromosomes]
        return "\n".join(lines)


def _chromosomes(config: LineageConfig, models: SpaceModels) -> tuple[tuple[Chromosome, ...], list[Problem]]:
    """The groups of tensors as stretches of parameters, and what is wrong with them."""
    assert config.chromosomes is not None
    where, groups = f"{config.where}: chromosomes", config.chromosomes
    rest = next((name for name, members in groups.items() if members == REST), None)
    stretches: dict[str, list[tuple[int, int]]] = {name: [] for name in groups}
    problems: list[Problem] = []
    start = 0
    for (tensor, component), size in zip(models.tensors, models.sizes, strict=True):
        own = [name for name, members in groups.items() if name != rest and _holds(members, tensor, component)]
        own = own or [rest] if rest is not None else own
        if len(own) != 1:
            found = f"{' and '.join(map(str, own))} hold it" if own else "none holds it; name one `rest`"
            problems.append(Problem(where, f"every tensor belongs to one chromosome, but of {tensor} {found}"))
        elif stretches[str(own[0])] and stretches[str(own[0])][-1][1] == start:
            first, _ = stretches[str(own[0])].pop()
            stretches[str(own[0])].append((first, start + size))
        else:
            stretches[str(own[0])].append((start, start + size))
        start += size
    if not problems:
        problems += [Problem(f"{where}.{name}", "holds no tensor") for name, found in stretches.items() if not found]
    return tuple(Chromosome(name, tuple(found)) for name, found in stretches.items()), problems[:3]


def _holds(members: list[str] | str, tensor: str, component: str) -> bool:
    return any(
        re.search(member[6:], tensor) is not None if member.startswith("regex:") else member == component
        for member in members
    )
