"""Lists among the genes (``Gene.sequence``): their compact form, small edits, and crossover.

A list is handled as what stands in it: a tuple of choices, at most as many as it has places. In a genotype the list is
compact when the places where nothing stands are its last ones, so equal lists are equal genotypes.

Edits work on short runs, of one place half of the time, of two places a quarter, and so on. Crossover cuts both
parents where the same choice stands, if it can, so that what follows a block in a child followed it in a parent.

References: cut and splice of lists of any length: Goldberg, Korb and Deb 1989, Messy genetic algorithms, Complex
Systems 3(5); cutting where the parents are alike: Hutt and Warwick 2007, Synapsing variable-length crossover, IEEE
Transactions on Evolutionary Computation 11(1); insertion, inversion and exchange as mutations of orders: Eiben and
Smith 2015, Introduction to Evolutionary Computing, section 4.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.terms import Array, Gene, GeneKind

Items = tuple[int, ...]

MAX_STEP = 2  # how far a neighbouring choice may be from the one it replaces


@dataclass(frozen=True)
class GeneList:
    """One list.

    Attributes:
        places: positions of its genes in the genotype, in list order.
        num_choices: what can stand in a place; the choice of that number means nothing.
    """

    places: tuple[int, ...]
    num_choices: int

    def items(self, genotype: Array) -> Items:
        """What stands in the list, in order."""
        return tuple(int(value) for value in genotype[list(self.places)] if int(value) != self.num_choices)

    def write(self, items: Items, genotype: Array) -> None:
        """Put a list into a genotype ``(G,)``, in its compact form."""
        assert len(items) <= len(self.places)
        genotype[list(self.places)] = items + (self.num_choices,) * (len(self.places) - len(items))


def find_lists(genes: Sequence[Gene]) -> tuple[GeneList, ...]:
    """The lists among the genes, in the order of their first places.

    Raises:
        ValueError: the genes of a list are not categories with the same choices.
    """
    by_name: dict[str, list[int]] = {}
    for place, gene in enumerate(genes):
        if gene.sequence:
            by_name.setdefault(gene.sequence, []).append(place)
    for name, places in by_name.items():
        if any(
            genes[at].kind is not GeneKind.CATEGORY or genes[at].choices != genes[places[0]].choices for at in places
        ):
            raise ValueError(f"the genes of list {name!r} must be categories with the same choices")
    return tuple(GeneList(tuple(places), len(genes[places[0]].choices) - 1) for places in by_name.values())


def random_items(the_list: GeneList, rng: np.random.Generator) -> Items:
    """A list of any length with any choices."""
    length = int(rng.integers(len(the_list.places) + 1))
    return tuple(int(choice) for choice in rng.integers(the_list.num_choices, size=length))


def edit(items: Items, the_list: GeneList, rng: np.random.Generator) -> Items:
    """A list one small edit away: all kinds of edits that are possible have the same chance.

    Args:
        items: what stands in it.
        the_list: what may stand in it; it must have at least one choice beside nothing.
        rng: source of randomness.
    """
    kinds = [kind for kind, least, grows in _EDITS if len(items) >= least and (not grows or _room(items, the_list))]
    return kinds[int(rng.integers(len(kinds)))](items, the_list, rng)


def cross(first: Items, second: Items, the_list: GeneList, rng: np.random.Generator) -> Items:
    """A child of two lists: the first one with its end, or a run inside it, taken from the second.

    Args:
        first: gives the beginning.
        second: gives what lies between the cuts.
        the_list: its number of places limits the child's length.
        rng: source of randomness.
    """
    start = int(rng.integers(len(first) + 1))
    other_start = _matching_cut(first, start, second)
    if rng.random() < 0.5:
        return (first[:start] + second[other_start:])[: len(the_list.places)]
    stop = int(rng.integers(start, len(first) + 1))
    other_stop = max(other_start, _matching_cut(first, stop, second))
    return (first[:start] + second[other_start:other_stop] + first[stop:])[: len(the_list.places)]


def _matching_cut(first: Items, cut: int, second: Items) -> int:
    """Where to cut ``second``: behind the choice that stands before the cut in ``first``, the nearest one if several.

    Where ``second`` does not have that choice: at the same place.
    """
    alike = [at + 1 for at, choice in enumerate(second) if cut and choice == first[cut - 1]]
    return min(alike, key=lambda at: (abs(at - cut), at)) if alike else min(cut, len(second))


def _run(items: Items, rng: np.random.Generator, least: int = 1, most: int | None = None) -> tuple[int, int]:
    """Start and end of a run, short ones more often than long ones."""
    longest = len(items) if most is None else min(most, len(items))
    length = min(least - 1 + int(rng.geometric(0.5)), longest)
    start = int(rng.integers(len(items) - length + 1))
    return start, start + length


def _room(items: Items, the_list: GeneList) -> int:
    return len(the_list.places) - len(items)


def _insert(items: Items, the_list: GeneList, rng: np.random.Generator) -> Items:
    """Any choice anywhere, or the one that follows what stands before it: blocks in a row are a common pattern."""
    at = int(rng.integers(len(items) + 1))
    choice = int(rng.integers(the_list.num_choices))
    if at > 0 and rng.random() < 0.5:
        choice = (items[at - 1] + 1) % the_list.num_choices
    return (*items[:at], choice, *items[at:])


def _delete(items: Items, the_list: GeneList, rng: np.random.Generator) -> Items:
    start, stop = _run(items, rng)
    return items[:start] + items[stop:]


def _replace(items: Items, the_list: GeneList, rng: np.random.Generator) -> Items:
    at = int(rng.integers(len(items)))
    return (*items[:at], int(rng.integers(the_list.num_choices)), *items[at + 1 :])


def _replace_by_neighbour(items: Items, the_list: GeneList, rng: np.random.Generator) -> Items:
    at = int(rng.integers(len(items)))
    step = int(rng.integers(1, MAX_STEP + 1)) * (1 if rng.random() < 0.5 else -1)
    return (*items[:at], min(max(items[at] + step, 0), the_list.num_choices - 1), *items[at + 1 :])


def _swap(items: Items, the_list: GeneList, rng: np.random.Generator) -> Items:
    one, other = (int(at) for at in rng.choice(len(items), size=2, replace=False))
    swapped = list(items)
    swapped[one], swapped[other] = swapped[other], swapped[one]
    return tuple(swapped)


def _move(items: Items, the_list: GeneList, rng: np.random.Generator) -> Items:
    start, stop = _run(items, rng, most=len(items) - 1)
    rest = items[:start] + items[stop:]
    others = [at for at in range(len(rest) + 1) if at != start]
    at = others[int(rng.integers(len(others)))]
    return rest[:at] + items[start:stop] + rest[at:]


def _reverse(items: Items, the_list: GeneList, rng: np.random.Generator) -> Items:
    start, stop = _run(items, rng, least=2)
    return items[:start] + items[start:stop][::-1] + items[stop:]


def _duplicate(items: Items, the_list: GeneList, rng: np.random.Generator) -> Items:
    start, stop = _run(items, rng, most=_room(items, the_list))
    return items[:stop] + items[start:stop] + items[stop:]


Edit = Callable[[Items, GeneList, np.random.Generator], Items]
# (edit, least length it needs, whether the list grows)
_EDITS: tuple[tuple[Edit, int, bool], ...] = (
    (_insert, 0, True),
    (_delete, 1, False),
    (_replace, 1, False),
    (_replace_by_neighbour, 1, False),
    (_swap, 2, False),
    (_move, 2, False),
    (_reverse, 2, False),
    (_duplicate, 1, True),
)
