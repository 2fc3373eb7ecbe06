"""Scales of a route folded into weights, so that an ordinary checkpoint computes the same.

Let c be the product of the stream's scales behind the first. A model that keeps y = x / c instead of the stream x needs
no scales: what a block adds to the stream is divided by c, and the block's norms see x up to the sign of c, because
norm(c y) = sign(c) norm(y). So the writes of a hop are divided by its c, the gains of its norms change sign where c is
negative, and the norm behind the blocks takes the sign of the last c. The first hop's scale goes into the embeddings.
``branch`` scales multiply single writes: the scale of a hop is that of the last write of the hop before.

A norm's epsilon is what keeps this from being exact: it is added to the mean square of y, as if it were c^2 epsilon on
x. It shows only where the stream is small, and that it is behind the embeddings, where c is 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from evomerge.engine.architecture import Architecture
from evomerge.engine.residual_anatomy import ResidualAnatomy, residual_anatomy
from evomerge.errors import UserError
from evomerge.recipes.recipe import Route

# Beyond this the products of scales leave the range in which bf16 and fp16 weights keep their precision.
LARGEST_PRODUCT = 2.0**30
CHUNK = 1 << 20  # elements


class CannotFold(UserError):
    """The scales of a route cannot be folded into weights; the message says why."""


@dataclass(frozen=True)
class TensorFold:
    """How a tensor changes: to ``(tensor + offset) * factor - offset``.

    Attributes:
        factor: what the tensor is multiplied by.
        offset: 1 for gains that a norm adds 1 to, else 0.
    """

    factor: float
    offset: float = 0.0

    def write(self, tensor: Tensor, out: Tensor) -> None:
        """Write the folded tensor, computed in fp64 and rounded once.

        Args:
            tensor: unrounded, in fp32 or fp64.
            out: of the same shape, contiguous, in any dtype.
        """
        left, right = tensor.reshape(-1), out.view(-1)
        for start in range(0, left.numel(), CHUNK):  # a copy in fp64 of a whole tensor would be large
            part = slice(start, start + CHUNK)
            right[part] = (left[part].double() + self.offset) * self.factor - self.offset


@dataclass(frozen=True)
class Folding:
    """What becomes of the tensors of a route's model.

    Attributes:
        folds: by tensor name; tensors without an entry stay as they are.
        summary: where scales went, for a person.
    """

    folds: dict[str, TensorFold] = field(default_factory=dict)
    summary: str = "no scales"


@dataclass(frozen=True)
class HopFactors:
    """What a hop's weights are multiplied by.

    Attributes:
        stream: the stream as the scaled model has it, divided by what this model keeps: c.
        writes: factor of what the hop adds to the stream, but of its last write.
        last_write: factor of its last write.
    """

    stream: float
    writes: float
    last_write: float


@dataclass(frozen=True)
class RouteFactors:
    """What the weights of a route's model are multiplied by.

    Attributes:
        embeddings: factor of the embeddings.
        hops: of each hop.
        last: c behind the last block, which the norm there sees.
    """

    embeddings: float
    hops: tuple[HopFactors, ...]
    last: float


def route_factors(route: Route, into_embeddings: bool) -> RouteFactors:
    """The factors of every hop.

    Args:
        route: the path.
        into_embeddings: whether the first scale goes into the embeddings, else into c.

    Raises:
        CannotFold: a scale of the stream is 0, or their product is no number that weights can be divided by.
    """
    scales = [hop.scale for hop in route.hops]
    is_stream = route.scale_target == "stream"
    first = _checked(scales[0], "scale 0 at hop 0")
    found, product = [], 1.0 if into_embeddings else first
    for index, scale in enumerate(scales):
        if is_stream and index:
            product *= _checked(scale, f"scale 0 at hop {index}")
        if not 1 / LARGEST_PRODUCT <= abs(product) <= LARGEST_PRODUCT:
            raise CannotFold(f"the product of the scales up to hop {index} is {product:.3g}")
        after = 1.0 if is_stream or index + 1 == len(scales) else scales[index + 1]
        found.append(HopFactors(product, 1 / product, after / product))
    last = product * _checked(route.output_scale, "output_scale 0")
    return RouteFactors(first if into_embeddings else 1.0, tuple(found), last)


def fold_route(route: Route, architecture: Architecture) -> Folding:
    """How the tensors of a route's model change so that it needs no scales.

    Args:
        route: the path.
        architecture: of the model that has one block for each hop.

    Raises:
        CannotFold: with the reason.
    """
    if not route.is_scaled:
        return Folding(summary="all scales are 1")
    route_factors(route, True)  # what cannot fold in any model is said before one is built
    anatomies = _anatomies(architecture)
    ends = anatomies[0]
    partners = {name for pair in architecture.tied for name in pair}
    is_tied = architecture.is_tied and any(entry.name in partners for entry in ends.embeddings)
    factors = route_factors(route, bool(ends.embeddings) and (not is_tied or bool(ends.final_output)))
    prefix = f"{architecture.stacks[0].name}." if architecture.stacks[0].name else ""
    folds = {entry.name: TensorFold(factors.embeddings, entry.offset) for entry in ends.embeddings}
    for index, (factor, anatomy) in enumerate(zip(factors.hops, anatomies, strict=True)):
        _check_anatomy(anatomy, factor.stream < 0, index)
        for name, fold in _block_folds(anatomy, factor):
            folds[f"{prefix}{index}.{name}"] = fold
    # A head that is the embeddings is scaled with them.
    folds.update(_final_folds(ends, factors.last, 1 / factors.embeddings if is_tied else 1.0))
    kept = {name: fold for name, fold in folds.items() if fold.factor != 1}
    if unknown := [name for name in kept if name not in architecture.by_name]:
        raise CannotFold(f"{unknown[0]} is no tensor of the checkpoint")
    where = dict.fromkeys(write.rpartition(".")[2] for anatomy in anatomies for write in anatomy.writes)
    return Folding(kept, f"scales folded into {', '.join(where)}")


def _block_folds(anatomy: ResidualAnatomy, factor: HopFactors) -> Iterator[tuple[str, TensorFold]]:
    for number, tensors in enumerate(anatomy.write_tensors, start=1):
        is_last = number == len(anatomy.write_tensors)
        for entry in tensors:
            yield entry.name, TensorFold(factor.last_write if is_last else factor.writes, entry.offset)
    for entry in anatomy.norm_gains if factor.stream < 0 else ():
        yield entry.name, TensorFold(-1.0, entry.offset)
    for name in anatomy.linear_reads:
        yield name, TensorFold(factor.stream)


def _final_folds(ends: ResidualAnatomy, last: float, factor: float) -> Iterator[tuple[str, TensorFold]]:
    gain = ends.final_norm
    if last < 0 and gain is None:
        raise CannotFold(f"the product of all scales is negative, and {ends.sign_problem}")
    for entry in ends.final_output:
        yield entry.name, TensorFold(-factor if last < 0 and entry == gain else factor, entry.offset)
    if last < 0 and gain is not None and gain not in ends.final_output:
        yield gain.name, TensorFold(-1.0, gain.offset)


def _anatomies(architecture: Architecture) -> list[ResidualAnatomy]:
    """The anatomy of every block; blocks of one structure are looked at once."""
    model = architecture.model
    if model is None:
        raise CannotFold("transformers knows no class for the model, so its blocks cannot be looked at")
    stack = architecture.stacks[0]
    blocks = model.get_submodule(stack.name)
    assert isinstance(blocks, nn.ModuleList)
    found: dict[Hashable, ResidualAnatomy] = {}
    keys = []
    for index, block in enumerate(blocks):
        key = _structure(block)
        keys.append(key)
        if key not in found:
            try:
                found[key] = residual_anatomy(model, stack.name, index)
            except UserError as error:
                raise CannotFold(str(error)) from error
    return [found[key] for key in keys]


def _structure(block: nn.Module) -> Hashable:
    modules = tuple((name, type(module).__name__) for name, module in block.named_modules())
    return modules, tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())


def _check_anatomy(anatomy: ResidualAnatomy, is_negative: bool, index: int) -> None:
    if anatomy.fold_problem is not None:
        raise CannotFold(anatomy.fold_problem)
    if is_negative and anatomy.sign_problem is not None:
        raise CannotFold(f"the product of scales at hop {index} is negative, and {anatomy.sign_problem}")


def _checked(scale: float, what: str) -> float:
    if scale == 0:
        raise CannotFold(f"{what} erases the stream, and no finite weights behind it could write that")
    return scale
