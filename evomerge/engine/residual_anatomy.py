"""Which modules of a block read the residual stream and which write to it, found by watching a small model run.

No table of architectures: a random model of the same configuration (``probe_model``) runs once with hooks on every
module (``stream_watch``), and the block's output is taken apart into its input plus what modules gave. Whether scales
can be folded into the block is then proved on it: with its writes divided by c and its reads adjusted it must give
block(x) / c for the input x / c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from evomerge.engine.probe_model import BUILD_ERRORS, ProbeModel
from evomerge.engine.stream_watch import Seen, StreamWatch, watch
from evomerge.errors import UserError

# Of a relative difference. In float32, on streams of size 1, rounding and the norms' epsilons stay far below.
TOLERANCE = 2e-3
PROOF_SCALES = (-0.5, 2.0)

Read = Callable[[StreamWatch], Tensor | None]


@dataclass(frozen=True)
class ScaledTensor:
    """A tensor that an output is proportional to.

    Attributes:
        name: its path.
        offset: the output is proportional to tensor + offset; 1 where a norm multiplies by 1 + gain.
    """

    name: str
    offset: float = 0.0


@dataclass(frozen=True)
class ResidualAnatomy:
    """Where a block touches the residual stream. Names are paths inside the block.

    Attributes:
        input_norms: the norms that read the stream, in running order.
        writes: the innermost modules whose output is added to the stream, in running order; the last is the last
            sublayer's. A norm where an architecture has one behind its sublayers.
        write_tensors: for each write what its output is proportional to, all together.
        norm_gains: of the input norms.
        linear_reads: weights of linear layers that read the stream without a norm in between.
        final_norm: gain of the norm behind the blocks, its path in the model; None where there is none.
        final_output: what the output of that norm is proportional to, all together; paths in the model.
        embeddings: what the stream that enters the first block is proportional to, all together; paths in the model.
            Empty where that cannot be said.
        fold_problem: why scales of the stream cannot be folded into the block's weights; None where they can.
        sign_problem: why negative ones cannot.
    """

    input_norms: tuple[str, ...]
    writes: tuple[str, ...]
    write_tensors: tuple[tuple[ScaledTensor, ...], ...] = ()
    norm_gains: tuple[ScaledTensor, ...] = ()
    linear_reads: tuple[str, ...] = ()
    final_norm: ScaledTensor | None = None
    final_output: tuple[ScaledTensor, ...] = ()
    embeddings: tuple[ScaledTensor, ...] = ()
    fold_problem: str | None = None
    sign_problem: str | None = None


def residual_anatomy(model: nn.Module, stack_name: str, block_index: int = 0) -> ResidualAnatomy:
    """Where a block of a model touches the residual stream.

    Args:
        model: any transformers model, also on the meta device. Only its class and configuration are looked at; it is
            left alone.
        stack_name: module path of its list of blocks.
        block_index: which block.

    Raises:
        UserError: the block cannot be run alone, or its output is no sum of its input and what modules give.
    """
    try:
        return _Search(ProbeModel(model, stack_name, block_index), stack_name).anatomy()
    except BUILD_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the blocks of {type(model).__name__} cannot be understood ({reason})") from error


class _Search:
    """The search for one block's anatomy."""

    def __init__(self, probe: ProbeModel, stack_name: str) -> None:
        self._probe, self._stack = probe, stack_name
        self._prefix = f"{stack_name}.0."
        self._kind = type(probe.block).__name__
        self._parameters = {name: parameter.detach().clone() for name, parameter in probe.model.named_parameters()}
        self._seen = watch(probe, stack_name)

    def anatomy(self) -> ResidualAnatomy:
        terms = self._find_terms()
        writes = [name for name, _ in terms]
        states = [self._seen.stream_in]
        for name, factor in terms:
            states.append(states[-1] + factor * self._output(name))
        problems: list[str] = []
        write_tensors = []
        for name in writes:
            tensors = self._written_by(name)
            if tensors is None:
                problems.append(f"no weights of {name} are a plain factor of what it adds to the stream")
            write_tensors.append(tensors or ())
        norms, linears = self._find_reads(self._seen.inside, states, problems)
        final, direct = self._find_reads(self._seen.outside, [self._seen.stream_out], problems)
        if direct or len(final) != 1:
            problems.append("no single norm stands between the last block and the head")
        gains = [(name, self._gain(seen)) for name, seen in (*norms.items(), *final.items())]
        lacking = [name for name, gain in gains if gain is None]
        found = ResidualAnatomy(
            input_norms=tuple(norms),
            writes=tuple(writes),
            write_tensors=tuple(write_tensors),
            norm_gains=tuple(_inside(name, gain) for name, gain in gains[: len(norms)] if gain is not None),
            linear_reads=tuple(f"{name}.weight" for name in linears),
            final_norm=_inside(*gains[-1]) if final and gains[-1][1] is not None else None,
            final_output=self._final_output(list(final)) or (),
            embeddings=self._embeddings() or (),
            fold_problem="; ".join(problems) or None,
            sign_problem=f"{lacking[0]} has no gain whose sign could be turned" if lacking else None,
        )
        return found if problems else replace(found, fold_problem=self._disproof(found))

    def _find_terms(self) -> list[tuple[str, float]]:
        """The modules whose outputs add up to the change of the stream, in running order, with their factors."""
        shown = ""
        for candidates in (self._own_parameters(), self._outermost()):
            names = sorted(candidates, key=lambda name: self._seen.inside[name].order)
            columns = [self._seen.stream_in, *(self._output(name) for name in names)]
            factors, error = _explain(self._seen.stream_out, columns)
            if error > TOLERANCE or abs(factors[0]) < TOLERANCE:
                shown = "its output is no sum of its input and what its modules give"
                continue
            if abs(factors[0] - 1) > TOLERANCE:
                shown = f"it multiplies the residual stream by {factors[0]:.3g}"
                continue
            size = self._seen.stream_out.norm()
            pairs = zip(names, factors[1:], strict=True)
            terms = [(n, f) for n, f in pairs if abs(f) * self._output(n).norm() > TOLERANCE * size]
            return [(self._innermost(name), factor) for name, factor in terms]
        raise UserError(f"{self._kind} cannot be understood: {shown}")

    def _own_parameters(self) -> list[str]:
        """Modules that hold parameters themselves and give something of the stream's size; equal ones once."""
        found: list[str] = []
        for name, seen in self._seen.inside.items():
            has_own = any(True for _ in seen.module.parameters(recurse=False))
            if has_own and seen.output is not None and not any(_same(seen.output, self._output(n)) for n in found):
                found.append(name)
        return found

    def _outermost(self) -> list[str]:
        """The block's children that give something of the stream's size."""
        return [name for name, seen in self._seen.inside.items() if "." not in name and seen.output is not None]

    def _innermost(self, name: str) -> str:
        """The deepest module with parameters inside this one that gives the same."""
        inner = [
            other
            for other, seen in self._seen.inside.items()
            if other.startswith(f"{name}.")
            and any(True for _ in seen.module.parameters())
            and seen.output is not None
            and _same(seen.output, self._output(name))
        ]
        return max(inner, key=lambda other: other.count("."), default=name)

    def _output(self, name: str) -> Tensor:
        output = self._seen.inside[name].output
        assert output is not None
        return output

    def _find_reads(
        self, place: dict[str, Seen], states: list[Tensor], problems: list[str]
    ) -> tuple[dict[str, Seen], dict[str, Seen]]:
        """Innermost modules that are given the stream: norms, and linear layers."""
        norms: dict[str, Seen] = {}
        linears: dict[str, Seen] = {}
        for name, seen in place.items():
            if any(True for _ in seen.module.children()):
                continue
            given = [value for value in seen.inputs if any(_same(value.flatten(), state) for state in states)]
            kind = _kind_of_read(seen.module, given[0]) if given else "other"
            if kind == "norm":
                norms[name] = seen
            elif kind == "linear" and set(dict(seen.module.named_parameters())) <= {"weight", "bias"}:
                linears[name] = seen
            elif given and kind != "same":
                problems.append(f"{name} reads the residual stream and is no norm")
        return norms, linears

    def _gain(self, seen: Seen) -> ScaledTensor | None:
        """The tensor of a norm whose sign is the sign of what it gives."""
        given = seen.inputs[0]
        zero = seen.module(torch.zeros_like(given))
        plain = seen.module(given) - zero
        for name, parameter in seen.module.named_parameters():
            for offset in (0.0, 1.0):
                with _replaced(parameter, -(parameter + offset) - offset):
                    turned = seen.module(given) - zero
                if _same(turned, -plain):
                    return ScaledTensor(name, offset)
        return None

    def _written_by(self, module: str) -> tuple[ScaledTensor, ...] | None:
        names = [name for name in self._parameters if name.startswith(f"{self._prefix}{module}.")]
        found = self._proportional(names, lambda run: run.inside[module].output)
        return found and tuple(ScaledTensor(entry.name.removeprefix(self._prefix), entry.offset) for entry in found)

    def _final_output(self, modules: list[str]) -> tuple[ScaledTensor, ...] | None:
        if len(modules) != 1:
            return None
        names = [name for name in self._parameters if name.rpartition(".")[0] == modules[0]]
        return self._proportional(names, lambda run: run.outside[modules[0]].output)

    def _embeddings(self) -> tuple[ScaledTensor, ...] | None:
        first = min(seen.order for seen in self._seen.inside.values() if seen.order >= 0)
        before = [name for name, seen in self._seen.outside.items() if 0 <= seen.order < first]
        names = [name for name in self._parameters if name.rpartition(".")[0] in before]
        return self._proportional(names, lambda run: run.embedded)

    def _proportional(self, names: list[str], read: Read) -> tuple[ScaledTensor, ...] | None:
        """Which of some parameters, multiplied together by any number, multiply a tensor of the run by it."""
        whole = read(self._seen)
        if whole is None:
            return None
        order = {self._prefix + name: seen.order for name, seen in self._seen.inside.items()}
        order |= {name: seen.order for name, seen in self._seen.outside.items()}
        # What runs last is nearest to the output: down_proj before up_proj.
        names = sorted(names, key=lambda name: -order.get(name.rpartition(".")[0], -1))
        for offset in (0.0, 1.0):
            rest, chosen = whole, []
            for name in names:
                share = self._share(whole, read, name, offset)
                if share is not None and (rest - share).norm() < 0.9 * rest.norm():
                    rest = rest - share
                    chosen.append(ScaledTensor(name, offset))
                if rest.norm() < TOLERANCE * whole.norm():
                    return tuple(chosen)
        return None

    def _share(self, whole: Tensor, read: Read, name: str, offset: float) -> Tensor | None:
        """What of a tensor of the run is proportional to a parameter; None where it depends on it in another way."""
        value = self._parameters[name]
        if offset and value.ndim > 1:
            return None
        shares = []
        for factor in (2.0, 3.0):
            with self._probe.changed({name: factor * (value + offset) - offset}):
                changed = read(watch(self._probe, self._stack))
            assert changed is not None
            shares.append((changed - whole) / (factor - 1))
        is_straight = (shares[0] - shares[1]).norm() <= TOLERANCE * whole.norm()
        return shares[0] if is_straight else None

    def _disproof(self, found: ResidualAnatomy) -> str | None:
        """Why folding does not give the same block after all, None where it does."""
        for scale in PROOF_SCALES[1 if found.sign_problem else 0 :]:
            values = dict(self._folded(found, scale))
            for entry in found.embeddings:
                values[entry.name] = (self._parameters[entry.name] + entry.offset) / scale - entry.offset
            with self._probe.changed(values):
                folded = watch(self._probe, self._stack, 1.0 if found.embeddings else 1 / scale).stream_out * scale
            if not _same(folded, self._seen.stream_out):
                error = float((folded - self._seen.stream_out).norm() / self._seen.stream_out.norm())
                return f"a block whose stream is divided by {scale} differs by {error:.1%} with its weights adjusted"
        return None

    def _folded(self, found: ResidualAnatomy, scale: float) -> Iterator[tuple[str, Tensor]]:
        for entry in (tensor for tensors in found.write_tensors for tensor in tensors):
            name = self._prefix + entry.name
            yield name, (self._parameters[name] + entry.offset) / scale - entry.offset
        for entry in found.norm_gains if scale < 0 else ():
            name = self._prefix + entry.name
            yield name, -(self._parameters[name] + entry.offset) - entry.offset
        for read in found.linear_reads:
            yield self._prefix + read, self._parameters[self._prefix + read] * scale


def _inside(name: str, gain: ScaledTensor | None) -> ScaledTensor:
    assert gain is not None
    return ScaledTensor(f"{name}.{gain.name}", gain.offset)


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool((left - right).norm() <= TOLERANCE * right.norm())


def _explain(target: Tensor, columns: list[Tensor]) -> tuple[list[float], float]:
    """Factors with which the columns add up to the target, and the relative error."""
    matrix = torch.stack(columns, dim=1).double()
    solution = torch.linalg.lstsq(matrix, target.double().unsqueeze(1), driver="gelsd").solution
    error = (matrix @ solution).squeeze(1) - target.double()
    return [float(value) for value in solution.flatten()], float(error.norm() / target.double().norm())


def _kind_of_read(module: nn.Module, given: Tensor) -> str:
    """How a module's output depends on its input: ``norm`` (its sign), ``linear``, ``same`` or ``other``."""
    with torch.no_grad():
        zero, plain, other = (module(given * factor) for factor in (0.0, 1.0, -2.0))
    if not all(isinstance(value, Tensor) for value in (zero, plain, other)):
        return "other"
    if plain.shape == given.shape and torch.equal(plain, given):
        return "same"
    if _same(other - zero, zero - plain):
        return "norm"
    return "linear" if _same(other - zero, -2 * (plain - zero)) else "other"


@contextmanager
def _replaced(parameter: Tensor, value: Tensor) -> Iterator[None]:
    """Another value for a parameter, while the context lasts."""
    kept, value = parameter.detach().clone(), value.detach()
    with torch.no_grad():
        parameter.copy_(value)
        try:
            yield
        finally:
            parameter.copy_(kept)
