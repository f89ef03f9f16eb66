"""One benchmark, one model: items are asked and scored beside the baselines."""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.messages import both
from configs.schema import UserError
from evaluation.benchmarks.arithmetic import is_right, rule_outcomes
from evaluation.benchmarks.bigram import Bigram
from evaluation.benchmarks.contamination import Contamination
from evaluation.benchmarks.decisions import (
    GENERATED,
    PMI,
    Outcomes,
    by_group,
    measures_of,
    metrics_of,
    normalised,
    outcome,
)
from evaluation.benchmarks.items import Item
from evaluation.benchmarks.prompts import CLOZE, MARK, MAX_SHOTS, examples_of, prompts_of, question_of, without_question
from evaluation.benchmarks.scorers import ModelScorer, Scorer, longest, random_weights, shortest
from evaluation.benchmarks.tasks import PROBLEM, Task
from evaluation.benchmarks.trees import Reading
from evaluation.intervals import Metric
from evaluation.questions import ask
from inference.engine import Engine
from inference.loading import OpenModel
from inference.sampling import Sampling
from model.manifest import IMPORTED

RANDOM_WEIGHTS, LONGEST, SHORTEST, BIGRAM = "random_weights", "longest", "shortest", "bigram"
FAST_LIMIT = 300
"""Items of a task with --fast."""
BATCH_SIZE = 32
"""Answers that are generated at once."""


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """What is asked of a model."""

    task: Task
    data_dir: Path
    split: str
    form: str
    shots: int
    limit: int
    """Items, drawn over all groups; 0: all."""
    chat: bool
    """Whether the chat template stands around the questions."""
    max_new_tokens: int
    seed: int


@dataclass
class Outcome:
    """What came out."""

    items: list[Item]
    sha256: str
    outcomes: Outcomes
    baselines: dict[str, Outcomes]
    """Baseline -> its outcomes on the same items."""
    answers: list[dict[str, Any]]
    """For each item what the model chose or said."""
    reading: Reading
    notes: list[str] = field(default_factory=list)


def is_on(template: str, task: Task, model: OpenModel) -> bool:
    """Whether `--chat_template` puts the template around the questions of a task.

    auto: around problems that weights for chat answer, never around likelihoods.
    Raises: UserError for `on` where nothing can be said.
    """
    if template == "on" and task.name == "zhoblimp":
        raise UserError(
            f"--chat_template on: {task.name} has sentences without a question. Give auto or off.",
            "该基准只有句子，没有提问：请用 auto 或 off",
        )
    talks = model.manifest.stage not in ("pretrain", IMPORTED)
    return template == "on" or (template == "auto" and task.kind == PROBLEM and talks)


def sit(sitting: Sitting, model: OpenModel, bigram: Bigram | None) -> Outcome:
    """Ask a model the items of a benchmark. Raises: UserError if files are missing or have no
    examples."""
    task, shots = sitting.task, sitting.shots
    read = task.items(sitting.data_dir, sitting.split)
    items = drawn(read.items, sitting.limit, sitting.seed)
    notes = [both(f"left out: {count} with {reason}", f"未计入 {count} 题") for reason, count in read.left_out.items()]
    if shots and (not task.examples or task.examples == sitting.split):
        raise UserError(
            f"--shots {shots}: {task.name} has no examples apart from its part {sitting.split}. Give --shots 0.",
            "该基准没有与评测部分分开的示例：请用 --shots 0",
        )
    if not 0 <= shots <= MAX_SHOTS:
        raise UserError(f"--shots {shots}: must be from 0 to {MAX_SHOTS}.", f"只能是 0 到 {MAX_SHOTS}")
    if task.kind == PROBLEM:
        outcomes, answers, reading = _generated(sitting, model, items)
        return Outcome(items, read.sha256, outcomes, _rules(items), answers, reading, notes)

    part = task.items(sitting.data_dir, task.examples).items if shots else ()
    examples = examples_of(task, items, part, shots)
    asked = Asked(task, sitting.form, items, examples)
    scorer = ModelScorer(model.model, model.tokenizer, chat=sitting.chat, label=task.name)
    outcomes, answers = asked.outcomes(scorer)
    untrained = random_weights(model.model, sitting.seed)
    rivals: dict[str, Scorer] = {
        RANDOM_WEIGHTS: ModelScorer(untrained, model.tokenizer, chat=sitting.chat, label=f"{task.name}, random"),
    }
    if bigram:
        rivals[BIGRAM] = bigram
    baselines = {name: asked.outcomes(rival)[0] for name, rival in rivals.items()}
    baselines |= {name: asked.by_length(rule) for name, rule in ((LONGEST, longest), (SHORTEST, shortest))}
    if scorer.reading.cut:
        notes.append(
            both(
                f"{scorer.reading.cut} sequences are longer than the model's context; their beginnings were cut off",
                "部分题目超出模型的上下文，开头被截去",
            )
        )
    return Outcome(items, read.sha256, outcomes, baselines, answers, scorer.reading, notes)


def drawn(items: Sequence[Item], limit: int, seed: int) -> list[Item]:
    """At most so many items, drawn over all of them; in their order."""
    if not limit or limit >= len(items):
        return list(items)
    numbers = sorted(random.Random(seed).sample(range(len(items)), limit))
    return [items[number] for number in numbers]


class Asked:
    """Items with their prompts, ready for any scorer."""

    def __init__(self, task: Task, form: str, items: Sequence[Item], examples: Mapping[str, Sequence[Item]]) -> None:
        self.task, self.items = task, items
        self.metrics = measures_of(task, form)
        self.prompts = prompts_of(task, items, form, examples)
        self.with_pmi = f"acc_{CLOZE}_{PMI}" in self.metrics
        # Without examples all prompts of a task begin with the same instruction.
        self.groups = [item.group if examples else "" for item in items]

    def outcomes(self, scorer: Scorer) -> tuple[Outcomes, list[dict[str, Any]]]:
        """Metric -> how right each item is; and for each item the scores and choices."""
        nats = scorer(self.prompts, self.groups)
        alone = scorer(without_question(self.items), [""] * len(self.items)) if self.with_pmi else nats
        outcomes: Outcomes = {metric: [] for metric in self.metrics}
        answers = []
        for item, prompt, own, without in zip(self.items, self.prompts, nats, alone, strict=True):
            for metric in self.metrics:
                scores = normalised(metric, prompt.lengths, own, without)
                outcomes[metric].append(outcome(self.task, scores, item.answer))
            answers.append({"nats": own, "alone": without} if self.with_pmi else {"nats": own})
        return outcomes, answers

    def by_length(self, rule: Scorer) -> Outcomes:
        """A rule about the options' texts, the same for each metric."""
        texts = without_question(self.items)
        right = [
            outcome(self.task, scores, item.answer)
            for item, scores in zip(self.items, rule(texts, self.groups), strict=True)
        ]
        return dict.fromkeys(self.metrics, right)


def _generated(
    sitting: Sitting, model: OpenModel, items: Sequence[Item]
) -> tuple[Outcomes, list[dict[str, Any]], Reading]:
    """Greedy answers to problems; right where their last number is."""
    started = time.perf_counter()
    if sitting.chat:
        said = ask(
            model.model,
            model.tokenizer,
            [[{"role": "user", "content": item.question}] for item in items],
            batch_size=BATCH_SIZE,
            max_new_tokens=sitting.max_new_tokens,
            label=sitting.task.name,
        )
    else:
        bos = model.tokenizer.get_bos_token_id()
        prompts = [[bos, *model.tokenizer.encode(question_of(sitting.task, item, CLOZE) + MARK)] for item in items]
        engine = Engine(model.model, model.tokenizer, max_batch_size=BATCH_SIZE)
        said = engine.answers(prompts, Sampling(max_new_tokens=sitting.max_new_tokens, stop=("\n",)))
    right = [float(is_right(item.golden, answer.text)) for item, answer in zip(items, said, strict=True)]
    answers = [{"text": answer.text, "ended": answer.ended} for answer in said]
    tokens = sum(answer.num_tokens for answer in said)
    return {GENERATED: right}, answers, Reading(tokens, tokens, time.perf_counter() - started)


def _rules(items: Sequence[Item]) -> dict[str, Outcomes]:
    return {name: {GENERATED: values} for name, values in rule_outcomes(items).items()}


# --- the line -------------------------------------------------------------------------------------


def result_of(outcome: Outcome, contaminated: Contamination | None) -> dict[str, Any]:
    """The parts of a result line that are scores: `metrics`, `baselines`, `by_group`, `clean`."""
    items = outcome.items
    reached = {name: metrics_of(items, values) for name, values in outcome.baselines.items()}
    metrics = {
        name: metric.as_json() | {"baselines": {rival: own[name].value for rival, own in reached.items()}}
        for name, metric in metrics_of(items, outcome.outcomes).items()
    }
    return {
        "metrics": metrics,
        "baselines": {name: _plain(own) for name, own in reached.items()},
        "by_group": _groups(outcome),
        "clean": None if contaminated is None else _clean(outcome, contaminated),
    }


def _plain(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    return {name: metric.as_json() for name, metric in metrics.items()}


def _groups(outcome: Outcome) -> dict[str, Any]:
    """Each group with its metrics; those of generated answers say whether the grade is learnt."""
    rivals = {name: by_group(outcome.items, values) for name, values in outcome.baselines.items()}
    groups: dict[str, Any] = {}
    for group, metrics in by_group(outcome.items, outcome.outcomes).items():
        groups[group] = {}
        for name, metric in metrics.items():
            reached = {rival: own[group][name].value for rival, own in rivals.items()}
            groups[group][name] = metric.as_json() | {"baselines": reached}
            if name == GENERATED:  # learnt only where the interval lies above the best rule
                groups[group][name]["learnt"] = metric.low > max(reached.values())
    return groups


def _clean(outcome: Outcome, contaminated: Contamination) -> dict[str, Any]:
    """Scores on the items that are known not to stand in the training data."""
    clean = contaminated.clean()
    return {
        "n": len(clean),
        "contaminated": sum(contaminated.found),
        "not_checkable": contaminated.checkable.count(False),
        "metrics": _plain(metrics_of(outcome.items, outcome.outcomes, clean)),
        "baselines": {
            name: _plain(metrics_of(outcome.items, values, clean)) for name, values in outcome.baselines.items()
        },
    }
