"""How often a reward model prefers the better answer of a held-out pair, and what else would do so.

An accuracy of a reward model proves little by itself: the longer answer, the SFT model's own
log-probability or a DPO model may reach as much. So all of them stand beside it, over the same
pairs. Rewards, log-probabilities and lengths are plain numbers.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from evaluation.baselines import TrainingExamples, pair_baselines
from evaluation.intervals import Metric, mean, ratio, share
from evaluation.preference import Pair, length_and_nearest

WRONG_KINDS = (
    "wrong_fact", "wrong_sum", "agreeing", "doubting", "choice", "half_right", "beside", "other_question", "overclaim",
    "other_sum",
)  # fmt: skip
"""Kinds of the bundled pairs whose rejected answer is wrong for its question. In the other kinds
its tone, its length or its style is worse."""
MOST_BINS = 5
PAIRS_OF_A_BIN = 40
"""Pairs are sorted by how much their lengths differ, into bins of at least so many."""


@dataclass(frozen=True)
class Preferred:
    """What one judge gives to both answers of a pair: a reward, or a log-probability."""

    chosen: float
    rejected: float

    @property
    def is_right(self) -> bool:
        """Whether it prefers the chosen answer; False for a tie."""
        return self.chosen > self.rejected


def length_matched(
    right: Sequence[bool], lengths: Sequence[tuple[int, int]], clusters: Sequence[Hashable] | None = None
) -> Metric | None:
    """The accuracy on pairs in which length tells nothing.

    Pairs are sorted by the ratio of the two lengths into bins. Inside a bin, those whose chosen
    answer is longer count as much together as those whose chosen answer is shorter. So every rule
    that looks at the two lengths alone gets one half, but for differences inside a bin. Pairs of
    equal length count 1 each.
    Args: right: whether the chosen answer is preferred. lengths: of the chosen and of the rejected
    answer, at least 1. Returns: None where no pair has another to be matched with.
    """
    weights = [0.0] * len(right)
    sides: dict[bool, list[int]] = {True: [], False: []}
    for number, (chosen, rejected) in enumerate(lengths):
        if chosen == rejected:
            weights[number] = 1.0
        else:
            sides[chosen > rejected].append(number)
    # The larger length over the smaller one: the same number, to the last bit, for both directions.
    unequal = sorted(sides[True] + sides[False], key=lambda i: (max(lengths[i]) / min(lengths[i]), i))
    bins = max(1, min(MOST_BINS, len(unequal) // PAIRS_OF_A_BIN))
    for place in range(bins):
        members = unequal[len(unequal) * place // bins : len(unequal) * (place + 1) // bins]
        longer = [number for number in members if lengths[number][0] > lengths[number][1]]
        shorter = [number for number in members if lengths[number][0] < lengths[number][1]]
        for side in (longer, shorter):
            for number in side:
                weights[number] = min(len(longer), len(shorter)) / len(side)
    used = [number for number, weight in enumerate(weights) if weight]
    if not used:
        return None
    metric = ratio(
        [weights[number] * right[number] for number in used],
        [weights[number] for number in used],
        len(used),
        None if clusters is None else [clusters[number] for number in used],
    )
    return replace(metric, low=max(0.0, metric.low), high=min(1.0, metric.high))


def reward_metrics(
    pairs: Sequence[Pair],
    rewards: Sequence[Preferred],
    others: Mapping[str, Sequence[Preferred]],
    lengths: Sequence[tuple[int, int]],
    examples: TrainingExamples,
) -> dict[str, Metric]:
    """Shares of pairs whose chosen answer is preferred; a tie counts as wrong.

    - `reward_accuracy`, with the baselines `length` and `nearest`.
    - `reward_accuracy_length_matched`: see `length_matched`. `..._longer`: how often the chosen
      answer is the longer one.
    - `reward_accuracy_NAME` for each other judge: `sft`, `sft_length_normalized`, `dpo`.
    - `..._wrong`: all of them over WRONG_KINDS; `reward_accuracy_KIND` for each kind.
    - `reward_margin`: mean difference of the two rewards. `reward_mean`: mean of all rewards, which
      centring brings to 0.

    Args: others: name of another judge -> what it gives to the same pairs. lengths: tokens of both
    answers.
    """
    texts = [(str(pair.chosen[-1]["content"]), str(pair.rejected[-1]["content"])) for pair in pairs]
    guesses = pair_baselines(texts, lengths, examples)

    def of(judged: Sequence[Preferred], numbers: Sequence[int]) -> Metric:
        """The accuracy of a judge on the pairs with these numbers."""
        clusters = [pairs[number].cluster for number in numbers]
        metric = share([judged[number].is_right for number in numbers], clusters)
        return replace(metric, baselines=length_and_nearest([guesses[number] for number in numbers], examples))

    def group(end: str, numbers: Sequence[int]) -> dict[str, Metric]:
        """The metrics over some pairs. Args: end: the end of their names."""
        clusters = [pairs[number].cluster for number in numbers]
        found = {f"reward_accuracy{end}": of(rewards, numbers)}
        found |= {f"reward_accuracy_{name}{end}": of(judged, numbers) for name, judged in others.items()}
        found[f"reward_accuracy_longer{end}"] = share([lengths[i][0] > lengths[i][1] for i in numbers], clusters)
        matched = length_matched(
            [rewards[number].is_right for number in numbers], [lengths[number] for number in numbers], clusters
        )
        return found | ({f"reward_accuracy_length_matched{end}": matched} if matched else {})

    everything = list(range(len(pairs)))
    clusters = [pair.cluster for pair in pairs]
    metrics = group("", everything)
    if wrong := [number for number in everything if pairs[number].kind in WRONG_KINDS]:
        metrics |= group("_wrong", wrong)
    for kind in sorted({pair.kind for pair in pairs if pair.kind}):
        metrics[f"reward_accuracy_{kind}"] = of(rewards, [i for i in everything if pairs[i].kind == kind])
    metrics["reward_margin"] = mean([one.chosen - one.rejected for one in rewards], clusters)
    metrics["reward_mean"] = mean([(one.chosen + one.rejected) / 2 for one in rewards], clusters)
    return metrics
