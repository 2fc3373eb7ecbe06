"""Time prepare and apply of every merge method on tensors shaped like SmolLM2-135M, beside a plain copy of the weights.

``python scripts/bench_methods.py --threads 2``. Every repetition runs all the cases one after the other and the best
one counts, so that other work on the machine hits them alike. ``x copy`` is the ratio to the copy in CPU time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evomerge.methods.base import TensorContext
from evomerge.methods.catalogue import SPECS, load_method

NUM_BLOCKS, HIDDEN, MLP, KEY_VALUE, VOCABULARY = 30, 576, 1536, 192, 49152
KEYS = ("math", "spanish", "capitals")
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ties": [{"normalize": False}, {"normalize": True}],
    "dare_ties": [{"normalize": False}, {"normalize": True}],
}


def shapes(num_blocks: int, vocabulary: int) -> list[tuple[int, ...]]:
    block = [
        (HIDDEN, HIDDEN),
        (KEY_VALUE, HIDDEN),
        (KEY_VALUE, HIDDEN),
        (HIDDEN, HIDDEN),
        (MLP, HIDDEN),
        (MLP, HIDDEN),
        (HIDDEN, MLP),
        (HIDDEN,),
        (HIDDEN,),
    ]
    return [(vocabulary, HIDDEN), *block * num_blocks, (HIDDEN,)]


def make_models(sizes: list[tuple[int, ...]], num_experts: int) -> list[list[Tensor]]:
    """Base and experts in bf16; task vectors of a hundredth of the weights' size, on bf16's grid."""
    generator = torch.Generator().manual_seed(0)
    base = [torch.randn(size, generator=generator).mul_(0.05).bfloat16() for size in sizes]
    experts = []
    for _ in range(num_experts):
        noise = (torch.randn(tensor.shape, generator=generator).mul_(0.0005) for tensor in base)
        experts.append([(tensor.float() + delta).bfloat16() for tensor, delta in zip(base, noise, strict=True)])
    return [base, *experts]


def middling_values(name: str, given: dict[str, Any], num_experts: int) -> tuple[dict[str, Any], dict[str, Any]]:
    middling = {"coefficient": [0.3, 0.5, 0.4][:num_experts], "density": [0.3, 0.5, 0.7][:num_experts], "t": 0.4}
    structural, values = {}, {}
    for parameter in SPECS[name].hyperparameters:
        value = given.get(parameter.name, middling.get(parameter.name, parameter.default))
        (structural if parameter.structural else values)[parameter.name] = value
    return structural, values


def naive_ties(base: Tensor, experts: list[Tensor], values: dict[str, Any], out: Tensor) -> None:
    """What a plain per-tensor implementation does for each candidate."""
    origin = base.float()
    deltas = []
    for expert, coefficient, density in zip(experts, values["coefficient"], values["density"], strict=True):
        delta = expert.float() - origin
        kept = delta.abs().view(-1).topk(max(1, int(density * delta.numel())), sorted=False).indices
        mask = torch.zeros(delta.numel()).scatter_(0, kept, 1.0).view(delta.shape)
        deltas.append(delta * mask * coefficient)
    stacked = torch.stack(deltas)
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    out.copy_(origin + (stacked * (stacked.sign() == sign)).sum(0))


def best(cases: dict[str, Callable[[], None]], repeats: int) -> dict[str, tuple[float, float]]:
    """Smallest (wall seconds, CPU seconds) of each case."""
    times: dict[str, tuple[float, float]] = {}
    for _ in range(repeats):
        for name, case in cases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            case()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            before = times.get(name, (wall, cpu))
            times[name] = (min(before[0], wall), min(before[1], cpu))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--experts", type=int, default=3, choices=(1, 2, 3))
    parser.add_argument("--blocks", type=int, default=NUM_BLOCKS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--naive", action="store_true", help="also time a plain TIES, which takes a while")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    base, *experts = make_models(shapes(options.blocks, options.vocabulary), options.experts)
    outs = [torch.empty_like(tensor) for tensor in base]
    by_tensor = [list(tensors) for tensors in zip(*experts, strict=True)]
    num_parameters = sum(tensor.numel() for tensor in base)
    print(f"{num_parameters / 1e6:.1f} M parameters, {options.experts} experts, {options.threads} threads")

    def copy() -> None:
        for out, tensor in zip(outs, base, strict=True):
            out.copy_(tensor)

    cases: dict[str, Callable[[], None]] = {"copy": copy}
    prepared: dict[str, tuple[float, float, int]] = {}
    for name in SPECS:
        num_experts = 1 if name == "slerp" else options.experts
        for given in VARIANTS.get(name, [{}]):
            label = " ".join([name, *("normalized" for on in given.values() if on)])
            structural, values = middling_values(name, given, num_experts)
            method = load_method(name)
            wall, cpu = time.perf_counter(), time.process_time()
            states = [
                method.prepare(
                    tensor, of_tensor[:num_experts], structural, TensorContext(f"t{i}", 0, KEYS[:num_experts])
                )
                for i, (tensor, of_tensor) in enumerate(zip(base, by_tensor, strict=True))
            ]
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            prepared[label] = (wall, cpu, sum(method.state_bytes(state) for state in states))

            def apply(method: Any = method, states: list[Any] = states, values: dict[str, Any] = values) -> None:
                for state, out in zip(states, outs, strict=True):
                    method.apply(state, values, out)

            cases[label] = apply
    times = best(cases, options.repeats)
    if options.naive and options.experts == 3:
        values = middling_values("ties", {}, 3)[1]

        def naive() -> None:
            for tensor, of_tensor, out in zip(base, by_tensor, outs, strict=True):
                naive_ties(tensor, of_tensor, values, out)

        times |= best({"plain ties": naive}, 1)

    print(f"{'':22s}{'wall s':>9s}{'CPU s':>9s}{'x copy':>9s}{'prepare s':>12s}{'CPU s':>9s}{'state MB':>10s}")
    for label, (wall, cpu) in times.items():
        line = f"{label:22s}{wall:9.3f}{cpu:9.3f}{cpu / times['copy'][1]:9.1f}"
        if label in prepared:
            wall, cpu, size = prepared[label]
            line += f"{wall:12.2f}{cpu:9.2f}{size / 1e6:10.0f}"
        print(line)


if __name__ == "__main__":
    main()
