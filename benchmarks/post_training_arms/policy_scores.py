"""Scores of a policy: right answers to prompts, what became of its other answers, how fluent it is.

The outcome of each question is kept, so that losses are taken on the same questions.
"""

import json
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean as average
from typing import Any

import torch

from benchmarks.post_training_arms.arm import content_sha256
from configs.artifacts import read_json, write_json
from configs.paths import heldout_beside
from dataset.records.files import read_records
from dataset.records.keys import split_of
from evaluation.first_minutes import choose_prompts
from evaluation.intervals import Metric, mean
from evaluation.likelihood import Text, bits_metric, score, token_bytes
from evaluation.policy import prompt_metrics
from evaluation.questions import ask
from evaluation.rules import rule_of
from evaluation.stage import Evaluation, Verdict
from inference.engine import Engine
from inference.loading import OpenModel, open_model
from inference.sampling import Sampling

ROW_TOKENS = 256
"""Tokens of a row in the profile `cpu`."""
BATCH = 64
MOST_OF_A_KIND = 150
"""Held-out chats of each category and kind that are asked."""
PASS_AT = 8
"""Answers that are sampled to each prompt for `pass_at_8`."""
SEED = 42
BEYOND = "accuracy_math_beyond"
"""Sums that are too large for the mix's model. It says so, and a start that learnt them does not.
So they are told apart from the other answers."""
KEPT_ANSWERS = 50


@dataclass(frozen=True)
class Scores:
    """What some weights reach."""

    prompt_metrics: dict[str, dict[str, Any]]
    """Of test prompts: metric -> value, n, ci95."""
    answers: list[dict[str, Any]]
    """Of the greedy answers to the prompts: `record`, `answer`, `ended`, `right`, `tokens`."""
    others: dict[str, list[Any]]
    """Question of a chat or of the first minutes -> metric, cluster, whether it was right."""
    pass_at: float

    @property
    def accuracy(self) -> float:
        """Share of prompts with a right greedy answer."""
        return float(self.prompt_metrics["accuracy_prompts"]["value"])

    def metrics(self, prefix: str = "") -> dict[str, object]:
        """The scores by name, for a line of results."""
        ended = [one["tokens"] for one in self.answers if one["ended"]]
        found: dict[str, object] = {
            "accuracy": self.prompt_metrics["accuracy_prompts"],
            "accuracy_sampled": self.prompt_metrics["accuracy_sampled"],
            "well_formed": self.prompt_metrics["well_formed_prompts"],
            "ended": self.prompt_metrics["ended_prompts"],
            "length": average(one["tokens"] for one in self.answers),
            "length_ended": average(ended) if ended else None,
            "pass_at_8": self.pass_at,
        }
        for name, rights in sorted(self._by_metric().items()):
            found[f"other_{name}"] = average(rights)
        return {prefix + name: value for name, value in found.items()}

    def _by_metric(self) -> dict[str, list[bool]]:
        found: dict[str, list[bool]] = {}
        for metric, _, right in self.others.values():
            # First prompts have many small kinds, which are one metric here.
            found.setdefault("first_minutes" if metric.startswith("first_minutes") else metric, []).append(right)
        return found

    def change(self, before: "Scores", prefix: str = "") -> dict[str, object]:
        """How the other answers have changed, on the same questions."""
        differences: list[float] = []
        clusters: list[Hashable] = []
        beyond: list[float] = []
        for question, (metric, cluster, right) in self.others.items():
            if metric == BEYOND:
                beyond.append(float(right) - float(before.others[question][2]))
            else:
                differences.append(float(right) - float(before.others[question][2]))
                clusters.append(cluster)
        found: dict[str, object] = {f"{prefix}other_change": mean(differences, clusters).as_json()}
        return found | ({f"{prefix}other_change_beyond": average(beyond)} if beyond else {})

    def fluency(self, before: "Scores", start: Path) -> dict[str, object]:
        """How likely the answers are to the start, beside its own right answers, and how much they
        repeat each other."""
        model = _open(start)
        own = [one for one in before.answers if one["right"]]
        return {
            "bits_per_byte_under_start": _bits(model, self.answers).as_json(),
            "bits_per_byte_of_right_answers_of_start": _bits(model, own).as_json(),
            "repeated_4_grams": repeated_4_grams([one["answer"] for one in self.answers]),
            "start_repeated_4_grams": repeated_4_grams([one["answer"] for one in before.answers]),
            "distinct_answers": len({one["answer"] for one in self.answers}) / len(self.answers),
        }


def repeated_4_grams(answers: Sequence[str]) -> float:
    """Share of the runs of 4 characters that have come before, in the same or in another answer."""
    counts = Counter(text[place : place + 4] for text in answers for place in range(len(text) - 3))
    total = sum(counts.values())
    return 1 - len(counts) / total if total else 0.0


def _bits(opened: OpenModel, answers: Sequence[dict[str, Any]]) -> Metric:
    """Bits per byte of answers under a model."""
    texts = []
    for one in answers:
        messages = [*one["record"]["conversations"][:-1], {"role": "assistant", "content": one["answer"]}]
        ids, mask = opened.tokenizer.render_conversation(messages)
        # The earlier turns are given; only this answer is scored.
        given = len(opened.tokenizer.render_for_completion(messages[:-1]))
        texts.append(Text(ids, [0] * given + list(mask[given:])))
    return bits_metric(score(opened.model, texts, token_bytes(opened.tokenizer), length=ROW_TOKENS, label="fluency"))


def _open(weights: Path) -> OpenModel:
    return open_model(weights, device=torch.device("cpu"))


def scores_of(weights: Path, folder: Path, prompts: Path, max_gen_len: int, chats: Path) -> Scores:
    """The scores of some weights; those in the folder, if they are of these weights.

    Args: prompts: the training prompts; the held-out ones lie beside them, and their test half is
    asked. chats: held-out chats of the mix.
    """
    heldout = heldout_beside(prompts)
    assert heldout is not None
    path, key = folder / "scores.json", [content_sha256(weights), content_sha256(heldout), max_gen_len]
    if path.exists() and (kept := read_json(path, "Delete it."))["key"] == key:
        return Scores(**{name: value for name, value in kept.items() if name != "key"})
    opened = _open(weights)
    evaluation = Evaluation(
        opened.model,
        opened.tokenizer,
        ("MiniLLM", "MiniLLM团队"),
        {"batch_size": BATCH, "max_new_tokens": 128},
        ROW_TOKENS,
    )
    records = [record for record in read_records(heldout) if split_of(record) == "test"]
    found = prompt_metrics(evaluation, records, max_new_tokens=max_gen_len, temperature=1.0, seed=SEED)
    answers = [
        {
            "record": record,
            "answer": verdict.answer.text,
            "ended": verdict.answer.ended,
            "right": not verdict.broken,
            "tokens": verdict.answer.num_tokens,
        }
        for record, verdict in zip(records, evaluation.verdicts, strict=True)
    ]
    scores = Scores(
        prompt_metrics={name: metric.as_json() for name, metric in found.items()},
        answers=answers,
        others=_others(evaluation, chats),
        pass_at=_pass_at(opened, records, max_gen_len),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"key": key, **vars(scores)})
    return scores


def greedy_accuracy(weights: Path, prompts: Path, max_gen_len: int) -> float:
    """Share of the validation prompts with a right greedy answer. Args: those of `scores_of`."""
    opened, heldout = _open(weights), heldout_beside(prompts)
    assert heldout is not None
    records = [record for record in read_records(heldout) if split_of(record) == "validation"]
    said = ask(
        opened.model,
        opened.tokenizer,
        [record["conversations"][:-1] for record in records],
        batch_size=BATCH,
        max_new_tokens=max_gen_len,
    )
    return average(
        one.ended and not rule_of(record).broken(one.text) for record, one in zip(records, said, strict=True)
    )


def _others(evaluation: Evaluation, chats: Path) -> dict[str, list[Any]]:
    """Held-out chats of the mix and the first minutes: question -> metric, cluster, right."""
    kept: list[dict[str, Any]] = []
    counts: Counter[tuple[str, str]] = Counter()
    for record in read_records(chats):
        kind = str(record.get("category")), str(record.get("kind", ""))
        counts[kind] += split_of(record) == "test"
        if split_of(record) == "test" and counts[kind] <= MOST_OF_A_KIND:
            kept.append(record)
    before = len(evaluation.verdicts)
    evaluation.of_chats(kept)
    asked, _ = choose_prompts("", "sft", "report", evaluation.names, everything=True)
    evaluation.of_prompts(asked)
    found: dict[str, list[Any]] = {}
    for verdict in evaluation.verdicts[before:]:
        if verdict.scored:
            found[_name(verdict, len(found))] = [verdict.metric, str(verdict.cluster), not verdict.broken]
    return found


def _name(verdict: Verdict, number: int) -> str:
    """A key of a question: all weights are asked the same ones in the same order."""
    return f"{number} {verdict.turns[-1]}"


def _pass_at(opened: OpenModel, records: Sequence[dict[str, Any]], max_gen_len: int) -> float:
    """Share of prompts to which at least one of PASS_AT sampled answers is right."""
    engine = Engine(opened.model, opened.tokenizer, max_batch_size=BATCH)
    prompts = [opened.tokenizer.render_for_completion(record["conversations"][:-1]) for record in records]
    groups = [
        engine.add(
            prompt, Sampling(max_new_tokens=max_gen_len, temperature=1.0, seed=10_000 + number * PASS_AT), PASS_AT
        )
        for number, prompt in enumerate(prompts)
    ]
    engine.run()
    rules = [rule_of(record) for record in records]
    return average(
        any(one.finish_reason == "stop" and not rule.broken(one.text) for one in group)
        for rule, group in zip(rules, groups, strict=True)
    )


def keep_answers(scores: Scores, path: Path) -> None:
    """Write a few answers to read: prompt, answer, whether it is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"prompt": one["record"]["conversations"][-2]["content"], "answer": one["answer"], "right": one["right"]}
        for one in scores.answers[:KEPT_ANSWERS]
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
