"""The passes over memory that every elementwise method is made of.

Arithmetic is fp32 whatever the storage dtype, with one rounding into the output. On a CPU bf16, fp16 and fp32 go
through the loops of ``compiled``, everything else through torch, in chunks that bound the temporaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from evomerge.methods.sweep import CPU_CHUNK, sweep
from evomerge.methods.trim import Rule, Trim

_FINITE, _NOT_FINITE = torch.tensor(0.0), torch.tensor(float("nan"))


@dataclass(frozen=True)
class Term:
    """One expert's part of a merged task vector.

    Attributes:
        expert: flat ``(n,)``.
        weight: what multiplies the trimmed task vector: coefficient times rescaling, not 0.
        share: what the expert counts in a normalisation: its coefficient, not 0.
        trim: drops entries; None keeps all.
    """

    expert: Tensor
    weight: float
    share: float
    trim: Trim | None = None


@torch.no_grad()
def weighted_sum(out: Tensor, sources: Sequence[Tensor], weights: Sequence[float]) -> None:
    """Write ``Σ weights[i] · sources[i]``.

    Args:
        out: any float dtype; must not share memory with the sources.
        sources: flat tensors ``(n,)``, any float dtypes.
        weights: one number for each source; sources of weight 0 are not read.
    """
    terms = [(source, weight) for source, weight in zip(sources, weights, strict=True) if weight != 0.0]
    if not terms:
        out.zero_()
        return
    sources = [source for source, _ in terms]
    if (compiled := _compiled(out, sources)) is not None:
        compiled.weighted_sum(out, sources, [weight for _, weight in terms])
        return

    def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
        sum_, loaded = buffers
        if target.dtype == torch.float32:
            sum_ = target
        for index, ((_, weight), piece) in enumerate(zip(terms, pieces, strict=True)):
            if index:
                sum_.add_(_as_float32(piece, loaded), alpha=weight)
            else:
                torch.mul(_as_float32(piece, sum_), weight, out=sum_)
        if sum_ is not target:
            target.copy_(sum_)

    sweep(kernel, out, sources, num_buffers=2)


@torch.no_grad()
def weighted_rows(out: Tensor, sources: Sequence[Tensor], weights: Sequence[Tensor], by_column: bool = False) -> None:
    """Write ``Σ weights[i] · sources[i]`` with weights of their own for every row, or column.

    Args:
        out: ``(..., columns)``, any float dtype.
        sources: flat tensors of as many elements.
        weights: fp32 ``(rows,)`` for each source, rows being all dimensions but the last; ``(columns,)`` by column.
        by_column: what the weights belong to.
    """
    columns = out.shape[-1]
    if out.numel() == 0:
        return
    rows = out.numel() // columns
    step = max(1, CPU_CHUNK // columns) if out.device.type == "cpu" else rows
    whole = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    matrices = [source.view(rows, columns) for source in sources]
    for start in range(0, rows, step):
        part = slice(start, start + step)
        sum_ = torch.zeros(matrices[0][part].shape, dtype=torch.float32, device=out.device)
        for matrix, weight in zip(matrices, weights, strict=True):
            sum_.addcmul_(matrix[part].float(), weight[None, :] if by_column else weight[part, None])
        whole.view(rows, columns)[part] = sum_
    if whole is not out:
        out.copy_(whole)


@torch.no_grad()
def add_deltas(out: Tensor, base: Tensor, terms: Sequence[Term], scale: float) -> None:
    """Write ``base + scale · Σ weight · trim(expert - base)``.

    Args:
        out: any float dtype; must not share memory with base or experts.
        base: flat ``(n,)``.
        terms: the experts' parts.
        scale: λ, divided by whatever normalises the sum.
    """
    if not terms or scale == 0.0:
        out.copy_(base.view(out.shape))
        return
    if (compiled := _compiled(out, [base, *(term.expert for term in terms)], terms)) is not None:
        _merge_compiled(compiled, "sum", out, base, terms, scale)
        return
    sources = [base, *(term.expert for term in terms)]
    factors, scale = _factors(terms, scale)

    def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
        origin, sum_, delta, scratch = buffers
        first, *pieces = pieces
        origin = _as_float32(first, origin)
        for index, (term, piece) in enumerate(zip(terms, pieces, strict=True)):
            _load_delta(delta if index else sum_, origin, piece, term, start, scratch)
            if index:
                sum_.add_(delta, alpha=factors[index])
            elif factors[0] != 1.0:
                sum_.mul_(factors[0])
        _store(target, origin, sum_, scale)

    sweep(kernel, out, sources, num_buffers=4)


@torch.no_grad()
def add_elected_deltas(out: Tensor, base: Tensor, terms: Sequence[Term], scale: float, normalize: bool) -> None:
    """Write ``base + scale · disjoint merge of weight · trim(expert - base)`` (TIES).

    Per element the sign of ``S = Σ v`` of the weighted trimmed task vectors ``v`` is elected (0 counts as plus), and
    the ``v`` of that sign are summed; ``normalize`` divides by the sum of their shares (by 1 where that is 0).

    Args:
        out: any float dtype; must not share memory with base or experts.
        base: flat ``(n,)``.
        terms: the experts' parts.
        scale: λ.
        normalize: divide by the agreeing shares.
    """
    if len(terms) == 1:  # nobody to disagree with
        add_deltas(out, base, terms, scale / terms[0].share if normalize else scale)
    elif not terms or scale == 0.0:
        out.copy_(base.view(out.shape))
    elif (compiled := _compiled(out, [base, *(term.expert for term in terms)], terms)) is not None:
        combine = "elected_mean" if normalize else "elected_sum"
        _merge_compiled(compiled, combine, out, base, terms, scale)
    elif normalize:
        _add_elected_mean(out, base, terms, scale)
    else:
        _add_elected_sum(out, base, terms, scale)


@torch.no_grad()
def add_largest_deltas(out: Tensor, base: Tensor, terms: Sequence[Term], scale: float) -> None:
    """Write ``base + scale · the largest weight · trim(expert - base) of the elected sign``, element by element.

    Signs are elected as in add_elected_deltas.

    Args:
        out: any float dtype; must not share memory with base or experts.
        base: flat ``(n,)``.
        terms: the experts' parts; their shares do not count.
        scale: λ.
    """
    if len(terms) < 2 or scale == 0.0:
        add_deltas(out, base, terms, scale)
        return
    factors, scale = _factors(terms, scale)

    def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
        origin, sum_, highest, lowest, delta, scratch = buffers
        first, *pieces = pieces
        origin = _as_float32(first, origin)
        for buffer in (sum_, highest, lowest):
            buffer.zero_()
        for term, piece, factor in zip(terms, pieces, factors, strict=True):
            _load_delta(delta, origin, piece, term, start, scratch, factor)
            sum_.add_(delta)
            torch.maximum(highest, delta, out=highest)
            torch.minimum(lowest, delta, out=lowest)
        _store(target, origin, torch.where(sum_ >= 0.0, highest, lowest, out=delta), scale)

    sweep(kernel, out, [base, *(term.expert for term in terms)], num_buffers=6)


@torch.no_grad()
def checked_copy(out: Tensor | None, source: Tensor) -> Tensor:
    """Write a contiguous tensor into another one of its shape, if one is given.

    Args:
        out: any float dtype; the cast rounds once.
        source: any float dtype.

    Returns:
        A 0-d tensor on the source's device that is finite exactly when all of the source is (short of an fp32 overflow
        of its sum on an accelerator). Reading it waits for the device; that is left to the caller.
    """
    compiled = _compiled(source if out is None else out, [source])
    if compiled is not None:
        if out is not None:
            compiled.weighted_sum(out, [source.view(-1)], [1.0])
        return _FINITE if compiled.is_finite(source) else _NOT_FINITE
    if out is not None:
        out.copy_(source)
    return source.sum(dtype=torch.float32) if source.dtype == torch.float16 else source.sum()


def _add_elected_sum(out: Tensor, base: Tensor, terms: Sequence[Term], scale: float) -> None:
    # With A = Σ |v|, the positive parts sum to (A + S) / 2 and the negative ones to (S - A) / 2, so the elected sum is
    # (S + copysign(A, S)) / 2: two running sums instead of a mask for each expert.
    sources = [base, *(term.expert for term in terms)]
    factors, scale = _factors(terms, scale)

    def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
        origin, sum_, absolute, delta, scratch = buffers
        first, *pieces = pieces
        origin = _as_float32(first, origin)
        for index, (term, piece) in enumerate(zip(terms, pieces, strict=True)):
            _load_delta(delta if index else sum_, origin, piece, term, start, scratch, factors[index])
            if index:
                sum_.add_(delta)
                absolute.add_(delta.abs_())
            else:
                torch.abs(sum_, out=absolute)
        _store(target, origin, sum_.add_(absolute.copysign_(sum_)), 0.5 * scale)

    sweep(kernel, out, sources, num_buffers=5)


def _add_elected_mean(out: Tensor, base: Tensor, terms: Sequence[Term], scale: float) -> None:
    shares = [term.share for term in terms]
    sources = [base, *(term.expert for term in terms)]
    factors, scale = _factors(terms, scale)
    count = len(terms) + 6

    def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
        origin, sum_, sign, numerator, divisor, agrees, *deltas = buffers
        first, *pieces = pieces
        origin = _as_float32(first, origin)
        for term, piece, delta, factor in zip(terms, pieces, deltas, factors, strict=True):
            _load_delta(delta, origin, piece, term, start, agrees, factor)
        torch.add(deltas[0], deltas[1], out=sum_)
        for delta in deltas[2:]:
            sum_.add_(delta)
        torch.copysign(divisor.fill_(1.0), sum_, out=sign)
        for index, delta in enumerate(deltas):
            torch.eq(torch.sign(delta, out=agrees), sign, out=agrees)
            if index:
                numerator.addcmul_(delta, agrees)
                divisor.add_(agrees, alpha=shares[index])
            else:
                torch.mul(delta, agrees, out=numerator)
                torch.mul(agrees, shares[0], out=divisor)
        if min(shares) > 0.0:
            divisor.clamp_min_(0.5 * min(shares))  # less only where nobody agrees, and there the numerator is 0
        else:
            divisor.add_(torch.eq(divisor, 0.0, out=agrees))
        _store(target, origin, numerator.div_(divisor), scale)

    sweep(kernel, out, sources, num_buffers=count)


def _factors(terms: Sequence[Term], scale: float) -> tuple[list[float], float]:
    """What multiplies each task vector, and all of them: a common ``|weight|`` is multiplied once, at the end."""
    weights = [abs(term.weight) for term in terms]
    if min(weights) == max(weights):
        return [1.0] * len(terms), scale * weights[0]
    return weights, scale


def _load_delta(
    delta: Tensor, origin: Tensor, piece: Tensor, term: Term, start: int, scratch: Tensor, factor: float = 1.0
) -> None:
    """Fill ``delta`` with ``factor`` times the trimmed task vector, negated for a negative weight.

    Signs are elected on products that are rounded before they are added: experts that cancel exactly, which the coarse
    grid of bf16 makes common, then sum to 0 and not to what a fused multiply-add leaves over.
    """
    loaded = _as_float32(piece, delta)
    if term.weight > 0.0:
        torch.sub(loaded, origin, out=delta)
    else:
        torch.sub(origin, loaded, out=delta)
    if term.trim is not None:
        term.trim(delta, start, scratch)
    if factor != 1.0:
        delta.mul_(factor)


def _store(target: Tensor, origin: Tensor, delta: Tensor, scale: float) -> None:
    if target.dtype == torch.float32:
        torch.add(origin, delta, alpha=scale, out=target)
    else:
        target.copy_(torch.add(origin, delta, alpha=scale, out=delta))


def _as_float32(piece: Tensor, buffer: Tensor) -> Tensor:
    return piece if piece.dtype == torch.float32 else buffer.copy_(piece)


def _compiled(out: Tensor, sources: Sequence[Tensor], terms: Sequence[Term] = ()) -> ModuleType | None:
    """The compiled kernels, if they take these tensors and know the terms' trims."""
    if out.device.type != "cpu" or any(term.trim is not None and term.trim.rule is None for term in terms):
        return None
    from evomerge.methods import compiled

    return compiled if compiled.fits(out, sources) else None


def _merge_compiled(
    compiled: ModuleType, combine: str, out: Tensor, base: Tensor, terms: Sequence[Term], scale: float
) -> None:
    factors, scale = _factors(terms, scale)
    parts = []
    for factor, term in zip(factors, terms, strict=True):
        rule = (None if term.trim is None else term.trim.rule) or Rule()
        parts.append(compiled.Part(term.expert, factor if term.weight > 0.0 else -factor, term.share, rule))
    compiled.merge_deltas(combine, out, base, parts, scale)
