"""The recipe: the one complete, frozen description of a merged model.

A recipe materialises to the same bits anywhere: it names its models, its method, every number, and the seed of random
masks. Values resolve per tensor: the first rule that matches the tensor (and expert) wins.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Scalar = float | int | bool | str

COMPONENTS = ("attention", "mlp", "norms", "embeddings", "head", "other")


@dataclass(frozen=True)
class Source:
    """A model on disk, on the hub or in the zoo, optionally with a LoRA adapter baked in.

    Attributes:
        model: hub id, local directory, or ``zoo:<name>``.
        revision: hub revision of ``model``.
        adapter: hub id or local directory of a LoRA adapter.
        adapter_revision: hub revision of ``adapter``.
        into: the part of the other models that this model is, as a module path (``language_model``). Tensors outside
            that part are left out of the merge for it. None = a whole model.
    """

    model: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None
    into: str | None = None

    def __str__(self) -> str:
        text = self.model + (f"@{self.revision}" if self.revision else "")
        if self.adapter:
            text += f"+{self.adapter}" + (f"@{self.adapter_revision}" if self.adapter_revision else "")
        return text + (f" into {self.into}" if self.into else "")


@dataclass(frozen=True)
class Rule:
    """A value for the tensors it matches. A field that is None matches everything.

    Attributes:
        value: a scalar, or a gradient: two or more knots interpolated linearly over the blocks of ``blocks`` (over all
            blocks when that is None). Tensors outside the blocks take the first knot (mergekit's convention).
        blocks: half-open range of block indices ``(start, end)``; then tensors outside the blocks do not match.
        component: one of COMPONENTS, or ``regex:<pattern>`` searched in the tensor name.
        expert: name of an expert of the merge.
        contains: plain substring of the tensor name (mergekit's filters).
        outside_blocks: True matches only tensors outside the blocks.
    """

    value: Scalar | tuple[float, ...]
    blocks: tuple[int, int] | None = None
    component: str | None = None
    expert: str | None = None
    contains: str | None = None
    outside_blocks: bool = False


@dataclass(frozen=True)
class Stretch:
    """Parameters in a row that have the same coefficients, up to where the next stretch begins.

    Attributes:
        tensor: the tensor that holds the first of them.
        offset: its place in that tensor, flattened row by row.
        value: ``(E,)`` coefficients of the experts.
    """

    tensor: str
    offset: int
    value: tuple[float, ...]


@dataclass(frozen=True)
class Stretches:
    """Coefficients that change at any parameter, not only between tensors.

    Attributes:
        layout: ``TensorLayout.id`` of the tensors they were laid over: their names, sizes and order.
        parts: in order of the parameters; the first begins at the first parameter.
    """

    layout: str
    parts: tuple[Stretch, ...]


@dataclass(frozen=True)
class Merge:
    """One merge of experts, optionally around a base.

    Attributes:
        method: name of a registered merge method.
        experts: (name, source) in a fixed order; a source may itself be a merge.
        base: the common ancestor, or None.
        parameters: (hyperparameter, rules), sorted by name; evomerge's hyperparameter names.
        seed: seed of the random masks of stochastic methods; 0 for the others.
        stretches: coefficients of a ``linear`` merge by stretches of its parameters, in place of ``coefficient``.
    """

    method: str
    experts: tuple[tuple[str, Node], ...]
    base: Node | None = None
    parameters: tuple[tuple[str, tuple[Rule, ...]], ...] = ()
    seed: int = 0
    stretches: Stretches | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", tuple(sorted(self.parameters, key=lambda entry: entry[0])))

    def rules(self, name: str) -> tuple[Rule, ...]:
        """Rules of one hyperparameter, empty when the recipe leaves it at its default."""
        return dict(self.parameters).get(name, ())


@dataclass(frozen=True)
class StackPart:
    """Some blocks of a model.

    Attributes:
        node: the model: a source, a merge or a stack.
        start: its first block that is taken.
        end: the block behind the last one that is taken.
    """

    node: Node
    start: int
    end: int


@dataclass(frozen=True)
class Stack:
    """A model made of blocks of others, one part after the other; blocks may repeat, be skipped or change places.

    Tensors before the blocks (embeddings) are those of the first part's node, tensors after the blocks (final norm,
    head) those of the last part's.

    Attributes:
        parts: at least one.
    """

    parts: tuple[StackPart, ...]

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the stacked model."""
        return sum(part.end - part.start for part in self.parts)


@dataclass(frozen=True)
class Modules:
    """A model of several modules (text, vision), each made in its own way.

    Attributes:
        parts: (module, node) in the file's order. A module is a part of the tensors' names (``vision_tower``), or one
            of mergekit's words for them: ``text_decoder``, ``vision_tower``, ``multi_modal_projector``, ``default``.
    """

    parts: tuple[tuple[str, Node], ...]


@dataclass(frozen=True)
class Hop:
    """One step of a route.

    Attributes:
        model: the name of one of the route's models.
        block: which of its blocks runs.
        scale: what the block's input is multiplied by, see ``Route.scale_target``.
    """

    model: str
    block: int
    scale: float = 1.0


@dataclass(frozen=True)
class Route:
    """A path through blocks of models: which block runs when, with its input scaled. Only the root of a recipe.

    Scales follow the published data-flow merges (arXiv 2403.13187): with ``stream`` the whole residual stream is
    multiplied before it enters the hop's block, and by ``output_scale`` before the final norm; with ``branch`` only
    what the previous hop's last sublayer added to the stream is (at the first hop: the embeddings), as in the published
    model's vLLM code. The two agree where all scales are 1.

    Attributes:
        models: (name, node) of every model that lends blocks or the ends; no route among them.
        hops: at least one.
        ends: the name of the model that lends everything outside the blocks: embeddings, final norm, head.
        scale_target: ``stream`` or ``branch``.
        output_scale: of the stream behind the last block; 1 with ``branch``.
    """

    models: tuple[tuple[str, Node], ...]
    hops: tuple[Hop, ...]
    ends: str
    scale_target: str = "stream"
    output_scale: float = 1.0

    def node(self, name: str) -> Node:
        """The model of that name.

        Raises:
            KeyError: there is none.
        """
        return dict(self.models)[name]

    @property
    def is_scaled(self) -> bool:
        """Whether any scale differs from 1."""
        return self.output_scale != 1 or any(hop.scale != 1 for hop in self.hops)


Node = Source | Merge | Stack | Modules | Route


def route_through(
    models: Mapping[str, Node],
    hops: Iterable[Hop],
    ends: str,
    scale_target: str = "stream",
    output_scale: float = 1.0,
) -> Route:
    """A route that names only the models it uses, so that equal paths are equal routes.

    Args:
        models: name to node, in a fixed order.
        hops: the path.
        ends: the name of the model that lends everything outside the blocks.
        scale_target: ``stream`` or ``branch``.
        output_scale: of the stream behind the last block.
    """
    path = tuple(hops)
    used = {hop.model for hop in path} | {ends}
    kept = tuple((name, node) for name, node in models.items() if name in used)
    return Route(kept, path, ends, scale_target, output_scale)


@dataclass(frozen=True)
class TokenRow:
    """Where the row of one token comes from in models that lack it.

    Without a model and ``zero`` it comes from the models that have the token, as for any other token.

    Attributes:
        token: the token.
        model: the model that lends a row.
        of_token: the token whose row it is; None = the same token's, unless ``of_id`` is given.
        of_id: the number of the row.
        zero: the row is zero.
        force: the row is used in every model, also in those that have the token.
    """

    token: str
    model: Source | None = None
    of_token: str | None = None
    of_id: int | None = None
    zero: bool = False
    force: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of the merged model, where they are not simply those that all its models share.

    Attributes:
        source: ``union`` of all models' tokens, ``base`` = those of the recipe's reference, or a model.
        tokens: rows of single tokens, sorted by token; tokens the vocabulary lacks are added to it.
        pad_to_multiple_of: embeddings get rows until their number is a multiple of this.
        base: the model whose rows the others borrow first; None = the base of the merge.
    """

    source: str | Source
    tokens: tuple[TokenRow, ...] = ()
    pad_to_multiple_of: int | None = None
    base: Source | None = None


@dataclass(frozen=True)
class Recipe:
    """A merged model: what to merge, and how it is stored.

    Attributes:
        model: the root of the merge tree.
        dtype: dtype of the merged weights (``bfloat16``, ``float16``, ``float32``), None = the base model's own.
        tokenizer: whose tokenizer, config and generation config are used; None = the base model, else the first expert.
        options: ``num_blocks`` = depth of the merged model, which may be less than its models'.
        vocabulary: the merged model's tokens; None = as in all its models, which must then agree.
        chat_template: ``auto``, a name or a Jinja template written into the tokenizer; None = the tokenizer's own.
        parity: ``mergekit`` computes as mergekit does, also where that is less exact; None = in fp32.
        compute_dtype: with ``parity``, the dtype of all arithmetic; None = the models' own.
    """

    model: Node
    dtype: str | None = None
    tokenizer: Source | None = None
    options: tuple[tuple[str, Scalar], ...] = field(default=())
    vocabulary: Vocabulary | None = None
    chat_template: str | None = None
    parity: str | None = None
    compute_dtype: str | None = None

    @cached_property
    def recipe_id(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical form."""
        return hashlib.sha256(json.dumps(canonical(self), sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every model named in the recipe, base first, each once, in tree order."""
        lending = [] if self.vocabulary is None else [row.model for row in self.vocabulary.tokens if row.model]
        return tuple(dict.fromkeys((*_walk(self.model), *lending)))

    @property
    def reference(self) -> Source:
        """The model that lends architecture, tokenizer and configuration."""
        return self.tokenizer or next(_walk(self.model))


def _walk(node: Node) -> Iterator[Source]:
    if isinstance(node, Source):
        yield node
        return
    for inner in children(node):
        yield from _walk(inner)


def children(node: Node) -> tuple[Node, ...]:
    """The nodes right below a node: of a merge its base and experts, of a route its ends and the other models."""
    if isinstance(node, Route):
        ends = node.node(node.ends)
        return (ends, *(inner for name, inner in node.models if name != node.ends))
    if isinstance(node, Modules):
        return tuple(inner for _, inner in node.parts)
    if isinstance(node, Merge):
        return (*(() if node.base is None else (node.base,)), *(expert for _, expert in node.experts))
    return tuple(part.node for part in node.parts) if isinstance(node, Stack) else ()


def canonical(thing: Any) -> Any:
    """JSON-ready form in which equal recipes are equal: tagged nodes, default fields left out, no negative zeros."""
    if type(thing) in _DEFAULTS:
        entries: dict[str, Any] = {"is": type(thing).__name__}
        for name, default in _DEFAULTS[type(thing)].items():
            value = getattr(thing, name)
            if value != default or type(value) is not type(default):
                entries[name] = canonical(value)
        return entries
    if isinstance(thing, tuple | list):
        return [canonical(item) for item in thing]
    if isinstance(thing, float):
        return thing + 0.0 if thing != int(thing) or abs(thing) > 2**53 else int(thing)
    return thing


def _defaults(cls: type[Any]) -> dict[str, Any]:
    missing = object()
    return {
        entry.name: missing if entry.default is dataclasses.MISSING else entry.default
        for entry in dataclasses.fields(cls)
    }


_TAGGED: tuple[type[Any], ...] = (
    Recipe, Merge, Source, Rule, Stack, StackPart, Vocabulary, TokenRow, Modules, Hop, Route, Stretch, Stretches,
)  # fmt: skip
_DEFAULTS: dict[type[Any], dict[str, Any]] = {cls: _defaults(cls) for cls in _TAGGED}
