"""The ``tokenizer`` key of recipes, in evomerge's own form and in mergekit's, which agree on all but ``base``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evomerge.errors import did_you_mean
from evomerge.recipes.recipe import Source, TokenRow, Vocabulary

WORDS = ("union", "base")
KEYS = ("source", "tokens", "pad_to_multiple_of")
ROW_KEYS = ("source", "force")

Report = Callable[[str, str], None]
ReadSource = Callable[[Any, str], Source | None]


class VocabularyReader:
    """Reads one ``tokenizer`` mapping; what is wrong goes to ``report(key, message)``."""

    def __init__(self, report: Report, source: ReadSource) -> None:
        self._report = report
        self._source = source

    def vocabulary(
        self, settings: Mapping[str, Any], key: str, more_keys: tuple[str, ...] = (), base: Source | None = None
    ) -> Vocabulary | None:
        """The vocabulary of ``{source: ..., tokens: ..., pad_to_multiple_of: ...}``.

        Args:
            settings: the mapping.
            key: its key in the file.
            more_keys: keys that others read.
            base: the model whose rows the others borrow first.
        """
        self._check_keys(settings, key, (*KEYS, *more_keys))
        source = self.tokens_of(settings.get("source", "union"), f"{key}.source")
        multiple = settings.get("pad_to_multiple_of")
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            self._report(f"{key}.pad_to_multiple_of", f"expected a whole number of at least 1, got {multiple!r}")
            multiple = None
        rows = self._rows(settings.get("tokens"), f"{key}.tokens")
        return None if source is None else Vocabulary(source, rows, multiple, base)

    def tokens_of(self, value: Any, key: str) -> str | Source | None:
        """Whose tokens: one of WORDS or a model."""
        return value if value in WORDS else self._source(value, key)

    def _rows(self, value: Any, key: str) -> tuple[TokenRow, ...]:
        if value is None:
            return ()
        if not isinstance(value, Mapping):
            self._report(key, f"expected a mapping of tokens to {{source: ..., force: ...}}, got {value!r}")
            return ()
        rows = [self._row(token, item, f"{key}.{token}") for token, item in value.items()]
        return tuple(sorted((row for row in rows if row is not None), key=lambda row: row.token))

    def _row(self, token: str, value: Any, key: str) -> TokenRow | None:
        if not isinstance(value, Mapping | None):
            self._report(key, f"expected {{source: ..., force: ...}}, got {value!r}")
            return None
        entries = value or {}
        self._check_keys(entries, key, ROW_KEYS)
        force = entries.get("force", False)
        if not isinstance(force, bool):
            self._report(f"{key}.force", f"expected true or false, got {force!r}")
            return None
        source = entries.get("source")
        if source is None:
            if force:
                self._report(f"{key}.force", "needs a source: whose row shall all models get?")
            return TokenRow(token)
        if not isinstance(source, Mapping) or "kind" not in source:
            model = self._source(source, f"{key}.source")
            return None if model is None else TokenRow(token, model, force=force)
        if source["kind"] == "zero":
            self._check_keys(source, f"{key}.source", ("kind",))
            return TokenRow(token, zero=True, force=force)
        return self._row_of_another(token, source, f"{key}.source", force)

    def _row_of_another(self, token: str, source: Mapping[str, Any], key: str, force: bool) -> TokenRow | None:
        if source["kind"] != "model_token":
            self._report(f"{key}.kind", f"expected zero or model_token, got {source['kind']!r}")
            return None
        self._check_keys(source, key, ("kind", "model", "token", "token_id"))
        model = self._source(source.get("model"), f"{key}.model")
        text, number = source.get("token"), source.get("token_id")
        if (text is None) == (number is None):
            self._report(key, "expected either token or token_id")
        elif not isinstance(text, str | None):
            self._report(f"{key}.token", f"expected text, got {text!r}; put it in quotes")
        elif number is not None and (type(number) is not int or number < 0):
            self._report(f"{key}.token_id", f"expected a whole number, got {number!r}")
        elif model is not None:
            return TokenRow(token, model, text, number, force=force)
        return None

    def _check_keys(self, entries: Mapping[str, Any], key: str, known: tuple[str, ...]) -> None:
        for name in entries:
            if name not in known:
                self._report(f"{key}.{name}", f"unknown key. {did_you_mean(name, known)}")


def vocabulary_value(vocabulary: Vocabulary, write: Callable[[Source], Any]) -> dict[str, Any]:
    """What ``vocabulary`` reads, as a YAML value without ``base``.

    Args:
        vocabulary: any.
        write: a source as a YAML value.
    """
    source = vocabulary.source
    entries: dict[str, Any] = {"source": source if isinstance(source, str) else _model(source, write)}
    if vocabulary.tokens:
        entries["tokens"] = {row.token: _row_value(row, write) for row in vocabulary.tokens}
    if vocabulary.pad_to_multiple_of is not None:
        entries["pad_to_multiple_of"] = vocabulary.pad_to_multiple_of
    return entries


def _row_value(row: TokenRow, write: Callable[[Source], Any]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    if row.zero:
        entries["source"] = {"kind": "zero"}
    elif row.model is not None and row.of_token is None and row.of_id is None:
        entries["source"] = _model(row.model, write)
    elif row.model is not None:
        of = {"token": row.of_token} if row.of_token is not None else {"token_id": row.of_id}
        entries["source"] = {"kind": "model_token", "model": write(row.model), **of}
    if row.force:
        entries["force"] = True
    return entries


def _model(source: Source, write: Callable[[Source], Any]) -> Any:
    """The source as a value that is not taken for one of WORDS."""
    value = write(source)
    return {"model": value} if value in WORDS else value
