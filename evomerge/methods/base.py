"""What a merge method is: a torch-free spec, and two phases on tensors.

``prepare`` does once, per tensor, what does not depend on the searched numbers; ``apply`` does the rest for every
candidate, straight into the live parameter. A method knows tensors and nothing of models, files or architectures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.methods.adapter_method import Factors

Value = float | int | bool | str


@dataclass(frozen=True)
class Hyperparameter:
    """One number or choice of a method.

    Attributes:
        name: evomerge's name (``coefficient``, ``density``, ``lambda``, ``normalize``, ``t``).
        per: ``expert`` = one value for each expert, ``merge`` = one value.
        kind: type of the value.
        default: value when the recipe names none; None = required.
        low: smallest sensible value of a search, inclusive.
        high: largest sensible value of a search, inclusive.
        structural: True when changing it needs a new ``prepare``.
        choices: values of a ``choice``.
        mergekit_name: the same thing in mergekit's dialect, None when it has none.
        description: one line.
        is_closed: values below ``low`` or above ``high`` make no sense and are refused.
    """

    name: str
    per: Literal["expert", "merge"]
    kind: Literal["float", "int", "bool", "choice"]
    default: Value | None
    low: float = 0.0
    high: float = 1.0
    structural: bool = False
    choices: tuple[str, ...] = ()
    mergekit_name: str | None = None
    description: str = ""
    is_closed: bool = False


@dataclass(frozen=True)
class MethodSpec:
    """What evomerge knows of a method without importing torch. The only place its hyperparameters are declared.

    Attributes:
        ordered: the order of the experts means something, as in a sequence of merges.
        cost: what a merge needs beside passes over the weights: nothing (``streaming``), the order of entries
            (``ranking``), ``singular values``, or ``optimisation`` of every matrix.
        use: what it is for, in a line.
        takes: what ``prepare`` is given of each expert: its tensor, or its LoRA factors (see AdapterMethod).
    """

    name: str
    title: str
    hyperparameters: tuple[Hyperparameter, ...]
    target: str  # "module:Class", imported on first use
    needs_base: bool
    min_experts: int = 1
    max_experts: int | None = None
    stochastic: bool = False
    ordered: bool = False
    paper: str = ""
    arxiv: str = ""
    cost: Literal["streaming", "ranking", "singular values", "optimisation"] = "streaming"
    use: str = ""
    takes: Literal["tensors", "adapters"] = "tensors"

    def hyperparameter(self, name: str) -> Hyperparameter:
        """The hyperparameter of that name.

        Raises:
            KeyError: the method has none of that name.
        """
        for parameter in self.hyperparameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)


@dataclass(frozen=True)
class TensorContext:
    """What a method may know of a tensor beside its values.

    Attributes:
        name: the tensor's name.
        seed: seed of the merge, for stochastic methods.
        expert_keys: stable names of the experts (never their position), so that reordering experts changes nothing.
        reused: False promises that ``apply`` will see a single set of values, as in a merge to disk; ``prepare`` may
            then leave out what only pays over many. The merged tensor is the same.
        component: ``attention``, ``mlp``, ``norms``, ``embeddings``, ``head`` or ``other``.
        block: index of the tensor's block, None outside the blocks.
        num_blocks: number of blocks of the model, 0 where there is none.
        statistics: what surveys of the whole model concluded, see WholeModelMethod.
        factors: for methods on adapters, what each expert adds to the tensor; None where it adds nothing.
    """

    name: str
    seed: int
    expert_keys: tuple[str, ...]
    reused: bool = True
    component: str = "other"
    block: int | None = None
    num_blocks: int = 0
    statistics: tuple[Any, ...] = ()
    factors: tuple[Factors | None, ...] = ()

    @property
    def is_table(self) -> bool:
        """Whether rows are tokens."""
        return self.component in ("embeddings", "head")


class MergeMethod(ABC):
    """A merge method in two phases. Instances are stateless; all state is what ``prepare`` returned.

    Contract, checked over every registered method: inputs are never modified; arithmetic is fp32 whatever the storage
    dtype, with one cast into ``out``; same inputs and seed give the same bits for any number of threads, and on another
    kind of device the same up to the rounding of fused operations; ``apply`` after any other gives the same as the
    first; permuting experts with their values changes nothing beyond rounding.
    """

    @abstractmethod
    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> Any:
        """State of one tensor for any later coefficients.

        Args:
            base: the base model's tensor, any shape and float dtype; None for methods without one.
            experts: E tensors of the same shape.
            structural: values of the structural hyperparameters.
            context: tensor name, seed and expert keys.

        Returns:
            An object whose extra memory is ``state_bytes(state)``; it may keep references to base and experts.
        """

    @abstractmethod
    def apply(self, state: Any, values: Mapping[str, Value | Sequence[float]], out: Tensor) -> None:
        """Write the merged tensor into ``out`` (same shape, any float dtype), in place.

        Args:
            state: what ``prepare`` returned.
            values: every non-structural hyperparameter: a number per merge, a sequence ``(E,)`` per expert.
            out: the live parameter; must not share memory with base or experts.
        """

    def is_constant(self, state: Any) -> bool:
        """Whether every ``apply`` of this state writes the same tensor, so that all but the first can be left out."""
        return False

    def state_bytes(self, state: Any) -> int:
        """Bytes the state holds beyond base and experts."""
        return 0
