"""Which answer of a held-out pair a model prefers: metrics with and without its reference.

They are also taken for each kind of fault apart, beside the baselines of `baselines.py`.
Log-probabilities are plain floats, in nats.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataset.tensors import IGNORE
from dataset.tokenizer import RustBPETokenizer
from evaluation.baselines import TrainingExamples, pair_baselines
from evaluation.intervals import Metric, mean, share
from evaluation.likelihood import SCORE_BATCH, Row, row_nats, windows
from evaluation.questions import Messages, cluster_of
from model.model_minillm import MiniLLM

HARD_KINDS: tuple[str, ...] = ("agreeing", "doubting")
"""Kinds of the bundled pairs that are hard: the SFT model prefers the chosen answer, by its
log-probability a target, in less than 80% of them (docs/lab_log.md). `preference_accuracy_hard` is
taken over them."""


@dataclass(frozen=True)
class Pair:
    """Two conversations that differ in the last answer."""

    chosen: Messages
    rejected: Messages
    kind: str = ""
    """What is wrong with the rejected answer; empty if the record does not say it."""
    cluster: Hashable = None
    """What counts once in an interval."""


def pair_of(record: dict[str, Any]) -> Pair:
    """A preference record as a pair."""
    kind = record.get("kind")
    return Pair(
        record["chosen"],
        record["rejected"],
        kind if isinstance(kind, str) else "",
        cluster_of(record, record["chosen"]),
    )


@dataclass(frozen=True)
class PairScore:
    """Log-probabilities in nats of both last answers of a pair, and how many targets each has."""

    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int

    @property
    def prefers_chosen(self) -> bool:
        """Whether the chosen answer is likelier; False for a tie."""
        return self.chosen > self.rejected

    @property
    def prefers_chosen_per_token(self) -> bool:
        """The same by log-probability a target, so that length does not matter."""
        return self.chosen / self.chosen_tokens > self.rejected / self.rejected_tokens


def pair_rows(tokenizer: RustBPETokenizer, pair: Pair, length: int) -> tuple[Row, Row] | None:
    """Inputs and labels of both sides, cut to `length` tokens as in training. Only the last answers
    have targets.

    None for a pair that training leaves out: within that length it has no answer or no difference.
    """
    rows: list[Row] = []
    cut_ids = []
    for messages in (pair.chosen, pair.rejected):
        ids, mask = tokenizer.render_conversation(messages)
        prompt = len(tokenizer.render_for_completion(messages[:-1]))
        # Earlier assistant turns are the same on both sides, so they are no targets here.
        mask = [0] * prompt + list(mask[prompt:])
        if not any(mask[:length]):
            return None
        cut_ids.append(ids[:length])
        rows.append(next(windows(ids[:length], mask[:length], length)))
    return None if cut_ids[0] == cut_ids[1] else (rows[0], rows[1])


def score_pairs(
    model: MiniLLM, rows: Sequence[tuple[Row, Row]], *, label: str, batch_size: int = SCORE_BATCH
) -> list[PairScore]:
    """Log-probabilities of the last answers of each pair. `label`: name of the progress bar."""
    # Chosen and rejected by turns: 2i and 2i + 1 are pair i.
    flat = [row for pair in rows for row in pair]
    logps = [-nats for nats, _ in row_nats(model, flat, batch_size, label)]
    tokens = [num_targets(row) for row in flat]
    return [
        PairScore(logps[place], logps[place + 1], tokens[place], tokens[place + 1]) for place in range(0, len(flat), 2)
    ]


def num_targets(row: Row) -> int:
    """Targets of a row: tokens of an answer, its end token included."""
    return sum(token != IGNORE for token in row[1])


def preference_metrics(
    pairs: Sequence[Pair],
    policy: Sequence[PairScore],
    reference: Sequence[PairScore],
    beta: float,
    examples: TrainingExamples,
) -> dict[str, Metric]:
    """Shares of pairs in which the policy prefers the chosen answer; a tie counts as wrong.

    - `preference_accuracy` compares implicit rewards, beta * (log-probability under the policy -
      that under the reference) (arXiv:2305.18290, eq. 5). So the reference itself scores 0.
    - `preference_accuracy_no_reference` compares log-probabilities.
    - `preference_accuracy_length_normalized` compares log-probabilities a target.
    - `..._before` is the share of the reference, for the last two.
    - `..._KIND` and `..._hard`: the first and the third for each kind of pair, and for all hard
      kinds together.
    - `reward_margin` is the mean difference of the implicit rewards, chosen less rejected.

    Args: policy, reference: scores of the same pairs under both. beta: that of the training.
    """
    # Implicit reward of the chosen answer less that of the rejected one, (pairs,).
    margins = [
        beta * ((p.chosen - r.chosen) - (p.rejected - r.rejected)) for p, r in zip(policy, reference, strict=True)
    ]
    texts = [(str(pair.chosen[-1]["content"]), str(pair.rejected[-1]["content"])) for pair in pairs]
    lengths = [(score.chosen_tokens, score.rejected_tokens) for score in policy]
    guesses = pair_baselines(texts, lengths, examples)
    everything = list(range(len(pairs)))

    def of(outcome: Callable[[int], bool], numbers: Sequence[int]) -> Metric:
        """The share of the pairs with these numbers for which the outcome is true."""
        metric = share([outcome(number) for number in numbers], [pairs[number].cluster for number in numbers])
        return replace(metric, baselines=length_and_nearest([guesses[number] for number in numbers], examples))

    def both(name: str, numbers: Sequence[int]) -> dict[str, Metric]:
        """The metrics that are also taken for each kind. `name`: the end of their names."""
        return {
            f"preference_accuracy{name}": of(lambda i: margins[i] > 0, numbers),
            f"preference_accuracy_length_normalized{name}": of(lambda i: policy[i].prefers_chosen_per_token, numbers),
            f"preference_accuracy_length_normalized{name}_before": of(
                lambda i: reference[i].prefers_chosen_per_token, numbers
            ),
        }

    metrics = both("", everything) | {
        "preference_accuracy_no_reference": of(lambda i: policy[i].prefers_chosen, everything),
        "preference_accuracy_no_reference_before": of(lambda i: reference[i].prefers_chosen, everything),
        "reward_margin": mean(margins, [pair.cluster for pair in pairs]),
    }
    kinds = sorted({pair.kind for pair in pairs if pair.kind})
    # A kind without pairs here gets no metric.
    groups = {f"_{kind}": {kind} for kind in kinds} | {"_hard": set(HARD_KINDS)}
    for name, members in groups.items():
        if numbers := [number for number in everything if pairs[number].kind in members]:
            metrics |= both(name, numbers)
    return metrics


def length_and_nearest(
    guesses: Sequence[tuple[bool, bool, bool | None]], examples: TrainingExamples
) -> dict[str, float | str | None]:
    """`length`: the better of two rules, always the longer answer or always the shorter one.
    `nearest`: the training neighbours (`pair_baselines`); None with a `reason` without any.
    """
    n = len(guesses)
    longer, shorter = sum(guess[0] for guess in guesses), sum(guess[1] for guess in guesses)
    found: dict[str, float | str | None] = {"length": max(longer, shorter) / n}
    if not examples.chosen:
        return found | {"nearest": None, "reason": examples.reason or "the training data has no pairs"}
    return found | {"nearest": sum(bool(guess[2]) for guess in guesses) / n}
