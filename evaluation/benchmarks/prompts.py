"""The words around an item: what the model reads, and the continuations that are compared.

Letter: the options are listed, and the letters are compared. Cloze: the options are not shown, and
their texts are compared as answers. The order of options can therefore change a letter's
likelihood, but not an option's.

A context ends before a mark (：or ，), and the mark begins the continuation. The tokenizer's pieces
of text begin at such marks too, so no token reaches over the border between the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.schema import UserError
from evaluation.benchmarks.files import MORE_LETTERS
from evaluation.benchmarks.items import Item
from evaluation.benchmarks.tasks import PAIR, PROBLEM, Task

LETTER, CLOZE = "letter", "cloze"
FORMS = (LETTER, CLOZE)
INSTRUCTION = {LETTER: "以下是单项选择题，请选出正确答案。\n\n", CLOZE: ""}
ANSWER, MARK = "答案", "："
BETWEEN = "\n\n"
"""Between few-shot examples."""
MAX_SHOTS = 5
"""The parts with examples have five a subject."""


@dataclass(frozen=True)
class Prompt:
    """What is asked of a scorer about one item."""

    context: str
    continuations: tuple[str, ...]
    """Texts that may follow the context; their likelihoods are compared."""
    lengths: tuple[str, ...]
    """The texts that a likelihood per character or byte is divided by: without the mark."""


def prompts_of(task: Task, items: Sequence[Item], form: str, examples: Mapping[str, Sequence[Item]]) -> list[Prompt]:
    """The prompts of items. Args: examples: few-shot examples by group; empty for none."""
    headers = {group: shots_of(task, shots, form) for group, shots in examples.items()}
    return [
        Prompt(
            headers.get(item.group, _instruction(task, form)) + question_of(task, item, form),
            *_answers(task, item, form),
        )
        for item in items
    ]


def marked(texts: Sequence[str]) -> tuple[str, ...]:
    """Answers, each with the mark before it."""
    return tuple(MARK + text for text in texts)


def without_question(items: Sequence[Item]) -> list[Prompt]:
    """Each option after the word for answer alone: how likely it is without its question."""
    return [Prompt(ANSWER, marked(item.options), item.options) for item in items]


def lettered(options: Sequence[str]) -> list[tuple[str, str]]:
    """Each option with its letter."""
    return list(zip(MORE_LETTERS[: len(options)], options, strict=True))


def question_of(task: Task, item: Item, form: str) -> str:
    """An item up to where its answer begins."""
    if task.kind == PAIR:
        return item.question
    listed = ""
    if task.kind != PROBLEM and form == LETTER:
        listed = "".join(f"{letter}. {option}\n" for letter, option in lettered(item.options))
    return f"题目：{item.asked}\n{listed}{ANSWER}"


def shots_of(task: Task, shots: Sequence[Item], form: str) -> str:
    """The instruction, and examples with their answers. All prompts of a group begin with it."""
    between = "\n" if task.kind == PAIR else BETWEEN
    solved = [question_of(task, item, form) + _answers(task, item, form)[0][item.answer] for item in shots]
    return _instruction(task, form) + "".join(text + between for text in solved)


def examples_of(task: Task, items: Sequence[Item], part: Sequence[Item], shots: int) -> dict[str, list[Item]]:
    """The first `shots` items of each group in the part with examples; pairs have one common list.

    Raises: UserError if a group has too few.
    """
    if not shots:
        return {}
    found = {}
    for group in {item.group for item in items}:
        own = [item for item in part if item.group == group or task.kind == PAIR][:shots]
        if len(own) < shots:
            raise UserError(
                f"--shots {shots}: {task.name} has {len(own)} examples of {group} in its part {task.examples}. Give "
                "--shots 0, or complete its files.",
                "示例不够：请用 --shots 0，或补全文件",
            )
        found[group] = own
    return found


def _instruction(task: Task, form: str) -> str:
    return "" if task.kind in (PAIR, PROBLEM) else INSTRUCTION[form]


def _answers(task: Task, item: Item, form: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The continuations that are compared, one for each option; and the same without their mark."""
    if task.kind == PROBLEM:
        return (), ()
    if task.kind == PAIR:
        return item.options, item.options
    texts = tuple(MORE_LETTERS[: len(item.options)]) if form == LETTER else item.options
    return marked(texts), texts
