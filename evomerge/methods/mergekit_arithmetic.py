"""The merge methods with mergekit's arithmetic: its dtype, its order of operations, its thresholds.

Only for results that equal mergekit 0.1.5's as closely as possible (``parity: mergekit``); the methods themselves
compute in fp32 and are faster. Every function takes the base (None without one), the experts in listed order, all of
one dtype, and the values of all hyperparameters in evomerge's names. Random masks cannot be drawn as mergekit does.
Reference: https://github.com/arcee-ai/mergekit, version 0.1.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

Values = Mapping[str, Any]
Arithmetic = Callable[[Tensor | None, Sequence[Tensor], Values], Tensor]

# Above this size mergekit estimates arcee_fusion's quantiles from a random sample.
LARGEST_EXACT_QUANTILE = 1_000_000
COLLINEAR = 0.9995
CHUNK = 1 << 20
SMALLEST = 1e-6


def merge_like_mergekit(method: str, base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    """One tensor as mergekit merges it.

    Args:
        method: name of a method that mergekit has.
        base: any shape, None without one.
        experts: tensors of the same shape and dtype.
        values: every hyperparameter of the method, a tuple ``(E,)`` where it is per expert.

    Returns:
        The merged tensor, in the inputs' dtype unless the method computes in fp32.

    Raises:
        ValueError: mergekit has no such method, or its result is random.
    """
    if method not in _ARITHMETIC:
        raise ValueError(f"mergekit has no method {method}")
    return _ARITHMETIC[method](base, experts, values)


def _linear(base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    tensors = list(experts) if base is None else [base, *experts]
    weights = torch.tensor(values["coefficient"], dtype=torch.float32)
    total = torch.zeros(tensors[0].shape, dtype=torch.float32)
    for tensor, weight in zip(tensors, weights):
        total.addcmul_(tensor, weight)
    if values["normalize"]:
        total.div_(weights.sum())
    return total.to(tensors[0].dtype)


def _task_vectors(
    trim: str | None, elects: bool, base: Tensor | None, experts: Sequence[Tensor], values: Values
) -> Tensor:
    """Trim, weigh, elect signs, add up, normalise, scale: task arithmetic and all that builds on it."""
    assert base is not None
    deltas = torch.stack([_trimmed(expert - base, trim, index, values) for index, expert in enumerate(experts)])
    weights = torch.tensor(values["coefficient"], dtype=base.dtype).view(-1, *[1] * base.ndim)
    deltas = deltas * weights
    if elects:
        majority = (deltas.sum(dim=0) >= 0).to(base.dtype) * 2 - 1
        agrees = deltas.sign() == majority
        merged, divisor = (deltas * agrees).sum(dim=0), (weights * agrees).sum(dim=0)
        divisor[divisor == 0] = 1
    else:
        merged, divisor = deltas.sum(dim=0), weights.sum(dim=0)
        divisor[divisor.abs() < 1e-8] = 1
    if values["normalize"]:
        merged = merged / divisor
    if values["lambda"] != 1:
        merged = merged * values["lambda"]
    return base + merged


def _trimmed(delta: Tensor, trim: str | None, index: int, values: Values) -> Tensor:
    density = values["density"][index] if trim is not None else 1.0
    if density >= 1:
        return delta
    if trim == "random":
        raise ValueError(
            "mergekit draws random masks from a global generator, in an order of its own: its result cannot be "
            "reproduced; leave out parity, or use a density of 1"
        )
    count = delta.numel()
    magnitudes = delta.abs().reshape(-1).float()
    # The very calls decide which of equal magnitudes are kept.
    if trim == "magnitude":
        kept = torch.argsort(magnitudes, descending=True)[: max(1, int(density * count))]
    else:
        num_kept, num_largest = int(density * count), int(values["gamma"][index] * count)
        start = max(0, count - num_kept - num_largest)
        kept = torch.sort(magnitudes, descending=False).indices[start : start + num_kept]
    mask = torch.zeros(count, dtype=delta.dtype)
    mask[kept] = 1
    return delta * mask.view_as(delta)


def _slerp(base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    first, second = experts if base is None else (base, experts[0])
    share = torch.tensor(values["t"], dtype=torch.float32)
    a, b = first.reshape(-1), second.reshape(-1)
    pieces = [(a[start : start + CHUNK].float(), b[start : start + CHUNK].float()) for start in range(0, len(a), CHUNK)]

    def length(side: int) -> Tensor:
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(piece[side]) for piece in pieces]))
        return torch.where(norm > 1e-8, norm, 1)

    lengths = length(0), length(1)
    cosine = torch.stack([(x / lengths[0] * (y / lengths[1])).sum() for x, y in pieces]).sum().clamp(-1, 1)
    if cosine.abs() > COLLINEAR:
        shares = 1 - share, share
    else:
        angle = torch.acos(cosine)
        shares = torch.sin((1 - share) * angle) / torch.sin(angle), torch.sin(share * angle) / torch.sin(angle)
    merged = torch.cat([(shares[0] * x + shares[1] * y).to(first.dtype) for x, y in pieces])
    return merged.view_as(first)


def _nuslerp(base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    weights = values["coefficient"]
    share: float = 0.5 if abs(sum(weights)) < SMALLEST else weights[1] / sum(weights)
    a, b = experts if base is None else (experts[0] - base, experts[1] - base)
    shape, turned = a.shape, values["row_wise"] and not values["flatten"]
    if values["flatten"]:
        a, b = a.reshape(-1), b.reshape(-1)
    elif turned:
        a, b = a.transpose(0, -1), b.transpose(0, -1)
    units = [side / torch.norm(side, dim=-1, keepdim=True).clamp(min=1e-7) for side in (a, b)]
    cosine = torch.sum(units[0] * units[1], dim=-1, keepdim=True).clamp(-1, 1)
    collinear = (1 - cosine.square()) <= 1e-16
    angle = torch.acos(torch.where(collinear, 0, cosine))
    merged = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    merged = torch.where(collinear, (1 - share) * a + share * b, merged)
    merged = (merged.transpose(0, -1) if turned else merged).reshape(shape)
    return merged if base is None else base + merged


def _multislerp(base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    if len(experts) == 1:
        return experts[0]
    tensors = torch.stack(list(experts))
    if base is not None:
        tensors = tensors - base
    flat, eps = tensors.view(len(experts), -1), values["eps"]
    weights = torch.tensor(values["coefficient"], dtype=tensors.dtype)
    if values["normalize"]:
        weights = weights / weights.sum()
    norms = torch.norm(flat, dim=-1, keepdim=True)
    units = flat / (norms + eps)
    mean = (units * weights.view(-1, 1)).sum(0)
    length = torch.norm(mean)
    if length < eps:
        if len(experts) > 2:
            raise ValueError("the weighted sum of the models is zero, which mergekit's multislerp refuses")
        merged = (tensors[0] * weights[0] + tensors[1] * weights[1]).view(tensors.shape[1:])
        return merged if base is None else merged + base
    mean = mean / length
    tangents = units - (units * mean).sum(-1, keepdim=True) * mean
    tangent = (tangents * weights.view(-1, 1)).sum(0)
    angle = torch.norm(tangent) + eps
    merged = mean * torch.cos(angle) + tangent * (torch.sin(angle) / angle)
    merged = (merged * (norms.squeeze(-1) * weights).sum()).view(tensors.shape[1:])
    result: Tensor = merged if base is None else merged + base
    return result


def _karcher(base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    tensors = list(experts) if base is None else [base, *experts]
    if len(tensors) == 1:
        return tensors[0]
    tolerance, share = values["tol"], 1.0 / len(tensors)
    norms = [torch.linalg.vector_norm(tensor.float()) for tensor in tensors]
    units = [
        torch.zeros_like(tensor) if norm == 0 else (tensor / norm).to(tensor.dtype)
        for tensor, norm in zip(tensors, norms)
    ]
    kept = [unit for unit, norm in zip(units, norms) if norm.item() > tolerance]
    if not kept:
        return torch.zeros_like(tensors[0])
    total = sum([share] * len(kept))
    weight = share / total
    mean = torch.zeros_like(kept[0])
    for unit in kept:
        mean += weight * unit
    length = torch.linalg.vector_norm(mean.float())
    mean = kept[0].clone() if length.item() < tolerance else (mean / length).to(mean.dtype)
    for _ in range(int(values["max_iter"])):
        tangent = torch.zeros_like(mean)
        for unit in kept:
            cosine = torch.clamp(torch.dot(mean.flatten(), unit.flatten()), -1.0, 1.0)
            angle = torch.arccos(cosine)
            if angle.item() >= tolerance:
                tangent += weight * (angle / torch.sin(angle)) * (unit - cosine * mean)
        step = torch.linalg.vector_norm(tangent.float())
        if step.item() < tolerance:
            break
        mean = (torch.cos(step) * mean + torch.sin(step) * (tangent / step)).to(mean.dtype)
        length = torch.linalg.vector_norm(mean.float())
        if length.item() > tolerance:
            mean = (mean / length).to(mean.dtype)
    scale = norms[0] * share
    for norm in norms[1:]:
        scale = scale + norm * share
    result: Tensor = scale * mean
    return result


def _model_stock(base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    assert base is not None
    rows = (
        (lambda tensor: tensor.unsqueeze(0) if tensor.ndim == 1 else tensor) if values["filter_wise"] else torch.flatten
    )
    origin, ends = rows(base), [rows(expert) for expert in experts]
    offsets = [end - origin for end in ends]
    cosines = []
    for index, left in enumerate(offsets):
        for right in offsets[index + 1 :]:
            norms = torch.norm(left, dim=-1) * torch.norm(right, dim=-1)
            cosines.append(((left * right).sum(dim=-1) / norms.clamp(min=SMALLEST)).clamp(-1, 1))
    cosine, count = torch.stack(cosines).mean(dim=0).unsqueeze(-1), len(ends)
    divisor = 1 + (count - 1) * cosine
    singular = divisor.abs() < SMALLEST
    share = torch.where(singular, torch.zeros_like(cosine), count * cosine / torch.where(singular, 1, divisor))
    average = ends[0]
    for end in ends[1:]:
        average = average + end
    return (share * (average / count) + (1 - share) * origin).reshape(base.shape)


def _nearswap(base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    assert base is not None
    share = (values["t"] / (base - experts[0]).abs().clamp(min=SMALLEST)).clamp(min=0, max=1)
    result: Tensor = share * experts[0] + (1 - share) * base
    return result


def _sce(base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    assert base is not None
    deltas = torch.stack([expert - base for expert in experts])
    fraction = values["select_topk"]
    if fraction < 1:
        spread = torch.var(deltas, dim=0, unbiased=False)
        count = int(torch.count_nonzero(spread) * fraction) if fraction > 0 else 0
        mask = torch.zeros_like(spread)
        mask.view(-1)[torch.topk(spread.abs().view(-1), k=count, largest=True).indices] = 1
        deltas = deltas * mask
    agrees = deltas.sign() == (deltas.sum(dim=0) >= 0).to(base.dtype) * 2 - 1
    energies = deltas.square().reshape(len(experts), -1).mean(dim=1)
    total = torch.sum(energies).item()
    # Below this mergekit takes equal weights, also for models that do differ a little.
    weights = torch.ones_like(energies) / len(experts) if abs(total) < SMALLEST else energies / total
    weighted = weights.view(-1, *[1] * base.ndim) * agrees
    return base + (deltas * weighted).sum(dim=0) / torch.sum(weighted, dim=0).clamp(min=SMALLEST)


def _arcee_fusion(base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    assert base is not None
    if base.numel() > LARGEST_EXACT_QUANTILE:
        raise ValueError(
            f"mergekit finds arcee_fusion's threshold from a random sample of tensors above {LARGEST_EXACT_QUANTILE:,} "
            "numbers: its result cannot be reproduced; leave out parity"
        )
    expert = experts[0]
    p, q = (torch.softmax(tensor, dim=-1) + 1e-8 for tensor in (expert, base))
    importance = (expert - base).abs() * torch.sum(p * torch.log(p / q), dim=-1, keepdim=True)
    ordered = torch.sort(importance.reshape(-1)).values
    low, middle, high = (ordered[(torch.tensor(q) * (len(ordered) - 1)).long()] for q in (0.25, 0.5, 0.75))
    mask = (importance >= middle + 1.5 * (high - low)).float()
    return base + (expert - base) * mask


def _passthrough(base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    return experts[0] if values["scale"] == 1 else experts[0] * values["scale"]


def _ram(is_plus: bool, base: Tensor | None, experts: Sequence[Tensor], values: Values) -> Tensor:
    assert base is not None
    flat = torch.stack([expert - base for expert in experts]).view(len(experts), -1)
    active = flat.abs() > values["epsilon"]
    count = active.sum(dim=0, keepdim=True)
    shared, unique = count > 1, count == 1
    kept = flat * active
    alone = kept * unique
    if is_plus:
        ratio = (active & shared).sum(dim=1) / (active & unique).sum(dim=1).clamp(min=values["epsilon"])
        alone = alone * (1 + values["r"] * ratio.clamp(min=0, max=values["alpha"])).unsqueeze(-1)
    merged = (alone + kept * shared / count.clamp(min=1)).sum(dim=0, keepdim=True)
    result: Tensor = base + merged.reshape_as(base)
    return result


_ARITHMETIC: dict[str, Arithmetic] = {
    "linear": _linear,
    "task_arithmetic": partial(_task_vectors, None, False),
    "ties": partial(_task_vectors, "magnitude", True),
    "dare_linear": partial(_task_vectors, "random", False),
    "dare_ties": partial(_task_vectors, "random", True),
    "della_linear": partial(_task_vectors, "random", False),
    "della": partial(_task_vectors, "random", True),
    "breadcrumbs": partial(_task_vectors, "outliers", False),
    "breadcrumbs_ties": partial(_task_vectors, "outliers", True),
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "model_stock": _model_stock,
    "nearswap": _nearswap,
    "sce": _sce,
    "arcee_fusion": _arcee_fusion,
    "passthrough": _passthrough,
    "ram": partial(_ram, False),
    "ramplus_tl": partial(_ram, True),
}
