"""What rules that know nothing reach on the same questions: one constant answer, and the nearest
training question.

A score says something only above these. Both see what the model saw in training, and nothing of the
held-out answers but the constant, which is even chosen by them.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs.artifacts import sha256_file
from configs.paths import display, find_dataset
from configs.schema import UserError
from dataset.records.files import read_records
from dataset.records.keys import normalised_question, text_hash
from evaluation.answers import Key, Rule, Said
from evaluation.questions import Messages

MAX_QUESTIONS = 200_000
"""Distinct training questions, and training texts of each side of pairs, that are looked at; of
more, a seeded sample."""
FREQUENT_ANSWERS = 200
"""Most frequent training answers that are tried as the constant one."""
LONGEST_CONSTANT = 200
"""Characters; a longer training answer is not tried as the constant one."""
COUNTED_ANSWERS = 500_000
"""Distinct answers counted at one time; beyond that, those seen once are forgotten."""
TURN_MARK = "\x01"
"""Stands between two turns that are looked up together."""


# --- what the model was trained on ----------------------------------------------------------------


@dataclass
class TrainingExamples:
    """Questions with their answers, and the answers of pairs, from the files that a checkpoint was
    trained on."""

    questions: list[str] = field(default_factory=list)
    """Normalised; a turn that follows another stands twice: alone, and behind the turn before
    it."""
    answers: list[str] = field(default_factory=list)
    frequent: list[str] = field(default_factory=list)
    """The most frequent answers."""
    chosen: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set, repr=False)
    """Keys of all questions (`text_hash`), however many, and of the raw texts (`text_key`)."""
    reason: str = ""
    """Why there are none; empty where there are."""
    is_partial: bool = False
    """Whether `seen` lacks a file that is gone or another by now."""


def question_text(messages: Messages) -> str:
    """What is looked up of a conversation: the last user turn, with the one before it where there
    is one."""
    turns = [str(message["content"]) for message in messages if message["role"] == "user"][-2:]
    return TURN_MARK.join(normalised_question(turn) for turn in turns)


def training_examples(
    sources: Iterable[Mapping[str, Any]], seed: int, *, with_texts: bool = False, limit: int = MAX_QUESTIONS
) -> TrainingExamples:
    """What stands in the files of a checkpoint's `training_data` (path and SHA-256 of each).

    Raw texts count only `with_texts`; else a file that begins with one is not read to its end.

    A file that is gone, or another one by now, leaves no examples but the reason, and in `seen` what
    the others hold.
    """
    choose = random.Random(seed)
    questions, chosen, rejected = (_Sample(limit, choose) for _ in range(3))
    counts: Counter[str] = Counter()
    texts: set[bytes] = set()
    reason = ""
    for source in sources:
        try:
            for record in read_records(_file_of(source)):
                if "conversations" not in record and "chosen" not in record:
                    if not with_texts:
                        break
                    texts.add(text_key(record["text"]))
                    continue
                for question, answer in _exchanges(record):
                    questions.add(question, (question, answer))
                    if len(answer) <= LONGEST_CONSTANT:
                        counts[answer] += 1
                if len(counts) > COUNTED_ANSWERS:
                    counts = Counter({answer: count for answer, count in counts.items() if count > 1})
                if "chosen" in record:
                    for side, sample in (("chosen", chosen), ("rejected", rejected)):
                        text = str(record[side][-1]["content"])
                        sample.add(text, text)
        except UserError as error:
            reason = reason or str(error)
    if reason:
        return TrainingExamples(seen=texts | questions.seen, reason=reason, is_partial=True)
    if not questions.kept:
        return TrainingExamples(seen=texts, reason="the training data has no questions")
    return TrainingExamples(
        [question for question, _ in questions.kept],
        [answer for _, answer in questions.kept],
        [answer for answer, _ in counts.most_common(FREQUENT_ANSWERS)],
        chosen.kept,
        rejected.kept,
        texts | questions.seen,
    )


def _file_of(source: Mapping[str, Any]) -> Path:
    """A training file as it was. Raises: UserError where it is gone or changed."""
    path = find_dataset(Path(source["path"]))
    if sha256_file(path) != source["sha256"]:
        raise UserError(f"{display(path)}: changed since the training", "训练之后文件已改动")
    return path


def text_key(text: str) -> bytes:
    """What a raw text is known by: its hash without case, spacing and punctuation."""
    return text_hash(normalised_question(text))


def _exchanges(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Normalised question and answer of each turn of the assistant; of a pair, the chosen
    answer."""
    before = ""
    asked = ""
    for message in record["conversations"] if "conversations" in record else record["chosen"]:
        if message["role"] == "user":
            before, asked = asked, normalised_question(str(message["content"]))
        elif message["role"] == "assistant" and asked and message.get("content") and message.get("loss") is not False:
            yield asked, str(message["content"])
            if before:
                yield f"{before}{TURN_MARK}{asked}", str(message["content"])


class _Sample:
    """A random sample of distinct things, each with the same chance (Vitter 1985, algorithm R)."""

    def __init__(self, limit: int, choose: random.Random) -> None:
        self.limit, self.choose = limit, choose
        self.seen: set[bytes] = set()
        self.kept: list[Any] = []

    def add(self, key: str, item: Any) -> None:
        """Take an item, unless one of its key was seen."""
        digest = text_hash(key)
        if digest in self.seen:
            return
        self.seen.add(digest)
        if len(self.kept) < self.limit:
            self.kept.append(item)
        elif (place := self.choose.randrange(len(self.seen))) < self.limit:
            self.kept[place] = item


# --- the nearest text -----------------------------------------------------------------------------


class NearestText:
    """Finds the text whose counts of character bigrams have the largest cosine with those of a
    query.

    An inverted index: bigram -> texts that have it. A query adds up the lists of its few bigrams,
    so 5,000 queries against 60,000 texts take seconds.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        keys, owners, counts = _bigram_counts(texts)
        norms = np.sqrt(np.bincount(owners, counts.astype(np.float64) ** 2, minlength=len(texts)))
        order = np.argsort(keys, kind="stable")
        self.keys, starts = np.unique(keys[order], return_index=True)
        self.bounds = np.append(starts, len(keys))
        self.owners = owners[order]
        self.weights = (counts / norms[owners])[order]
        self.num_texts = len(texts)

    def find(self, queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Number and cosine of the nearest text of each query; the first of equal ones, and 0 where
        none has a bigram."""
        nearest, cosines = np.zeros(len(queries), np.int64), np.zeros(len(queries))
        keys, owners, counts = _bigram_counts(queries)
        bounds = np.searchsorted(owners, np.arange(len(queries) + 1))
        for number in range(len(queries)):
            mine = slice(bounds[number], bounds[number + 1])
            found = np.searchsorted(self.keys, keys[mine])
            known = found < len(self.keys)
            known[known] = self.keys[found[known]] == keys[mine][known]
            if not known.any():
                continue
            norm = np.sqrt((counts[mine].astype(np.float64) ** 2).sum())
            lists = [slice(self.bounds[place], self.bounds[place + 1]) for place in found[known]]
            weights = [self.weights[s] * count for s, count in zip(lists, counts[mine][known], strict=True)]
            sums = np.bincount(
                np.concatenate([self.owners[s] for s in lists]), np.concatenate(weights), minlength=self.num_texts
            )
            nearest[number] = sums.argmax()
            cosines[number] = sums[nearest[number]] / norm
        return nearest, cosines


def _bigram_counts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bigrams of all texts, sorted by text: bigram as one number, number of the text, count. Each
    text has a mark before and after it, so that a single character has two bigrams."""
    joined = "\0".join(["", *(text.replace("\0", " ") for text in texts), ""])
    points = np.frombuffer(joined.encode("utf-32-le", errors="replace"), np.uint32).astype(np.uint64)
    owners = np.cumsum(points == 0)[:-1] - 1  # the mark before a text belongs to it
    keys = points[:-1] << np.uint64(21) | points[1:]
    pairs, counts = np.unique(np.stack([owners.astype(np.uint64), keys]), axis=1, return_counts=True)
    return pairs[1], pairs[0].astype(np.int64), counts


# --- the rules ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A question as the baselines see it: what is looked up, its rule, and the answers that it
    expects."""

    text: str
    rule: Rule
    expected: tuple[str, ...]
    cluster: Hashable


class Baselines:
    """The two rules, over the training examples of one checkpoint."""

    def __init__(self, examples: TrainingExamples) -> None:
        self.examples = examples
        self._index: NearestText | None = None

    def of(self, asked: Sequence[Asked]) -> dict[str, float | str | None]:
        """Shares that the rules get right: `constant` and `nearest`, the latter null with a reason
        where there is no training data."""
        rules = [one.rule for one in asked]
        candidates = dict.fromkeys(text for one in asked for text in one.expected)
        found: dict[str, float | str | None] = {
            "constant": best_constant(rules, [*candidates, *self.examples.frequent])[0] / len(rules)
        }
        if self.examples.reason:
            return found | {"nearest": None, "reason": self.examples.reason}
        answers = self.nearest_answers([one.text for one in asked])
        right = [not rule.broken(Said(answer)) for rule, answer in zip(rules, answers, strict=True)]
        return found | {"nearest": sum(right) / len(right)}

    def nearest_answers(self, texts: Sequence[str]) -> list[str]:
        """The answer of the nearest training question to each text (see `question_text`)."""
        if self._index is None:
            self._index = NearestText(self.examples.questions)
        numbers, _ = self._index.find(texts)
        return [self.examples.answers[number] for number in numbers]


def best_constant(rules: Sequence[Rule], candidates: Iterable[str]) -> tuple[int, str]:
    """The most questions that one answer gets right, and that answer.

    Most rules are known by their keys, so an answer meets those it satisfies without meeting all.
    """
    holders: dict[Key, set[int]] = defaultdict(set)
    for number, rule in enumerate(rules):
        for key in rule.keys:
            holders[key].add(number)
    others = [number for number, rule in enumerate(rules) if rule.has_more]
    best = (0, "")
    seen: set[str] = set()
    for text in candidates:
        said = Said(text)
        if said.plain in seen:
            continue
        seen.add(said.plain)
        right = set().union(*(holders.get(key, set()) for key in said.keys)) if said.plain else set()
        right.update(number for number in others if number not in right and not rules[number].broken(said))
        if len(right) > best[0]:
            best = (len(right), text)
    return best


def pair_baselines(
    pairs: Sequence[tuple[str, str]], lengths: Sequence[tuple[int, int]], examples: TrainingExamples
) -> list[tuple[bool, bool, bool | None]]:
    """For each pair of answers, chosen first: whether it is the longer one, the shorter one, and
    whether its training neighbours speak for it.

    An answer's neighbours are the chosen and the rejected training text nearest to it; it is taken
    for the better one where the first is nearer than the second, by more than it is for the other
    answer. A tie is wrong.
    """
    longer = [chosen > rejected for chosen, rejected in lengths]
    shorter = [chosen < rejected for chosen, rejected in lengths]
    if not examples.chosen:
        return [(a, b, None) for a, b in zip(longer, shorter, strict=True)]
    texts = [normalised_question(text) for pair in pairs for text in pair]
    margins = NearestText([normalised_question(text) for text in examples.chosen]).find(texts)[1]
    margins = margins - NearestText([normalised_question(text) for text in examples.rejected]).find(texts)[1]
    nearer = [bool(margins[2 * i] > margins[2 * i + 1] + 1e-9) for i in range(len(pairs))]
    return list(zip(longer, shorter, nearer, strict=True))
