"""Sample preference pairs: a right, kind answer beside one in which something is wrong.

Most of the bad answers are fluent and plausible: a wrong fact, a sum that is off by one, the answer
to another question, something made up, too many words, a rude remark. Each pair names its `kind`.
The questions and the chosen answers come from the chat samples (`prompts.py`). `answers.py` makes
the bad ones. `judgements.py` makes questions and answers of its own, from the same facts and sums.
Held-out pairs are about other facts, sums and topics than training pairs.

In most kinds neither answer is longer on average. The exceptions balance each other: as many bad
answers are too long (`too_long`) as too short (`too_short`), and as many name the help line without
danger (`alarm`) as fail to name it in danger (`careless`).
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dataset.samples.preference.answers import Others, drafts
from dataset.samples.preference.judgements import JUDGES
from dataset.samples.preference.prompts import SIDES, Prompt, Side, prompts

WEIGHTS: dict[str, dict[str, int]] = {
    "wrong_fact": {"facts": 620},
    "wrong_sum": {"sums": 260, "basic sums": 110, "stories": 110, "steps": 40},
    "agreeing": {"facts": 320, "sums": 100, "basic sums": 60},
    "doubting": {"facts": 320, "sums": 100, "basic sums": 60},
    "choice": {"facts": 200, "sums": 50, "basic sums": 30},
    "half_right": {"facts": 200},
    "beside": {"everyday": 30, "facts": 140, "sums": 70},
    "other_question": {
        "everyday": 40,
        "chat": 40,
        "feelings": 40,
        "unknown": 100,
        "beyond": 40,
        "basics": 60,
        "facts": 150,
        "sums": 70,
    },
    "too_long": {"facts": 50, "basics": 20, "sums": 40, "stories": 10, "everyday": 20, "feelings": 30, "unknown": 20},
    "too_short": {"facts": 50, "sums": 40, "stories": 10, "everyday": 30, "feelings": 30, "chat": 10, "unknown": 20},
    "impolite": {"everyday": 40, "sums": 40, "basics": 20, "facts": 80},
    "refusal": {"sums": 30, "basic sums": 10, "facts": 40, "basics": 10, "stories": 20, "everyday": 30},
    "overclaim": {"limits": 60, "beyond": 90, "unknown": 260},
    "cold": {"feelings": 180},
    "alarm": {"harmless": 170, "feelings": 60, "everyday": 20},
    "careless": {"danger": 250},
    "rude": {"facts": 30, "sums": 15, "everyday": 20},
    "repetitive": {"facts": 30, "sums": 15, "everyday": 20},
    "evasive": {"facts": 30, "sums": 15, "everyday": 20},
    "off_topic": {"facts": 30, "sums": 15, "everyday": 20},
}
"""Kind -> source of the questions -> training pairs. The sources that come last balance the lengths
best."""
KINDS = tuple(WEIGHTS)
EASY_KINDS = ("rude", "repetitive", "evasive", "off_topic")
"""Kinds whose bad answers are plainly bad. Those of the others are fluent and plausible."""
NUM_HELDOUT = 60
"""Pairs of each kind in each held-out half."""
NUM_ROUNDS = 4
"""The most pairs of one judgement kind that come from the same question."""
MOST_TRIED = 3000
"""The most questions of one source that are drawn for one kind."""
BALANCED_KINDS = tuple(kind for kind in KINDS if kind not in ("too_long", "too_short", "alarm", "careless"))
"""Kinds in which neither answer is longer on average."""


def _numbers(kind: str, sources: Mapping[str, Sequence[Prompt]], side: Side) -> dict[str, int]:
    """How many pairs each source gives. The others replace a source that has no questions."""
    weights = {source: weight for source, weight in WEIGHTS[kind].items() if sources[source]}
    total = sum(WEIGHTS[kind].values()) if side == "train" else NUM_HELDOUT
    numbers, given, passed = {}, 0, 0
    for source, weight in weights.items():
        passed += weight
        numbers[source] = round(total * passed / sum(weights.values())) - given
        given += numbers[source]
    return numbers


def _spread(mine: Sequence[Prompt], rng: random.Random) -> list[Prompt]:
    """The prompts in random order. The first prompt of each key comes before all second ones."""
    seen: dict[str, int] = {}
    turns: list[tuple[int, int, Prompt]] = []
    for prompt in rng.sample(mine, min(len(mine), MOST_TRIED)):
        turns.append((seen.get(prompt.key, 0), len(turns), prompt))
        seen[prompt.key] = seen.get(prompt.key, 0) + 1
    return [prompt for _, _, prompt in sorted(turns, key=lambda turn: turn[:2])]


def _pairs(kind: str, side: Side, others: Others, said: set[str]) -> Iterator[dict[str, Any]]:
    """The pairs of one kind and side.

    Args: said: bad answers that other sides already use. A pair takes one of these only if there is
    no other bad answer for its question.
    """
    rng = random.Random(f"{kind} {side}")
    sources = prompts(side)
    used: Counter[str] = Counter()
    asked: set[str] = set()
    excess = 0  # characters by which the bad answers are longer so far
    missing = 0  # pairs that earlier sources could not give
    numbers = _numbers(kind, sources, side)
    # For a judgement one fact gives several questions.
    rounds = NUM_ROUNDS if kind in JUDGES else 1
    queues = {source: iter(_spread(sources[source], rng) * rounds) for source in numbers}
    for source in (*numbers, *numbers):  # the second round fills what is missing after the first
        missing += numbers.pop(source, 0)
        for prompt in queues[source] if missing else ():
            # The wanted length varies around that of the right answer. If earlier bad answers were
            # too long together, this one should be shorter, and the other way round.
            target = len(prompt.answer) * rng.uniform(0.85, 1.15) - min(max(excess / 4, -8), 8)
            if kind in JUDGES:
                judged = JUDGES[kind](prompt, others, rng)
                if judged is None or judged[0].question in asked:
                    continue
                prompt, found = judged
            else:
                found = drafts(kind, prompt, others, rng)
            if not found:
                continue
            asked.add(prompt.question)
            found = [text for text in found if text not in said] or found
            least = min(used[text] for text in found)
            fresh = [text for text in found if used[text] == least]
            bad = min(fresh, key=lambda text: abs(len(text) - target)) if kind in BALANCED_KINDS else fresh[0]
            used[bad] += 1
            excess += len(bad) - len(prompt.answer)
            yield pair_record(prompt, bad, kind, side)
            missing -= 1
            if missing == 0:
                break


def pair_record(prompt: Prompt, bad: str, kind: str, side: Side) -> dict[str, Any]:
    """A pair whose rejected answer is `bad`. Held-out ones have `split`."""
    user = {"role": "user", "content": prompt.question}
    record: dict[str, Any] = {
        "chosen": [user, {"role": "assistant", "content": prompt.answer}],
        "rejected": [user, {"role": "assistant", "content": bad}],
        "kind": kind,
        "cluster": prompt.cluster,
    }
    return record if side == "train" else record | {"split": side}


def records() -> Iterator[dict[str, Any]]:
    """Preference records with `kind` and `cluster`. Held-out ones have `split`."""
    said: set[str] = set()
    for side in SIDES:
        others = Others(side)
        made = [record for kind in KINDS for record in _pairs(kind, side, others, said)]
        said |= {record["rejected"][-1]["content"] for record in made}
        yield from made
