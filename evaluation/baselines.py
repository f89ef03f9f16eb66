"""Two baselines: always give one answer, or give the answer of the nearest training question.

If the score of a model is not higher than its baselines, the score proves nothing. Both baselines
may use what the model saw in training. The nearest baseline does not use the held-out answers. The
constant baseline does use them: it takes the answer that gets the highest score, so no other
constant answer is better.
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
from dataset.records.files import read_distinct
from dataset.records.keys import normalised_question, text_hash
from evaluation.answers import Key, Rule, Said
from evaluation.questions import Messages
from model.manifest import TrainingFile

MAX_QUESTIONS = 200_000
"""The largest number of distinct training questions that are used, of chosen answers, and of
rejected answers. If there are more, a random sample is used, drawn with a seed."""
FREQUENT_ANSWERS = 200
"""How many of the most frequent training answers are tried as the constant one."""
LONGEST_CONSTANT = 200
"""In characters. A longer training answer is not tried as the constant one."""
COUNTED_ANSWERS = 500_000
"""How many distinct answers we count. If there are more, answers seen only once are removed."""
TURN_MARK = "\x01"
"""Stands between two user turns that are looked up together."""


# --- what the model was trained on ----------------------------------------------------------------


@dataclass
class TrainingExamples:
    """Questions with answers, and the answers of pairs, from the training files of a checkpoint."""

    questions: list[str] = field(default_factory=list)
    """Normalised. If there is a user turn before a question, the question is in this list twice:
    alone, and together with the turn before."""
    answers: list[str] = field(default_factory=list)
    """The answer to each of `questions`."""
    frequent: list[str] = field(default_factory=list)
    """The most frequent answers, the most frequent one first."""
    chosen: list[str] = field(default_factory=list)
    """Last answers of the chosen side of pairs."""
    rejected: list[str] = field(default_factory=list)
    """Last answers of the rejected side. They are a separate sample, so their order is not that of
    `chosen`."""
    seen: set[bytes] = field(default_factory=set, repr=False)
    """Keys of all questions (`text_hash`) and of all raw texts (`text_key`), without a limit."""
    reason: str = ""
    """Why there are no examples; empty if there are some."""
    is_partial: bool = False
    """Whether a training file is gone or has changed, so that its keys are missing in `seen`."""


def question_text(messages: Messages) -> str:
    """The text to look up for a conversation: its last two user turns, or its only one."""
    turns = [str(message["content"]) for message in messages if message["role"] == "user"][-2:]
    return TURN_MARK.join(normalised_question(turn) for turn in turns)


def training_examples(
    sources: Iterable[TrainingFile], seed: int, *, with_texts: bool = False, limit: int = MAX_QUESTIONS
) -> TrainingExamples:
    """Read the training files of a checkpoint again.

    If a file is gone or has changed, the result has no examples. Its `reason` says why, and `seen`
    has the keys of the other files.

    Args: sources: the checkpoint's `training_data`: path and SHA-256 of each file. seed: for the
    random samples. with_texts: True: also collect the keys of raw texts. False: stop reading a file
    at its first raw text. limit: the largest number of examples of each kind.
    """
    choose = random.Random(seed)
    questions, chosen, rejected = (_Sample(limit, choose) for _ in range(3))
    counts: Counter[str] = Counter()
    texts: set[bytes] = set()
    reason = ""
    for source in sources:
        try:
            short_answers: dict[bytes, list[str]] = {}  # of each line, for when it comes again
            for line, record in read_distinct(_file_of(source)):
                if record is None:
                    counts.update(short_answers.get(line, ()))
                    continue
                # A raw text has no question, so we can only use its key.
                if "conversations" not in record and "chosen" not in record:
                    if not with_texts:
                        break
                    texts.add(text_key(record["text"]))
                    continue
                exchanges = list(_exchanges(record))
                for question, answer in exchanges:
                    questions.add(question, (question, answer))
                short_answers[line] = [answer for _, answer in exchanges if len(answer) <= LONGEST_CONSTANT]
                counts.update(short_answers[line])
                # Forget answers that were seen only once. An answer that will be frequent in the
                # end was most likely seen twice before.
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


def _file_of(source: TrainingFile) -> Path:
    """Path of a training file. Raises: UserError if the file is gone or has changed."""
    path = find_dataset(Path(source.path))
    if sha256_file(path) != source.sha256:
        raise UserError(f"{display(path)}: changed since the training", "训练之后文件已改动")
    return path


def text_key(text: str) -> bytes:
    """The key of a raw text: a hash of it without case, spaces and punctuation."""
    return text_hash(normalised_question(text))


def _exchanges(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Normalised question and answer of each assistant turn that is trained on.

    Of a pair, only the chosen side is used. If there is a question before a question, the second
    question is yielded twice: alone, and together with the question before.
    """
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
    """A random sample of distinct items, all with the same chance (Vitter 1985, algorithm R)."""

    def __init__(self, limit: int, choose: random.Random) -> None:
        self.limit, self.choose = limit, choose
        self.seen: set[bytes] = set()
        self.kept: list[Any] = []

    def add(self, key: str, item: Any) -> None:
        """Offer an item to the sample. If its key was seen before, the item is ignored."""
        digest = text_hash(key)
        if digest in self.seen:
            return
        self.seen.add(digest)
        # The n-th item gets into the sample with chance limit / n, and replaces a random item.
        if len(self.kept) < self.limit:
            self.kept.append(item)
        elif (place := self.choose.randrange(len(self.seen))) < self.limit:
            self.kept[place] = item


# --- the nearest text -----------------------------------------------------------------------------


class NearestText:
    """Finds the text that is most similar to a query. It compares texts by character bigrams.

    The similarity is the cosine of the two vectors of bigram counts. The class is an inverted
    index: for each bigram it has a list of the texts that contain it. A query has only a few
    bigrams, and only their lists are read. So 5,000 queries against 60,000 texts take seconds.

    Shapes: P pairs (a text, a bigram in this text), K distinct bigrams, N texts.
    `keys` (K,): the bigrams, sorted. `bounds` (K + 1,): the list of bigram k is the slice
    `bounds[k]:bounds[k + 1]` of `owners` and `weights`. `owners` (P,): the number of the text.
    `weights` (P,): how often the bigram is in the text, divided by the length (norm) of the text's
    vector of counts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        keys, owners, counts = _bigram_counts(texts)
        # Euclidean length of the vector of counts of each text, (N,).
        norms = np.sqrt(np.bincount(owners, counts.astype(np.float64) ** 2, minlength=len(texts)))
        # Sort the (text, bigram) pairs by bigram. Then all entries of one bigram are neighbours:
        # they are the list of that bigram.
        order = np.argsort(keys, kind="stable")
        self.keys, starts = np.unique(keys[order], return_index=True)
        self.bounds = np.append(starts, len(keys))
        self.owners = owners[order]
        self.weights = (counts / norms[owners])[order]
        self.num_texts = len(texts)

    def find(self, queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Number and cosine of the nearest text of each query, (Q,) int64 and (Q,) float64.

        If several texts are equally near, the first one is taken. If no text has a bigram of the
        query, number and cosine are 0.
        """
        nearest, cosines = np.zeros(len(queries), np.int64), np.zeros(len(queries))
        keys, owners, counts = _bigram_counts(queries)
        bounds = np.searchsorted(owners, np.arange(len(queries) + 1))
        for number in range(len(queries)):
            mine = slice(bounds[number], bounds[number + 1])
            # Find the place of each bigram of the query in the index. Some are not in the index.
            found = np.searchsorted(self.keys, keys[mine])
            known = found < len(self.keys)
            known[known] = self.keys[found[known]] == keys[mine][known]
            if not known.any():
                continue
            # For each text add up count * weight over all lists. The sum is the cosine times the
            # norm of the query.
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
    """Count the bigrams of each text.

    Returns: three arrays (P,), sorted by text: the bigram as one number, the number of its text,
    and how often it is in this text.

    A NUL character stands before and after each text, so even one character gives two bigrams.
    """
    joined = "\0".join(["", *(text.replace("\0", " ") for text in texts), ""])
    # A code point needs at most 21 bits, so two of them fit into one 64-bit integer.
    points = np.frombuffer(joined.encode("utf-32-le", errors="replace"), np.uint32).astype(np.uint64)
    owners = np.cumsum(points == 0)[:-1] - 1  # the NUL before a text belongs to that text
    keys = points[:-1] << np.uint64(21) | points[1:]
    pairs, counts = np.unique(np.stack([owners.astype(np.uint64), keys]), axis=1, return_counts=True)
    return pairs[1], pairs[0].astype(np.int64), counts


# --- the baselines --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What the baselines know about a question."""

    text: str
    """The text to look up (`question_text`)."""
    rule: Rule
    expected: tuple[str, ...]
    """Answers that may be right. The constant baseline tries them."""
    cluster: Hashable
    """Questions of the same cluster count as one in a confidence interval."""


class Baselines:
    """Computes both baselines from the training examples of one checkpoint."""

    def __init__(self, examples: TrainingExamples) -> None:
        self.examples = examples
        self._index: NearestText | None = None

    def of(self, asked: Sequence[Asked]) -> dict[str, float | str | None]:
        """The share of questions that each baseline gets right: `constant` and `nearest`.

        Without training data, `nearest` is None and `reason` says why.
        """
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
        """The answer of the training question that is nearest to each text (`question_text`)."""
        if self._index is None:  # make it only now, because many evaluations need no index
            self._index = NearestText(self.examples.questions)
        numbers, _ = self._index.find(texts)
        return [self.examples.answers[number] for number in numbers]


def best_constant(rules: Sequence[Rule], candidates: Iterable[str]) -> tuple[int, str]:
    """How many questions the best constant answer gets right, and that answer.

    Most rules accept only answers with certain keys. So we look up which rules accept the keys of a
    candidate. Only the other rules (`has_more`) must be checked one by one.
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
        # An empty answer has no key that a rule accepts.
        right = set().union(*(holders.get(key, set()) for key in said.keys)) if said.plain else set()
        right.update(number for number in others if number not in right and not rules[number].broken(said))
        if len(right) > best[0]:
            best = (len(right), text)
    return best


def pair_baselines(
    pairs: Sequence[tuple[str, str]], lengths: Sequence[tuple[int, int]], examples: TrainingExamples
) -> list[tuple[bool, bool, bool | None]]:
    """Whether three simple rules find the chosen answer of each pair.

    The rules are: take the longer answer; take the shorter answer; take the answer that is more
    similar to good training answers. The third rule works like this. For each answer, find the most
    similar chosen training answer and the most similar rejected training answer. The margin of the
    answer is the cosine with the first minus the cosine with the second. The rule takes the answer
    with the larger margin. If both margins are equal, the rule is wrong.

    Args: pairs: the two texts, chosen first. lengths: the number of their targets, chosen first.
    Returns: for each pair whether the rules are right: longer, shorter, nearer (None if there are
    no training pairs).
    """
    longer = [chosen > rejected for chosen, rejected in lengths]
    shorter = [chosen < rejected for chosen, rejected in lengths]
    if not examples.chosen:
        return [(a, b, None) for a, b in zip(longer, shorter, strict=True)]
    texts = [normalised_question(text) for pair in pairs for text in pair]
    margins = NearestText([normalised_question(text) for text in examples.chosen]).find(texts)[1]
    margins = margins - NearestText([normalised_question(text) for text in examples.rejected]).find(texts)[1]
    # Texts 2i and 2i + 1 are pair i. Margins that differ only by rounding count as equal.
    nearer = [bool(margins[2 * i] > margins[2 * i + 1] + 1e-9) for i in range(len(pairs))]
    return list(zip(longer, shorter, nearer, strict=True))
