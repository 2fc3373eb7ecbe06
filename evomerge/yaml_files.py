"""Reading users' YAML: safe, strict, and with every problem told by file and key.

Differences to plain YAML 1.1, all to avoid surprises: duplicate keys are errors, ``yes no on off`` are text, ``1e-3``
is a number, dates and ``1:30`` are text, keys are text, one document per file.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evomerge.errors import InvalidInput, Problem, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

MAX_YAML_BYTES = 16 * 2**20
MAX_YAML_DEPTH = 200
MAX_YAML_VALUES = 500_000  # with every alias written out: a few lines of aliases can stand for billions


class _StrictLoader(yaml.SafeLoader):
    """The safe loader with strict mappings and the scalars of YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                found = repr(key_node.value) if isinstance(key_node.value, str) else "a list or mapping"
                message = f"keys are text, got {found}; put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            if key_node.value in seen:
                message = f"the key {key_node.value!r} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def fetch_flow_collection_start(self, token_class: type[Any]) -> None:
        self._check_depth(self.flow_level)
        super().fetch_flow_collection_start(token_class)

    def add_indent(self, column: int) -> bool:
        self._check_depth(len(self.indents))
        return bool(super().add_indent(column))

    def _check_depth(self, depth: int) -> None:
        if depth > MAX_YAML_DEPTH:  # the scanner's time grows with the square of the depth
            raise yaml.scanner.ScannerError(None, None, "nested too deeply", self.get_mark())

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_YAML_VALUES // 10:
            raise yaml.constructor.ConstructorError(None, None, "too many keys are merged with <<", node.start_mark)


_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)
_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _SCALARS:
    _StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), ["" if char == "\0" else char for char in _first]
    )


class _StrictDumper(yaml.SafeDumper):
    """Quotes every text that this reader or a plain YAML 1.1 reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_StrictDumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _StrictLoader.yaml_implicit_resolvers.get(first, [])
    for first in [*yaml.SafeDumper.yaml_implicit_resolvers, *_StrictLoader.yaml_implicit_resolvers]
}


def format_flow(value: Any) -> str:
    """A value as one line of YAML (flow style) that reads back as the same value, in any YAML reader."""
    return _flow(value) if isinstance(value, dict | list) else _dumped(value)


def _flow(value: Any) -> str:
    """PyYAML's text, ten times as fast for the numbers and words that recipes are made of."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if type(value) is int or (type(value) is float and 1e-4 <= abs(value) < 1e15):
        return repr(value)
    if isinstance(value, str) and value not in _RESERVED and _PLAIN_WORD.fullmatch(value):
        return value
    return _dumped([value])[1:-1]


_PLAIN_WORD = re.compile(r"[a-z]+(_[a-z]+)*")
_RESERVED = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")


def _dumped(value: Any) -> str:
    text = yaml.dump(
        value, Dumper=_StrictDumper, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True
    )
    return str(text).removesuffix("...\n").rstrip("\n")


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 16) if text.startswith("0x") else int(text)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        InvalidInput: no such file, not a file, unreadable, not text, not YAML, empty, or not a mapping.
    """
    return parse_yaml_mapping(read_yaml_text(path), str(path))


def read_yaml_text(path: Path) -> str:
    """Text of a YAML file.

    Raises:
        InvalidInput: no such file, not a file, unreadable, too large, or not text.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_YAML_BYTES + 1)
    except FileNotFoundError:
        raise InvalidInput([Problem(str(path), "there is no such file")]) from None
    except IsADirectoryError:
        raise InvalidInput([Problem(str(path), "expected a YAML file, found a folder")]) from None
    except OSError as error:
        raise InvalidInput([Problem(str(path), f"cannot be read: {error.strerror}")]) from None
    if len(data) > MAX_YAML_BYTES:
        raise InvalidInput([Problem(str(path), f"larger than {MAX_YAML_BYTES >> 20} MiB; is this a YAML file?")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput([Problem(str(path), "not a text file (UTF-8); is this a YAML file?")]) from None


def parse_yaml_mapping(text: str, where: str) -> dict[str, Any]:
    """Parse YAML text that holds one mapping.

    Args:
        text: the YAML.
        where: file name shown in errors.

    Raises:
        InvalidInput: not YAML, empty, not a mapping, a duplicate key, or several documents.
    """
    documents = parse_yaml_documents(text, where)
    if len(documents) > 1:
        raise InvalidInput([Problem(where, "several YAML documents (---) in one file; expected one")])
    return documents[0]


def parse_yaml_documents(text: str, where: str) -> list[dict[str, Any]]:
    """Parse YAML text that holds one mapping or several, separated by ``---``; empty documents are left out.

    Args:
        text: the YAML.
        where: file name shown in errors.

    Raises:
        InvalidInput: not YAML, empty, not mappings, or a duplicate key.
    """
    try:
        values = list(yaml.load_all(text, Loader=_StrictLoader))
    except yaml.reader.ReaderError:
        raise InvalidInput([Problem(where, "not a text file; is this a YAML file?")]) from None
    except yaml.MarkedYAMLError as error:
        raise InvalidInput([_syntax_problem(error, where)]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInput([Problem(where, f"not valid YAML: {error}")]) from None
    except RecursionError:
        raise InvalidInput([Problem(where, "nested too deeply")]) from None
    documents = [value for value in values if value is not None]
    if not documents:
        raise InvalidInput([Problem(where, "the file is empty; expected `key: value` lines")])
    for value in documents:
        if not isinstance(value, dict):
            kind = {"list": "a list", "str": "text"}.get(type(value).__name__, f"a {type(value).__name__}")
            raise InvalidInput([Problem(where, f"expected `key: value` lines at the top, found {kind}")])
        try:
            size = _written_out(value, {})
        except RecursionError:
            raise InvalidInput([Problem(where, "nested too deeply")]) from None
        if size < 0:
            raise InvalidInput([Problem(where, "an alias (*name) contains itself")])
        if size > MAX_YAML_VALUES:
            message = f"more than {MAX_YAML_VALUES:,} values with aliases (*name) written out"
            raise InvalidInput([Problem(where, message)])
    return documents


def _syntax_problem(error: yaml.MarkedYAMLError, where: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = f"{where}, line {mark.line + 1}" if mark is not None else where
    message = error.problem or str(error)
    if "could not determine a constructor" in message:
        message = f"tags such as {message.split()[-1]} are not allowed here"
    elif not isinstance(error, yaml.constructor.ConstructorError):
        message = f"not valid YAML: {message}"
    return Problem(place, message)


def _written_out(value: Any, sizes: dict[int, int]) -> int:
    """How many values there are with every alias written out, below 0 when an alias contains itself.

    Each list and mapping is looked into once, however often it is named.
    """
    if not isinstance(value, dict | list):
        return 1
    key = id(value)
    if key not in sizes:
        sizes[key] = -1  # found again before its size is known: it contains itself
        inside = [_written_out(item, sizes) for item in (value.values() if isinstance(value, dict) else value)]
        sizes[key] = -1 if min(inside, default=0) < 0 else 1 + sum(inside)
    return sizes[key]


def pydantic_problems(error: ValidationError, where: str, known: type[BaseModel]) -> list[Problem]:
    """Pydantic's errors as ours: dotted keys, what was found, and did-you-mean for unknown keys.

    Args:
        error: what ``known.model_validate`` raised.
        where: file name shown in errors.
        known: the model that was validated.
    """
    found: dict[str, list[tuple[str, bool]]] = {}
    for entry in error.errors(include_url=False):
        keys, depth_of_union, names = _walk(known, entry["loc"], entry["type"] in ("extra_forbidden", "missing"))
        message = _message(entry, names)
        at_union = depth_of_union is not None and len(keys) == depth_of_union
        found.setdefault(_dotted(keys), []).append((message, at_union))
    problems = []
    for key, messages in found.items():
        # A union reports every branch; what went wrong deeper inside a branch says more than "not a number".
        deeper = any(other != key and other.startswith((f"{key}.", f"{key}[")) for other in found)
        kept = [message for message, at_union in messages if not (at_union and deeper)]
        if kept:
            problems.append(Problem(f"{where}: {key}" if key else where, _joined(kept)))
    return problems


def _joined(messages: list[str]) -> str:
    distinct = list(dict.fromkeys(messages))
    heads = [message.rpartition(", got ") for message in distinct]
    if len(distinct) > 1 and all(separator for _, separator, _ in heads):
        return " or ".join(head for head, _, _ in heads) + ", got " + heads[0][2]
    return "; ".join(distinct)


def _message(entry: Mapping[str, Any], names: list[str]) -> str:
    if entry["type"] == "extra_forbidden":
        return f"unknown key. {did_you_mean(str(entry['loc'][-1]), names)}".strip()
    if entry["type"] == "missing":
        return "missing; it is required"
    message = str(entry["msg"])
    for prefix in ("Value error, ", "Assertion failed, "):
        if message.startswith(prefix):
            return message[len(prefix) :]
    message = re.sub(r"a valid dictionary( or (object|instance) .*)?", "a mapping", message)
    shown = repr(entry.get("input"))
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{message.replace('Input should be', 'expected', 1)}, got {shown}"


def _walk(
    model: type[BaseModel], loc: tuple[int | str, ...], ends_in_key: bool
) -> tuple[list[int | str], int | None, list[str]]:
    """The user's keys of a pydantic location (its union tags removed), where a union was, and the known keys there."""
    places: list[Any] = [model]
    keys: list[int | str] = []
    union: int | None = None
    for index, part in enumerate(loc):
        expanded = [place for annotation in places for place in _alternatives(annotation)]
        following = [inner for place in expanded for inner in _inside(place, part)]
        if following:
            places = following
        elif not (ends_in_key and index == len(loc) - 1):
            union = len(keys)
            continue
        keys.append(part)
    names = sorted({name for annotation in places for place in _alternatives(annotation) for name in _fields(place)})
    return keys, union, names


def _alternatives(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _alternatives(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for option in typing.get_args(annotation):
            yield from _alternatives(option)
    else:
        yield annotation


def _inside(place: Any, part: int | str) -> Iterator[Any]:
    origin = typing.get_origin(place)
    arguments = typing.get_args(place)
    if isinstance(part, int) and origin in (list, tuple, set, frozenset) and arguments:
        yield arguments[min(part, len(arguments) - 1)] if arguments[-1] is not Ellipsis else arguments[0]
    elif isinstance(part, str) and origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        yield arguments[1]
    elif isinstance(part, str) and part in _fields(place):
        yield _fields(place)[part]


def _fields(place: Any) -> dict[str, Any]:
    fields = getattr(place, "model_fields", None)
    if not isinstance(fields, dict):
        return {}
    return {entry.alias or name: entry.annotation for name, entry in fields.items()}


def _dotted(keys: list[int | str]) -> str:
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def is_finite_number(value: Any) -> bool:
    """Whether a YAML value is a number to compute with: int or float, finite, and not a bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
