"""The tokens of a merged model whose sources have different ones, and the rows of embeddings that go with them.

A token keeps its own row in every model that has it. In the others it gets, first that applies: what the recipe says
for the token; the row of the only model that has it; the base's row; the mean of the rows of all models that have it;
zeros.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import UserError
from evomerge.recipes.recipe import Merge, Recipe, Source, TokenRow, Vocabulary

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
# Settings of a configuration that are numbers of tokens.
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "unk_token_id", "sep_token_id")


@dataclass(frozen=True)
class _Borrowed:
    """Where the rows of tokens that a model lacks come from, by row of the result.

    Attributes:
        single: model to (rows of the result, rows of the model).
        mean: rows that are the mean over all models that have the token.
    """

    single: Mapping[Source, tuple[Tensor, Tensor]]
    mean: Tensor


class TokenPlan:
    """The merged model's tokenizer, and each model's rows in its order."""

    def __init__(self, recipe: Recipe, directories: Mapping[Source, Path], rows: Mapping[Source, int]) -> None:
        """Build the tokenizer.

        Args:
            recipe: with a vocabulary.
            directories: of every source.
            rows: of every source's embeddings.

        Raises:
            UserError: a tokenizer is missing or cannot be used, or a token's row is not there.
        """
        assert recipe.vocabulary is not None
        self._vocabulary: Vocabulary = recipe.vocabulary
        self._base = recipe.vocabulary.base or _merged_base(recipe)
        reference = recipe.reference
        self._rows = rows
        loaded = {source: load_tokenizer(directories[source]) for source in directories}
        if loaded[reference] is None:
            raise UserError(f"{directories[reference]}: no tokenizer, so its tokens are unknown")
        for source, tokenizer in loaded.items():
            if tokenizer is None and rows[source] != rows[reference]:
                raise UserError(
                    f"{directories[source]}: no tokenizer, and {rows[source]} rows where {reference} has "
                    f"{rows[reference]}, so its tokens are unknown"
                )
        found = {source: tokenizer or loaded[reference] for source, tokenizer in loaded.items()}
        self._tokens = {source: _used(tokenizer, rows[source]) for source, tokenizer in found.items()}
        self.tokenizer = self._build(recipe, directories, found)
        self.vocabulary: dict[str, int] = dict(sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]))
        self.num_tokens = max(self.vocabulary.values()) + 1
        multiple = self._vocabulary.pad_to_multiple_of or 1
        self.num_rows = -(-self.num_tokens // multiple) * multiple
        self._own = {source: self._rows_of(self._tokens[source]) for source in found}
        self._settings = {self.vocabulary[row.token]: row for row in self._vocabulary.tokens}
        self._check_settings()
        self._ids = self._tokens[reference]

    @property
    def is_identity(self) -> bool:
        """Whether every model already has exactly these rows."""
        same = torch.arange(self.num_tokens)
        return (
            self.num_rows == self.num_tokens
            and not any(row.force for row in self._vocabulary.tokens)
            and all(torch.equal(own, same) and self._rows[source] == self.num_rows for source, own in self._own.items())
        )

    def tensor(self, source: Source, models: Sequence[Source], read: Callable[[Source], Tensor]) -> Tensor:
        """A model's tensor with the rows of the merged model's tokens.

        Args:
            source: the model.
            models: every model that this tensor is merged from, the base first.
            read: the stored tensor of a model; rows are tokens.

        Returns:
            ``(num_rows, ...)`` in the models' dtype; float32 where rows are means.
        """
        own = self._own[source].clone()
        own[[index for index, row in self._settings.items() if row.force]] = -1
        borrowed = self._borrowed(torch.nonzero(own < 0).flatten(), models)
        stored = read(source)
        dtype = stored.dtype
        for other in (*models, *borrowed.single):
            dtype = torch.promote_types(dtype, read(other).dtype)
        if len(borrowed.mean) or self.num_rows > self.num_tokens:
            dtype = torch.promote_types(dtype, torch.float32)
        result = torch.zeros((self.num_rows, *stored.shape[1:]), dtype=dtype)
        kept = torch.nonzero(own >= 0).flatten()
        result[kept] = stored[own[kept]].to(dtype)
        for other, (to, of) in borrowed.single.items():
            result[to] = read(other)[of].to(dtype)
        if len(borrowed.mean):
            result[borrowed.mean] = self._means(borrowed.mean, models, read).to(dtype)
        if self.num_rows > self.num_tokens:
            result[self.num_tokens :] = result[: self.num_tokens].mean(dim=0)
        return result

    def translated_ids(self, config: dict[str, Any]) -> dict[str, Any]:
        """A configuration of the reference with its special tokens' numbers in the merged vocabulary."""
        words = {index: token for token, index in self._ids.items()}

        def new(value: Any) -> Any:
            if isinstance(value, list):
                return [item for item in map(new, value) if item is not None]
            return self.vocabulary.get(words[value]) if value in words else value

        return {name: new(value) if name in TOKEN_IDS else value for name, value in config.items()}

    def _build(self, recipe: Recipe, directories: Mapping[Source, Path], found: Mapping[Source, Any]) -> Any:
        source = self._vocabulary.source
        if isinstance(source, Source):
            tokenizer = load_tokenizer(directories[source])
            if tokenizer is None:
                raise UserError(f"{directories[source]}: no tokenizer to take over")
        else:
            # Loaded anew, so that tokens can be added.
            tokenizer = load_tokenizer(directories[recipe.reference])
            _strip(tokenizer, self._rows[recipe.reference], directories[recipe.reference])
        if source == "union":
            self._add_all(tokenizer, recipe.reference, found)
        known = tokenizer.get_vocab()
        new = [row.token for row in self._vocabulary.tokens if row.token not in known]
        if new:
            tokenizer.add_tokens(new)
        return tokenizer

    def _add_all(self, tokenizer: Any, reference: Source, found: Mapping[Source, Any]) -> None:
        """First the ordinary tokens of the other models, then the added ones; whoever comes first decides settings."""
        known = set(tokenizer.get_vocab())
        ordinary: dict[str, None] = {}
        added: dict[str, Any] = {}
        for source in dict.fromkeys((reference, *found)):
            special = {
                info.content: info
                for index, info in sorted(found[source].added_tokens_decoder.items())
                if index < self._rows[source]
            }
            for token in self._tokens[source]:
                if token not in special and token not in known:
                    ordinary[token] = None
            for token, info in special.items():
                added.setdefault(token, info)
        tokenizer.add_tokens([token for token in ordinary if token not in added])
        tokenizer.add_tokens([info for token, info in added.items() if token not in known])

    def _rows_of(self, tokens: Mapping[str, int]) -> Tensor:
        """A model's row for every token ``(num_tokens,)``, -1 where it has none."""
        rows = torch.full((self.num_tokens,), -1, dtype=torch.int64)
        for token, index in self.vocabulary.items():
            rows[index] = tokens.get(token, -1)
        return rows

    def _borrowed(self, wanted: Tensor, models: Sequence[Source]) -> _Borrowed:
        present = torch.stack([self._own[model] >= 0 for model in models])  # (models, tokens)
        count = present.sum(dim=0)
        origins: dict[Source, list[tuple[int, int]]] = {}
        means = []
        for index in wanted.tolist():
            row = self._settings.get(index)
            if row is not None and row.zero:
                continue
            if row is not None and row.model is not None:
                origins.setdefault(row.model, []).append((index, self._row_of(row)))
                continue
            donors = [model for number, model in enumerate(models) if present[number, index]]
            if self._base in donors:
                donors = [self._base]
            if len(donors) == 1:
                origins.setdefault(donors[0], []).append((index, int(self._own[donors[0]][index])))
            elif int(count[index]) > 1:
                means.append(index)
        pairs = {model: torch.tensor(found).T for model, found in origins.items()}
        return _Borrowed(
            {model: (both[0], both[1]) for model, both in pairs.items()}, torch.tensor(means, dtype=torch.int64)
        )

    def _means(self, wanted: Tensor, models: Sequence[Source], read: Callable[[Source], Tensor]) -> Tensor:
        total: Tensor | None = None
        count = torch.zeros(len(wanted))
        for model in models:
            rows = self._own[model][wanted]
            has = rows >= 0
            values = read(model)[rows.clamp(min=0)].float()
            values[~has] = 0
            total = values if total is None else total + values
            count += has
        assert total is not None
        return total / count.view(-1, *[1] * (total.ndim - 1))

    def _row_of(self, row: TokenRow) -> int:
        assert row.model is not None
        if row.of_id is not None:
            return row.of_id
        return self._tokens[row.model][row.of_token if row.of_token is not None else row.token]

    def _check_settings(self) -> None:
        for row in self._vocabulary.tokens:
            if row.model is None:
                continue
            where = f"recipe: tokenizer.tokens.{row.token}"
            word = row.of_token if row.of_token is not None else row.token
            if row.of_id is None and word not in self._tokens[row.model]:
                raise UserError(f"{where}: {row.model} has no token {word!r}")
            if row.of_id is not None and row.of_id >= self._rows[row.model]:
                raise UserError(f"{where}: {row.model} has rows 0 to {self._rows[row.model] - 1}, got {row.of_id}")


def load_tokenizer(directory: Path) -> Any:
    """The fast tokenizer in a directory, None where there is none.

    Raises:
        UserError: there is one, but it cannot be read or has no fast form.
    """
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{directory}: its tokenizer cannot be read ({reason})") from error
    if not tokenizer.is_fast:
        raise UserError(f"{directory}: its tokenizer has no fast form (tokenizer.json), which changing tokens needs")
    return tokenizer


def _used(tokenizer: Any, rows: int) -> dict[str, int]:
    """Tokens that have a row, by number."""
    return {token: index for token, index in sorted(tokenizer.get_vocab().items(), key=lambda e: e[1]) if index < rows}


def _strip(tokenizer: Any, rows: int, directory: Path) -> None:
    """Take away tokens that have no row.

    Raises:
        UserError: there are such tokens, and the tokenizer is of a kind that cannot lose any.
    """
    from tokenizers import Tokenizer

    unused = {token for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not unused:
        return
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["id"] < rows]
    model = content["model"]
    if model["type"] != "BPE" and any(token in unused for token in _words(model)):
        raise UserError(
            f"{directory}: {len(unused)} of its tokens have no row in the embeddings, and a tokenizer of kind "
            f"{model['type']} cannot lose tokens; resize the model's embeddings first"
        )
    if model["type"] == "BPE":
        model["vocab"] = {token: index for token, index in model["vocab"].items() if token not in unused}
        model["merges"] = [pair for pair in model["merges"] if not unused.intersection(_pair(pair))]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))


def _words(model: Mapping[str, Any]) -> list[str]:
    return [entry if isinstance(entry, str) else entry[0] for entry in model.get("vocab", ())]


def _pair(merge: Any) -> tuple[str, ...]:
    left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], None, merge[1])
    joined = (left + right,)
    return (left, right, *joined)


def _merged_base(recipe: Recipe) -> Source | None:
    base = recipe.model.base if isinstance(recipe.model, Merge) else None
    return base if isinstance(base, Source) else None
