"""Models of one architecture and several depths: those of each depth opened together, and known to share all else."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from evomerge.engine.adapted_config import read_sizes
from evomerge.engine.architecture import Architecture, load_config
from evomerge.engine.fit_problems import shape_text
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.sources import resolve_source
from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Source

_logger = logging.getLogger(__name__)

SIZES = (
    "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
)  # fmt: skip
# What a configuration says once for all blocks although blocks were trained with it.
WIDE_SETTINGS = re.compile(r"(eps|epsilon|rope|rotary|act$|act_|activation|softcap|scalar|multiplier|sliding_window$)")


class DepthGroups:
    """The models that recipes may name, by depth.

    Attributes:
        main: those as deep as the reference.
        any_depth: whether deeper and shallower models were expected.
    """

    def __init__(self, reference: Source, sources: Iterable[Source], any_depth: bool = True) -> None:
        """Open every source and check that they fit.

        Args:
            reference: lends the architecture.
            sources: further models.
            any_depth: whether they may be of another depth. Those that only recipes name may in any case.

        Raises:
            InvalidInput: models that are missing, broken or do not fit, all at once.
        """
        self.reference, self.any_depth = reference, any_depth
        self._warned: set[Source] = set()
        self._of: dict[Source, OpenModels] = {}
        self._groups: dict[int, OpenModels] = {}
        alike: list[Source] = []
        others: dict[int, list[Source]] = {}
        depth = _depth(reference)
        for source in dict.fromkeys(sources):
            found = _depth(source) if any_depth else depth
            if found in (None, depth) or depth is None:
                alike.append(source)
            else:
                others.setdefault(found, []).append(source)
        problems: list[Problem] = []
        try:
            self.main = OpenModels(reference, alike)
        except InvalidInput as error:
            problems.extend(error.problems)
            self.main = OpenModels(reference, ())
        for number, found_sources in others.items():
            try:
                self._groups[number] = self._open(found_sources)
            except InvalidInput as error:
                problems.extend(error.problems)
        if problems:
            raise InvalidInput(problems)
        if len({group.architecture.is_tied for group in self.all}) > 1:
            # One untied model makes the live model untied.
            self.main = OpenModels(reference, self.main.sources[1:], tie=False)
            self._groups = {
                number: OpenModels(group.sources[0], group.sources[1:], tie=False)
                for number, group in self._groups.items()
            }
        self._check(self._groups.values())

    @property
    def all(self) -> tuple[OpenModels, ...]:
        """Every group, the reference's first."""
        return (self.main, *self._groups.values())

    def of(self, source: Source) -> OpenModels:
        """The group of a source, which is opened now if no one announced it.

        Raises:
            UserError: it is not there or does not fit the others.
        """
        if source not in self._of:
            self._of[source] = self._find(source)
        return self._of[source]

    def _find(self, source: Source) -> OpenModels:
        depth = _depth(source)
        if depth is None or depth == _depth(self.reference):
            self.main.get(source)
            return self.main
        if depth in self._groups:
            self._groups[depth].get(source)
        else:
            group = self._open([source])
            self._check([group])
            self._groups[depth] = group
        return self._groups[depth]

    def depth(self, source: Source) -> int:
        """Number of blocks of a source."""
        return first_stack_depth(self.of(source).architecture)

    def warn_of_other_settings(self, source: Source) -> None:
        """Say once of a source that the reference's settings are used where its blocks were trained with others."""
        if source in self._warned or source == self.reference:
            return
        self._warned.add(source)
        mine, its = (
            load_config(resolve_source(model)).get_text_config().to_dict() for model in (self.reference, source)
        )
        apart = [name for name in mine if WIDE_SETTINGS.search(name) and mine[name] != its.get(name)]
        if apart:
            listed = ", ".join(f"{name} ({its.get(name)}, not {mine[name]})" for name in apart)
            _logger.warning("blocks of %s run with the settings of %s: %s", source, self.reference, listed)

    def _open(self, sources: Sequence[Source]) -> OpenModels:
        problems = [problem for source in sources if (problem := self._unlike(source)) is not None]
        if problems:
            raise InvalidInput(problems)
        tie = None if self.main.architecture.is_tied or not self.main.architecture.tied else False
        return OpenModels(sources[0], sources[1:], tie=tie)

    def _check(self, groups: Iterable[OpenModels]) -> None:
        problems = [problem for group in groups if (problem := _unlike_tensors(self.main, group)) is not None]
        if problems:
            raise InvalidInput(problems)

    def _unlike(self, source: Source) -> Problem | None:
        """What of a model's configuration keeps its blocks out of the reference, beside its depth."""
        mine, its = (load_config(resolve_source(model)) for model in (self.reference, source))
        if its.model_type != mine.model_type:
            apart = [f"it is a {its.model_type} model, {self.reference} a {mine.model_type} model"]
        else:
            mine, its = mine.get_text_config(), its.get_text_config()
            pairs = [(name, _number(its, name), _number(mine, name)) for name in SIZES]
            apart = [
                f"its {name} is {found}, that of {self.reference} is {wanted}"
                for name, found, wanted in pairs
                if found != wanted
            ]
        if not apart:
            return None
        hint = "; models of a recipe may differ in depth only, and only in a route"
        return Problem(f"model {source}", "; ".join(apart) + hint)


def first_stack_depth(architecture: Architecture) -> int:
    """Number of blocks that hops count."""
    return architecture.stacks[0].count if architecture.stacks else architecture.num_blocks


def _unlike_tensors(main: OpenModels, group: OpenModels) -> Problem | None:
    mine, its = (_shapes(models.architecture) for models in (main, group))
    for name in dict.fromkeys((*mine, *its)):
        if mine.get(name) != its.get(name):
            found, wanted = (shape_text(shapes[name]) if name in shapes else "absent" for shapes in (its, mine))
            text = f"{name} is {found}, in {main.reference} it is {wanted}; blocks of both cannot run in one model"
            return Problem(f"model {group.reference}", text)
    return None


def _shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors outside the blocks and in the first block; tensors of later stacks by their own names."""
    return {slot.name: slot.shape for slot in architecture.slots if slot.block in (None, 0)}


def _depth(source: Source) -> int | None:
    """Number of blocks, None where the configuration does not tell or the source is only a part of a model."""
    if source.into is not None:
        return None
    try:
        return read_sizes(resolve_source(source)).num_blocks
    except UserError:
        return None


def _number(config: Any, name: str) -> Any:
    return getattr(config, name, None)
