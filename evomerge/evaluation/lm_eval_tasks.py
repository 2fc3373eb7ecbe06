"""lm-eval's task objects: built on the split a role names, their prompts in fixed order, their metrics."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import logging
import random
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from lm_eval.api import metrics as lm_eval_metrics
from lm_eval.api.task import ConfigurableTask

from evomerge.errors import DataNotHere, InvalidInput, Problem, did_you_mean
from evomerge.evaluation.documents import document_hash
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.lm_eval_index import Leaf, one_line

FEWSHOT_SEED = 1234
_SEEDS = (0, 1234, 1234)  # python, numpy, torch: lm-eval's own defaults
_MAX_POOL_CHECKED = 50_000

Document = dict[str, Any]


@dataclass
class OpenTask:
    """An lm-eval task whose evaluated documents are one split of its dataset.

    Attributes:
        task: lm-eval's object.
        split: the dataset's split.
        documents: every document of the split, processed by the task.
        num_fewshot: examples in a prompt.
        pool: documents the examples are drawn from; empty without few-shot.
        fixed_pool: whether the task lists its examples itself instead of naming a split.
    """

    task: Any
    split: str
    documents: list[Document]
    num_fewshot: int
    pool: list[Document]
    fixed_pool: bool

    @property
    def name(self) -> str:
        """Name of the task."""
        return str(self.task.config.task)


@contextlib.contextmanager
def lm_eval_conditions() -> Iterator[None]:
    """lm-eval's seeds and our quiet while tasks are built; the callers' random states come back unharmed."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    log = logging.getLogger("lm_eval")
    level, bars = log.level, datasets.are_progress_bars_disabled()
    random.seed(_SEEDS[0])
    np.random.seed(_SEEDS[1])  # noqa: NPY002  tasks draw from the global generator
    torch.default_generator.manual_seed(_SEEDS[2])
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.default_generator.set_state(states[2])
        log.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def without_downloads() -> Iterator[None]:
    """Data sets that are not on this machine are errors at once, instead of downloads."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def open_task(leaf: Leaf, split: str, config: FitnessConfig) -> OpenTask:
    """Build a task that evaluates one split.

    Raises:
        InvalidInput: the dataset, split or YAML cannot be used.
    """
    where = leaf.path or f"task {leaf.name}"
    num_fewshot, fewshot_split, fixed = _fewshot(leaf, config, where)
    overrides: dict[str, Any] = {"test_split": split, "num_fewshot": num_fewshot, "task": leaf.name}
    if num_fewshot == 0:
        # Without this lm-eval reads a whole split for examples that no prompt will show.
        overrides |= {"fewshot_split": None, "fewshot_config": {"samples": []}}
    elif not fixed:
        own = leaf.config.get("fewshot_config") or {}
        overrides |= {"fewshot_split": fewshot_split, "fewshot_config": {**own, "split": fewshot_split}}
    merged = copy.deepcopy({**leaf.config, **overrides})
    with lm_eval_conditions():
        try:
            task = ConfigurableTask(config=merged)
        except Exception as error:  # every cause lies in the user's YAML or data
            kind = DataNotHere if _is_unreachable(error) else InvalidInput
            raise kind([_why_not_built(error, leaf, (split, fewshot_split))]) from None
    if getattr(task, "MULTIMODAL", False):
        raise InvalidInput([Problem(where, "asks about images or sound; only text tasks can be scored")])
    if getattr(task, "UNSAFE_CODE", False) and not config.confirm_run_unsafe_code:
        message = "runs generated code; set `confirm_run_unsafe_code: true` in the fitness to allow it"
        raise InvalidInput([Problem(where, message)])
    if config.gen_kwargs:
        if task.OUTPUT_TYPE != "generate_until":
            message = f"`gen_kwargs` is for tasks that generate text; {leaf.name!r} is {task.OUTPUT_TYPE}"
            raise InvalidInput([Problem(f"fitness {config.name}: gen_kwargs", message)])
        task.set_config("generation_kwargs", copy.deepcopy(config.gen_kwargs), update=True)
    _remember_renderings(task)
    pool = list(task.sampler.fewshot_docs()) if num_fewshot else []
    return OpenTask(task, split, list(task.task_docs), num_fewshot, pool, fixed)


def _fewshot(leaf: Leaf, config: FitnessConfig, where: str) -> tuple[int, str | None, bool]:
    """Number of examples, the split they come from, and whether the task lists them itself."""
    own = leaf.config.get("num_fewshot")
    if own == 0 and config.fewshot:
        message = (
            f"the task fixes num_fewshot to 0 (lm-eval never overrides that), the fitness asks for {config.fewshot}"
        )
        raise InvalidInput([Problem(f"fitness {config.name}: fewshot", message)])
    number = int(own or 0) if config.fewshot is None else config.fewshot
    nested = leaf.config.get("fewshot_config") or {}
    split = config.fewshot_split or nested.get("split") or leaf.config.get("fewshot_split")
    fixed = split is None and nested.get("samples") is not None
    if split is None and not fixed:
        names = (leaf.config.get(f"{role}_split") for role in ("training", "validation", "test"))
        split = next((name for name in names if name), None)
    if number and split is None and not fixed:
        raise InvalidInput(
            [Problem(where, f"few-shot examples are asked for ({number}), but no `fewshot_split` is set")]
        )
    return number, split, fixed


def _why_not_built(error: Exception, leaf: Leaf, splits: tuple[str, str | None]) -> Problem:
    where = leaf.path or f"task {leaf.name}"
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        word = str(error).split("'")[-2]
        from lm_eval.config.task import TaskConfig

        return Problem(where, f"unknown key {word!r}. {did_you_mean(word, TaskConfig.__dataclass_fields__)}")
    if _is_unreachable(error):
        name = leaf.config.get("dataset_path") or leaf.name
        return Problem(
            where, f"its data set {name!r} is not on this machine and cannot be fetched now: {one_line(error)}"
        )
    if isinstance(error, KeyError | ValueError):
        names = _dataset_splits(leaf)
        missing = [name for name in splits if name and names and name not in names]
        if missing:
            return Problem(where, f"the dataset has no split {missing[0]!r}. {did_you_mean(missing[0], names)}")
    if isinstance(error, IndexError):
        return Problem(where, f"split {splits[0]!r} has no documents")
    return Problem(where, f"the task cannot be built: {one_line(error)}")


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether the cause is a data set that is neither here nor to be had now."""
    names = (
        "Offline",
        "LocalEntryNotFound",
        "DatasetNotFound",
        "ConnectionError",
        "ConnectError",
        "Timeout",
        "HubHTTP",
    )
    while error is not None:
        if any(name in type(error).__name__ for name in names) or "offline" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _dataset_splits(leaf: Leaf) -> list[str]:
    config = copy.deepcopy(dict(leaf.config))
    arguments = config.get("dataset_kwargs") or {}
    arguments.pop("trust_remote_code", None)
    try:
        if callable(config.get("custom_dataset")):
            loaded = config["custom_dataset"](**(config.get("metadata") or {}), **arguments)
        else:
            loaded = datasets.load_dataset(path=config["dataset_path"], name=config.get("dataset_name"), **arguments)
    except Exception:  # the first error is the one to tell
        return []
    return [str(name) for name in loaded]


def render(task: Any, document: Document) -> str:
    """Hash of a document as a model sees it: question, choices, answer; its other fields do not count."""
    choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
    return document_hash([task.doc_to_text(document), choices, task.doc_to_target(document)])


def restrict_examples(opened: OpenTask, forbidden: Collection[str]) -> None:
    """Draw few-shot examples anew from the seed, never from the forbidden documents.

    Args:
        opened: the task.
        forbidden: hashes of the documents the prompts must not give away.

    Raises:
        InvalidInput: too few documents are left.
    """
    task = opened.task
    task.set_fewshot_seed(FEWSHOT_SEED)
    if not opened.num_fewshot:
        return
    pool = opened.pool
    if len(pool) <= _MAX_POOL_CHECKED:
        pool = [document for document in pool if _hash_or_none(task, document) not in forbidden]
    task.sampler.replace_df(pool)
    task.sampler.fewshot_indices = None
    if len(pool) < opened.num_fewshot:
        message = (
            f"{opened.num_fewshot} few-shot examples are asked for, {len(pool)} documents are free to show (the rest is"
            " scored itself); score fewer documents or name another `fewshot_split`"
        )
        raise InvalidInput([Problem(f"task {opened.name}", message)])


def _hash_or_none(task: Any, document: Document) -> str | None:
    try:
        return render(task, document)
    except Exception:  # hand-written examples may lack the fields of a document
        return None


def build_instances(
    opened: OpenTask, indices: Sequence[int], config: FitnessConfig, chat_template: Callable[..., str] | None
) -> list[list[Any]]:
    """lm-eval's requests of the chosen documents, in the order given; one list a document.

    Prompts equal those of a run over the whole split: examples are drawn for every document in dataset order, also
    for those that are not chosen.

    Raises:
        InvalidInput: a prompt cannot be made.
    """
    task, chosen = opened.task, set(indices)
    shows_split = opened.num_fewshot > 0 and task.fewshot_cfg.split == task.config.test_split
    built: dict[int, list[Any]] = {}
    last = max(chosen)
    with lm_eval_conditions():
        for index in range(last + 1) if opened.num_fewshot else sorted(chosen):
            document = opened.documents[index]
            if index not in chosen:
                task.sampler.sample(n=opened.num_fewshot, eval_doc=document if shows_split else None)
                continue
            try:
                built[index] = _requests(task, index, document, opened.num_fewshot, config, chat_template)
            except Exception as error:  # templates and functions of the user's task
                message = f"document {index} of split {opened.split!r}: no prompt can be made: {one_line(error)}"
                raise InvalidInput([Problem(f"task {opened.name}", message)]) from None
    return [built[index] for index in indices]


def _requests(
    task: Any, index: int, document: Document, num_fewshot: int, config: FitnessConfig,
    chat_template: Callable[..., str] | None,
) -> list[Any]:  # fmt: skip
    context = task.fewshot_context(
        document,
        num_fewshot=num_fewshot,
        system_instruction=config.system_prompt,
        apply_chat_template=chat_template is not None,
        fewshot_as_multiturn=config.fewshot_as_multiturn,
        chat_template=chat_template,
        gen_prefix=task.doc_to_prefix(document),
    )
    made = task.construct_requests(
        doc=document,
        ctx=context,
        metadata=(task.config.task, index, task.config.repeats),
        apply_chat_template=chat_template is not None,
        chat_template=chat_template,
    )
    return sorted(made, key=lambda instance: instance.idx) if isinstance(made, list) else [made]


def _remember_renderings(task: Any) -> None:
    """Render texts, targets and choices of each document once; lm-eval compiles its templates anew on every call."""
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        setattr(task, name, _remembering(getattr(task, name)))


def _remembering(render_one: Callable[..., Any]) -> Callable[..., Any]:
    kept: dict[tuple[Any, ...], tuple[Any, Any]] = {}  # the document is kept too, so that its id stays its own

    def remembered(document: Any, *others: Any) -> Any:
        if not all(isinstance(other, str | None) for other in others):
            return render_one(document, *others)
        key = (id(document), *others)
        if key not in kept:
            kept[key] = (document, render_one(document, *others))
        return kept[key][1]

    return remembered


def prompts_hash(instances: Sequence[Sequence[Any]]) -> str:
    """Hash of every prompt and generation argument, in order."""
    digest = hashlib.sha256()
    for instance in (instance for group in instances for instance in group):
        digest.update(json.dumps(instance.args, sort_keys=True, default=str, ensure_ascii=False).encode())
    return digest.hexdigest()[:20]


def settings_hash(task: Any) -> str:
    """Hash of what turns answers into scores: metrics, filters, generation arguments, and the code they name."""
    skipped = ("metadata", "dataset_kwargs", "dataset_path", "test_split", "fewshot_split", "fewshot_config", "task")
    kept = {key: value for key, value in vars(task.config).items() if key not in skipped}
    return document_hash(_plain(kept))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if callable(value):
        try:
            return inspect.getsource(value)
        except (TypeError, OSError):
            return getattr(value, "__qualname__", type(value).__name__)
    return value


def metric_keys(task: Any, instances: Sequence[Any]) -> list[tuple[str, str]]:
    """Every (metric, filter) the task reports, found by scoring one document with made-up answers."""
    filters = [ensemble.name for ensemble in task._filters]
    made_up = {"loglikelihood": (-1.0, False), "loglikelihood_rolling": -10.0, "generate_until": "1"}
    for instance in instances:
        instance.resps = [made_up[instance.request_type]] * (instance.repeats or 1)
        instance.filtered_resps = {}
    keys: list[tuple[str, str]] = []
    try:
        for ensemble in task._filters:
            ensemble.apply(list(instances))
        for name in filters:
            answers = [instance.filtered_resps[name] for instance in instances]
            keys += [(str(metric), name) for metric in task.process_results(instances[0].doc, answers)]
    except Exception:  # odd answers may upset a task's own code; its YAML still names its metrics
        keys = [(str(metric), name) for name in filters for metric in task.aggregation()]
    finally:
        for instance in instances:
            instance.resps, instance.filtered_resps = [], {}
    return keys


def direction(task: Any, metric: str) -> bool | None:
    """Whether higher is better, None when the task does not say."""
    value = task.higher_is_better().get(metric)
    return None if value is None else bool(value)


def aggregation(task: Any, metric: str) -> Callable[[list[Any]], Any]:
    """How the task turns per-document values into its score; the mean where it does not say."""
    function: Callable[[list[Any]], Any] = task.aggregation().get(metric, lm_eval_metrics.mean)
    return function


def is_mean(task: Any, metric: str) -> bool:
    """Whether the score is the plain mean of the per-document values."""
    return aggregation(task, metric) in (lm_eval_metrics.mean, np.mean, statistics.mean, statistics.fmean)
