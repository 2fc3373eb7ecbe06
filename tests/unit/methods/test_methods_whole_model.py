"""Methods over a whole model against their definitions, written on flat fp64 vectors of several tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.methods import distribution
from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import get_spec, load_method
from evomerge.methods.distribution import Distribution
from evomerge.methods.knots import Aligned
from evomerge.methods.spectral import MatrixInputs
from evomerge.methods.whole_model import WholeModelMethod

SHAPES = {"up": (12, 9), "norm": (11,), "down": (7, 13)}
MATRICES = ("up", "down")
Model = dict[str, Tensor]


def models(count: int = 3, seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> tuple[Model, list[Model]]:
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    experts = []
    for index in range(count):
        spread = 0.1 * (index + 1)
        experts.append({name: t + spread * torch.randn(t.shape, generator=generator) for name, t in base.items()})
    return base, experts


def merged(name: str, base: Model, experts: Sequence[Model], **given: Any) -> Model:
    """Merge a model of several tensors, survey by survey."""
    spec, method = get_spec(name), load_method(name)
    assert isinstance(method, WholeModelMethod)
    values: dict[str, Any] = {p.name: given.get(p.name, p.default) for p in spec.hyperparameters}
    for parameter in spec.hyperparameters:
        if parameter.per == "expert" and not isinstance(values[parameter.name], Sequence):
            values[parameter.name] = [values[parameter.name]] * len(experts)
    structural = {p.name: values[p.name] for p in spec.hyperparameters if p.structural}
    cheap = {p.name: values[p.name] for p in spec.hyperparameters if not p.structural}
    keys = tuple(f"expert{index}" for index in range(len(experts)))
    context = TensorContext("", 0, keys, component="mlp")
    for _ in range(method.num_surveys(structural)):
        total = None
        for tensor in base:
            share = method.survey(base[tensor], [e[tensor] for e in experts], structural, replace(context, name=tensor))
            total = method.fold(total, share)
        context = replace(context, statistics=(*context.statistics, method.conclude(total)))
    found = {}
    for tensor in base:
        inputs = base[tensor], [e[tensor] for e in experts]
        found[tensor] = torch.empty_like(base[tensor])
        method.apply(method.prepare(*inputs, structural, replace(context, name=tensor)), cheap, found[tensor])
    return found


def flat(model: Model) -> np.ndarray:
    return torch.cat([tensor.double().flatten() for tensor in model.values()]).numpy()


def deltas(base: Model, experts: Sequence[Model]) -> np.ndarray:
    """Flat task vectors, subtracted in fp32 as the methods do."""
    return np.stack([flat({name: e[name] - base[name] for name in base}) for e in experts])


def by_tensor(base: Model, experts: Sequence[Model], name: str) -> list[np.ndarray]:
    return [(expert[name] - base[name]).double().numpy() for expert in experts]


def assert_merges_to(found: Model, base: Model, delta: np.ndarray, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(flat(found) - flat(base), delta, rtol=0, atol=tolerance)


class TestDistribution:
    def test_every_rank_of_few_values(self) -> None:
        values = torch.randn(500, generator=torch.Generator().manual_seed(1))
        values[:20] = 0.25
        values[20:25], values[25] = 0.0, -0.0
        counted = Distribution.of(values[:300]).add(Distribution.of(values[300:])).finish()
        ordered = values.sort(descending=True).values
        assert [counted.kth_largest(k) for k in range(1, 501)] == ordered.tolist()
        assert (counted.size, counted.largest) == (500, ordered[0].item())
        assert (counted.kth_largest(0), counted.kth_largest(900)) == (ordered[0].item(), ordered[-1].item())

    @pytest.mark.parametrize("parts", [1, 3, 50])
    def test_many_values_are_rounded_down_to_twelve_bits(self, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(distribution, "EXACT", 100)
        values = torch.randn(999, generator=torch.Generator().manual_seed(1))
        counted = Distribution()
        for part in values.tensor_split(parts):
            counted.add(Distribution.of(part))
        counted.finish()
        for k in (1, 17, 400, 800, 999):
            exact, found = values.sort(descending=True).values[k - 1].item(), counted.kth_largest(k)
            assert exact - abs(exact) * 2**-11 <= found <= exact
            assert int((values >= found).sum()) >= k
        assert counted.largest == values.max().item()

    def test_no_value_at_all(self) -> None:
        assert Distribution().finish().kth_largest(1) == 0.0


def test_ties_trims_over_the_whole_model() -> None:
    base, experts = models()
    tau, coefficients = deltas(base, experts), np.array([0.5, 1.0, 0.7])
    for density in (0.2, 0.55, 1.0):
        trimmed = np.zeros_like(tau)
        for i, row in enumerate(tau):
            threshold = np.sort(np.abs(row))[len(row) - int(density * len(row))]
            trimmed[i] = np.where(np.abs(row) >= threshold, row, 0.0)
        weighted = trimmed * coefficients[:, None]
        sign = np.where(weighted.sum(0) >= 0.0, 1.0, -1.0)
        agrees = np.sign(weighted) == sign
        expected = (weighted * agrees).sum(0) / np.maximum((coefficients[:, None] * agrees).sum(0), 1e-30)
        given = {"density": density, "coefficient": coefficients.tolist(), "lambda": 0.9}
        assert_merges_to(merged("ties", base, experts, trim_scope="global", **given), base, 0.9 * expected)
        if density < 1.0:  # the experts move their tensors alike, so a trim per tensor keeps other entries
            local = merged("ties", base, experts, trim_scope="tensor", **given)
            assert not np.allclose(flat(local) - flat(base), 0.9 * expected, atol=1e-3)


def test_metagpt_weighs_by_length() -> None:
    base, experts = models()
    tau = deltas(base, experts)
    for exponent in (2.0, 0.0, -1.0):
        powers = np.linalg.norm(tau, axis=1) ** exponent
        found = merged("metagpt", base, experts, exponent=exponent, **{"lambda": 0.8})
        assert_merges_to(found, base, 0.8 * (powers / powers.sum()) @ tau)
    # twice the task vector: four times the weight
    double = [{name: base[name] + 2 * (experts[0][name] - base[name]) for name in base}, experts[1]]
    norms = np.linalg.norm(deltas(base, double), axis=1) ** 2
    assert norms[0] / norms[1] == pytest.approx(4 * np.linalg.norm(tau[0]) ** 2 / np.linalg.norm(tau[1]) ** 2, rel=1e-5)
    assert_merges_to(merged("metagpt", base, double), base, (norms / norms.sum()) @ deltas(base, double))


def test_an_expert_that_is_the_base_weighs_nothing_in_metagpt() -> None:
    base, experts = models(2)
    found = merged("metagpt", base, [experts[0], base, experts[1]], exponent=-1.0)
    assert_merges_to(found, base, flat(merged("metagpt", base, experts, exponent=-1.0)) - flat(base))


def test_ramplus_counts_over_the_whole_model() -> None:
    base, experts = models()
    epsilon = 0.15
    tau = deltas(base, experts)
    active = np.abs(tau) > epsilon
    count = active.sum(0)
    shared, alone = (active & (count > 1)).sum(1), (active & (count == 1)).sum(1)
    boost = 1.0 + 0.5 * np.clip(shared / alone, 0.0, 1.5)
    mean = (tau * active).sum(0) / np.maximum(count, 1)
    expected = np.where(count == 1, (tau * active * boost[:, None]).sum(0), mean)
    found = merged("ramplus", base, experts, epsilon=epsilon, r=0.5, alpha=1.5)
    assert_merges_to(found, base, expected)
    tensor_local = {}
    for name in base:
        alone = {name: base[name]}, [{name: expert[name]} for expert in experts]
        tensor_local |= merged("ramplus", *alone, epsilon=epsilon, r=0.5, alpha=1.5)
    assert not np.allclose(flat(tensor_local), flat(found), atol=1e-4)


def test_ramplus_without_lone_changes_boosts_nothing() -> None:
    base, experts = models(2)
    same = [experts[0], {name: base[name] + 2 * (experts[0][name] - base[name]) for name in base}]
    tau = deltas(base, same)
    assert_merges_to(merged("ramplus", base, same, epsilon=0.0, r=1.0), base, tau.mean(0))


def pcb(tau: np.ndarray, ratio: float, variant: str, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merged delta and the trimmed scores, from flat task vectors."""
    count, size = tau.shape
    share = {"raw": 1e-4, "scaled": 0.01}[variant]
    cut, scaled = np.empty_like(tau), np.empty_like(tau)
    for i, row in enumerate(np.abs(tau)):
        ordered = np.sort(row)
        cut[i] = np.clip(row, ordered[int(size * share)], ordered[int(size * (1 - share) - 1)])
        scaled[i] = (cut[i] - cut[i].min()) / (cut[i].max() - cut[i].min())
    signed = np.sign(tau) * scaled
    products = tau * tau.sum(0) if variant == "raw" else signed[:, None] * signed[None]
    between = np.tanh(products).reshape(count, -1, size).sum(1)
    balance = np.exp(count * scaled**2) * between
    scores = np.empty_like(tau)
    for i, row in enumerate(balance):
        clipped = np.maximum(row, np.sort(row)[int(size * (1 - ratio))])
        scores[i] = (clipped - clipped.min()) / (clipped.max() - clipped.min())
    signed_cut = np.sign(tau) * cut
    return (coefficients[:, None] * signed_cut * scores).sum(0) / np.maximum(scores.sum(0), 1e-12), scores


@pytest.mark.parametrize("variant", ["scaled", "raw"])
def test_pcb_is_its_definition(variant: str) -> None:
    base, experts = models(shapes={"a": (40, 30), "b": (700,)})
    coefficients = np.array([1.0, 0.8, 1.2])
    for ratio in (0.05, 0.3):
        expected, scores = pcb(deltas(base, experts), ratio, variant, coefficients)
        assert np.abs((scores > 0).mean(1) - ratio).max() < 2e-3
        given = {"variant": variant, "ratio": ratio, "coefficient": coefficients.tolist(), "lambda": 1.1}
        assert_merges_to(merged("pcb", base, experts, **given), base, 1.1 * expected, 2e-5)


def test_pcb_of_one_expert_keeps_cut_entries_or_none() -> None:
    base, experts = models(1, shapes={"a": (40, 30)})
    tau = deltas(base, experts)[0]
    found = flat(merged("pcb", base, experts, ratio=0.2)) - flat(base)
    ordered = np.sort(np.abs(tau))
    kept = found != 0.0
    assert kept.sum() == pytest.approx(0.2 * len(tau), abs=2)
    limits = ordered[int(len(tau) * 0.01)], ordered[int(len(tau) * 0.99 - 1)]
    np.testing.assert_allclose(found[kept], (np.sign(tau) * np.clip(np.abs(tau), *limits))[kept], atol=1e-6)


def test_pcb_of_opposite_experts_is_the_base() -> None:
    base, experts = models(1)
    base = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    opposite = [experts[0], {name: -tensor for name, tensor in experts[0].items()}]
    assert_merges_to(merged("pcb", base, opposite), base, np.zeros_like(flat(base)))


def test_knots_parts_are_the_task_vectors_in_one_basis() -> None:
    base, experts = models()
    inputs = MatrixInputs.check(base["up"], [e["up"] for e in experts], TensorContext("up", 0, ("a", "b", "c")))
    aligned = Aligned.of(inputs)
    for index, tau in enumerate(by_tensor(base, experts, "up")):
        np.testing.assert_allclose((aligned.left @ aligned.parts[index]).numpy(), tau, atol=1e-6)
    gram = aligned.left.T @ aligned.left
    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-6, rtol=0)


def test_knots_ties_trims_parts_over_all_matrices() -> None:
    base, experts = models()
    parts, lefts = {}, {}
    for name in MATRICES:
        tau = by_tensor(base, experts, name)
        left, values, right = np.linalg.svd(np.concatenate(tau, axis=1), full_matrices=False)
        lefts[name], parts[name] = left, np.split(values[:, None] * right, len(tau), axis=1)
    density, coefficients = 0.3, np.array([1.0, 0.6, 0.8])
    expected = {"norm": sum(c * t for c, t in zip(coefficients, by_tensor(base, experts, "norm"))) / 3}
    thresholds = []
    for i in range(3):
        every = np.concatenate([np.abs(parts[name][i]).ravel() for name in MATRICES])
        thresholds.append(np.sort(every)[len(every) - int(density * len(every))])
    for name in MATRICES:
        kept = np.stack([np.where(np.abs(p) >= t * (1 - 1e-9), p, 0.0) for p, t in zip(parts[name], thresholds)])
        weighted = kept * coefficients[:, None, None]
        agrees = np.sign(weighted) == np.where(weighted.sum(0) >= 0.0, 1.0, -1.0)
        sums = (coefficients[:, None, None] * agrees).sum(0)
        expected[name] = lefts[name] @ ((weighted * agrees).sum(0) / np.where(sums == 0.0, 1.0, sums))
    found = merged("knots_ties", base, experts, density=density, coefficient=coefficients.tolist(), **{"lambda": 0.7})
    for name in base:
        np.testing.assert_allclose((found[name] - base[name]).numpy(), 0.7 * expected[name], atol=3e-6, err_msg=name)


def test_knots_dare_ties_keeps_everything_at_full_density() -> None:
    base, experts = models(1)
    found = merged("knots_dare_ties", base, experts, density=1.0)
    assert_merges_to(found, base, deltas(base, experts)[0])
    assert not np.allclose(flat(merged("knots_dare_ties", base, experts, density=0.5)), flat(experts[0]), atol=1e-2)


def published_opcm(base: Model, experts: Sequence[Model], alpha: float) -> dict[str, np.ndarray]:
    """The loop as published, with full decompositions and a scaling after every expert."""
    names = list(base)
    tau = [{name: by_tensor(base, [expert], name)[0] for name in names} for expert in experts]
    norms = [np.sqrt(sum((t[name] ** 2).sum() for name in names)) for t in tau]
    current, scale = {name: tau[0][name].copy() for name in names}, 1.0
    for step in range(1, len(experts)):
        for name in names:
            before, own = current[name], tau[step][name]
            if name in MATRICES:
                left, values, right = np.linalg.svd(before, full_matrices=True)
                split = int(np.argmax(values.cumsum() / values.sum() > alpha))
                within = left.T @ own @ right.T
                np.fill_diagonal(within, 0.0)
                within[:split, :split] = 0.0
                own = left @ within @ right
                assert abs((own * before).sum()) < 1e-9
                assert np.linalg.norm(own) <= np.linalg.norm(tau[step][name]) + 1e-9
            current[name] = scale * before + own
        length = np.sqrt(sum((current[name] ** 2).sum() for name in names))
        mean = np.mean(norms[: step + 1])
        scale = length / mean
        current = {name: current[name] * mean / length for name in names}
    return current


def test_opcm_is_the_published_loop() -> None:
    base, experts = models(4)
    for alpha in (0.0, 0.5, 0.9):
        expected = published_opcm(base, experts, alpha)
        found = merged("opcm", base, experts, alpha=alpha)
        for name in base:
            np.testing.assert_allclose((found[name] - base[name]).numpy(), expected[name], atol=3e-6, err_msg=name)
        mean = np.linalg.norm(deltas(base, experts), axis=1).mean()
        assert np.linalg.norm(flat(found) - flat(base)) == pytest.approx(mean, rel=1e-5)
    backwards = merged("opcm", base, experts[::-1])
    assert not np.allclose(flat(backwards), flat(merged("opcm", base, experts)), atol=1e-3)


def doge_loss(correction: Tensor, tau: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    moved = sum(w * t for w, t in zip(weights, tau)) + sum(weights) * correction
    return sum((((t * (t - moved)).sum(1)) ** 2).sum() for t in tau)


def test_doge_is_its_definition() -> None:
    base, experts = models()
    eta, keep, steps, rate, subspace = 0.5, 0.4, 30, 1e-2, 4
    tau = {name: [torch.from_numpy(t) for t in by_tensor(base, experts, name)] for name in MATRICES}
    thresholds = []
    for i in range(3):
        every = torch.cat([tau[name][i].abs().flatten() for name in MATRICES]).sort().values
        thresholds.append(every[len(every) - int(keep * len(every))])
    found = merged("doge_ta", base, experts, eta=eta, keep=keep, steps=steps, learning_rate=rate, subspace=subspace)
    torch.testing.assert_close(found["norm"], base["norm"], rtol=0, atol=0)
    for name in MATRICES:
        weights = [eta / t.norm() for t in tau[name]]
        rank = min(tau[name][0].shape)
        left = torch.cat([torch.linalg.svd(t)[0][:, : rank // 3] for t in tau[name]], dim=1)
        basis = torch.linalg.svd(left)[0][:, : rank // subspace]
        correction = torch.zeros_like(tau[name][0], requires_grad=True)
        optimizer = torch.optim.Adam([correction], lr=rate)
        first = doge_loss(correction, tau[name], weights).item()
        for _ in range(steps):
            optimizer.zero_grad()
            doge_loss(correction, tau[name], weights).backward()
            assert correction.grad is not None
            correction.grad -= basis @ (basis.T @ correction.grad)
            optimizer.step()
        solved = correction.detach()
        assert doge_loss(solved, tau[name], weights).item() < first
        expected = sum(w * (t + solved) * (t.abs() >= c) for w, t, c in zip(weights, tau[name], thresholds))
        np.testing.assert_allclose((found[name] - base[name]).numpy(), expected.numpy(), atol=3e-6, err_msg=name)


def test_doge_without_steps_adds_task_vectors_of_one_length() -> None:
    base, experts = models()
    found = merged("doge_ta", base, experts, eta=0.3, keep=1.0, steps=0)
    for name in MATRICES:
        expected = sum(0.3 * t / np.linalg.norm(t) for t in by_tensor(base, experts, name))
        np.testing.assert_allclose((found[name] - base[name]).numpy(), expected, atol=1e-6)
    nothing = merged("doge_ta", base, experts, eta=0.0)
    assert all(torch.equal(nothing[name], base[name]) for name in base)
