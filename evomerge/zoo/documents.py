"""The lm-eval tasks of the zoo: documents in three disjoint splits, task YAMLs and fitness presets, as text.

`scripts/make_zoo_tasks.py` writes them under fitness/; a test checks that the shipped files are what this makes.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from evomerge.zoo import lessons, micro_lessons, sentences
from evomerge.zoo.sentences import Question

DOCUMENT_SEED = 2024
SPLIT_NAMES = ("search", "validation", "held_out")

_FILTERS = {
    "last_number": r"{function: regex, regex_pattern: '(-?\d+)', group_select: -1}",
    "strip": r"{function: regex, regex_pattern: '^\s*(.+?)\s*$', group_select: 0}",
}


@dataclass(frozen=True)
class ZooTask:
    """One task of the zoo.

    Attributes:
        name: of the lm-eval task, its files and its fitness preset.
        folder: below fitness/tasks.
        draw: makes this many different questions, always the same ones.
        prompt: puts a question to a model.
        filter_name: how an answer is read from the generated text; None makes the task multiple-choice.
        max_tokens: longest answer generated.
        sizes: documents of the search, validation and held-out splits.
    """

    name: str
    folder: str
    draw: Callable[[int], list[Question]]
    prompt: Callable[[str], str]
    filter_name: str | None
    max_tokens: int
    sizes: tuple[int, int, int] = (100, 100, 150)

    @property
    def metric(self) -> str:
        """Metric and filter as a fitness file names them."""
        return f"exact_match,{self.filter_name}" if self.filter_name else "acc,none"


def _draw_sentences(
    draw_one: Callable[[random.Random], Question],
    prompt: Callable[[str], str],
    seed_name: str,
    may_be_trained_on: bool,
    num_questions: int,
) -> list[Question]:
    """Different questions, none of them (unless allowed) a training prompt of an expert."""
    rng = random.Random(f"{seed_name}:{DOCUMENT_SEED}")
    taken = set() if may_be_trained_on else training_prompts()
    questions: list[Question] = []
    while len(questions) < num_questions:
        question = draw_one(rng)
        if prompt(question.question) not in taken:
            taken = taken | {prompt(question.question)}
            questions.append(question)
    return questions


@cache
def training_prompts() -> frozenset[str]:
    """Every prompt the 135M experts are trained on."""
    phases = [phase for expert in lessons.EXPERTS.values() for phase in expert]
    return frozenset(example.prompt for phase in phases for example in phase.used_examples())


def _solve(name: str, draw_one: Callable[[random.Random], Question], seed_name: str) -> ZooTask:
    draw = partial(_draw_sentences, draw_one, sentences.solve_prompt, seed_name, False)
    return ZooTask(name, "zoo", draw, sentences.solve_prompt, "last_number", 16)


TASKS: dict[str, ZooTask] = {
    task.name: task
    for task in (
        _solve("zoo_math_en", sentences.story_question("en", "digits"), "m_en"),
        ZooTask(
            "zoo_translate_es",
            "zoo",
            partial(_draw_sentences, sentences.translation, sentences.translate_prompt, "t_es", False),
            sentences.translate_prompt,
            "strip",
            20,
        ),
        # Facts can only be learnt by training on them, so here the splits are over countries, all of them trained on.
        ZooTask(
            "zoo_capitals",
            "zoo",
            partial(_draw_sentences, sentences.capital, sentences.recall_prompt, "k_cap", True),
            sentences.recall_prompt,
            "strip",
            8,
            sizes=(50, 50, 72),
        ),
        _solve("zoo_math_es_digits", sentences.story_question("es", "digits"), "x_esd"),
        _solve("zoo_math_es", sentences.story_question("es", "words"), "x_es"),
        ZooTask("micro_add", "micro", micro_lessons.add_questions, micro_lessons.add_prompt, "strip", 6),
        ZooTask("micro_let", "micro", micro_lessons.let_questions, micro_lessons.let_prompt, "strip", 6),
        ZooTask("micro_rev", "micro", micro_lessons.rev_questions, micro_lessons.rev_prompt, "strip", 6),
        ZooTask("micro_copy", "micro", micro_lessons.copy_questions, micro_lessons.copy_prompt, None, 0),
    )
}


def split_questions(task: ZooTask) -> dict[str, list[Question]]:
    """The questions of each split, no two with the same prompt."""
    questions = task.draw(sum(task.sizes))
    splits, start = {}, 0
    for split, size in zip(SPLIT_NAMES, task.sizes, strict=True):
        splits[split] = questions[start : start + size]
        start += size
    return splits


def document(task: ZooTask, question: Question) -> dict[str, object]:
    """One line of a documents file; the id depends on the prompt alone."""
    prompt = task.prompt(question.question)
    line: dict[str, object] = {
        "id": f"{task.name}-{hashlib.sha256(prompt.encode()).hexdigest()[:10]}",
        "prompt": prompt,
        "question": question.question,
        "answer": question.answer,
        "kind": question.kind,
    }
    if task.filter_name is None:
        choices = micro_lessons.copy_choices(question.answer)
        line |= {"choices": choices, "label": choices.index(question.answer)}
    return line


def task_yaml(task: ZooTask) -> str:
    """The lm-eval task definition; its data files are named relative to its own folder."""
    lines = [
        f"task: {task.name}",
        "dataset_path: json",
        "dataset_kwargs:",
        "  data_files:",
        *(f"    {split}: data/{task.name}.{split}.jsonl" for split in SPLIT_NAMES),
        "test_split: search",
        "doc_to_text: '{{prompt}}'",
        "num_fewshot: 0",
    ]
    if task.filter_name is None:
        lines += [
            "output_type: multiple_choice",
            "doc_to_choice: '{{choices}}'",
            "doc_to_target: label",
            "target_delimiter: ''",
            "metric_list:",
            "  - {metric: acc, aggregation: mean, higher_is_better: true}",
        ]
    else:
        lines += [
            "output_type: generate_until",
            "doc_to_target: '{{answer}}'",
            f'generation_kwargs: {{until: ["\\n"], max_gen_toks: {task.max_tokens}, do_sample: false}}',
            "filter_list:",
            f"  - name: {task.filter_name}",
            "    filter:",
            f"      - {_FILTERS[task.filter_name]}",
            "      - {function: take_first}",
            "metric_list:",
            "  - {metric: exact_match, aggregation: mean, higher_is_better: true}",
        ]
    return "\n".join([*lines, "metadata: {version: 1.0}"]) + "\n"


def fitness_yaml(task: ZooTask) -> str:
    """The fitness preset of a task."""
    return (
        f"task: {task.name}\n"
        f"metric: {task.metric}\n"
        "documents: {search: {split: search}, validation: {split: validation}, held_out: {split: held_out}}\n"
        "fewshot: 0\n"
        "apply_chat_template: false\n"
    )


def files() -> dict[str, str]:
    """Every file of every task: path below fitness/ -> text."""
    made: dict[str, str] = {}
    for task in TASKS.values():
        made[f"{task.name}.yaml"] = fitness_yaml(task)
        made[f"tasks/{task.folder}/{task.name}.yaml"] = task_yaml(task)
        for split, questions in split_questions(task).items():
            lines = [json.dumps(document(task, question), ensure_ascii=False) + "\n" for question in questions]
            made[f"tasks/{task.folder}/data/{task.name}.{split}.jsonl"] = "".join(lines)
    return made
