"""Metrics of each stage on held-out records, each with its count and a 95% confidence interval.

Shapes: B rows, T tokens.
"""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from configs.schema import UserError
from dataset.encoding import IGNORE
from dataset.tokenizer import RustBPETokenizer
from model.generate import Answer, Sampling, answer
from model.model_minillm import MiniLLM

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95% interval."""
EXACT_CATEGORIES = ("identity", "knowledge", "math")
SCORE_BATCH = 32
"""Rows scored at one time."""
GENERAL_ANSWERS = 100
"""Answers generated for the category `general`, which has no exact measure but whether they end."""
OPENING_CHARACTERS = 16
"""Characters of a held-out text that a pretrained model is shown to go on from."""


@dataclass(frozen=True)
class Metric:
    """A value, the number of items behind it, and its 95% confidence interval."""

    value: float
    n: int
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """The form of `eval_results.jsonl`."""
        return {"value": self.value, "n": self.n, "ci95": [self.low, self.high]}


def proportion(successes: int, n: int) -> Metric:
    """A share with Wilson's interval (Wilson 1927), which stays inside [0, 1]."""
    if n == 0:
        raise ValueError("a share of nothing")
    share = successes / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return Metric(share, n, max(0.0, centre - half), min(1.0, centre + half))


def mean(values: Sequence[float]) -> Metric:
    """A mean with its normal interval."""
    n, average = len(values), sum(values) / len(values)
    spread = math.sqrt(sum((value - average) ** 2 for value in values) / max(1, n - 1) / n)
    return Metric(average, n, average - Z95 * spread, average + Z95 * spread)


def ratio(numerators: Sequence[float], denominators: Sequence[float], n: int) -> Metric:
    """Sum over sum, such as nats over tokens, with the interval of a ratio estimate over the records."""
    total = sum(denominators)
    value = sum(numerators) / total
    residuals = [a - value * b for a, b in zip(numerators, denominators, strict=True)]
    count = len(residuals)
    spread = math.sqrt(sum(r * r for r in residuals) * count / max(1, count - 1)) / total
    return Metric(value, n, value - Z95 * spread, value + Z95 * spread)


def exponential(metric: Metric) -> Metric:
    """Perplexity of a loss."""
    return Metric(math.exp(metric.value), metric.n, math.exp(metric.low), math.exp(metric.high))


# --- likelihood -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """Likelihood of the supervised tokens of one record."""

    nats: float
    num_tokens: int
    num_bytes: int


def windows(ids: Sequence[int], mask: Sequence[int], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Cut a record into rows of inputs and labels, each token predicted once, with the token before as context."""
    for start in range(0, max(1, len(ids) - 1), length):
        inputs = list(ids[start : start + length])
        following, supervised = ids[start + 1 : start + length + 1], mask[start + 1 : start + length + 1]
        labels = [token if kept else IGNORE for token, kept in zip(following, supervised, strict=True)]
        yield inputs[: len(labels)], labels


@torch.inference_mode()
def row_nats(model: MiniLLM, rows: Sequence[tuple[list[int], list[int]]], batch_size: int, label: str) -> list[float]:
    """Summed negative log-likelihood of the labels of each row, in nats; rows of like length run together."""
    device = model.output_weight.device
    order = sorted(range(len(rows)), key=lambda number: len(rows[number][0]))
    result = [0.0] * len(rows)
    for start in tqdm(range(0, len(rows), batch_size), desc=label, unit="batch", leave=False):
        numbers = order[start : start + batch_size]
        longest = max(len(rows[number][0]) for number in numbers)
        inputs = torch.zeros(len(numbers), longest, dtype=torch.long)
        labels = torch.full((len(numbers), longest), IGNORE)
        for place, number in enumerate(numbers):
            row_inputs, row_labels = rows[number]
            inputs[place, : len(row_inputs)] = torch.tensor(row_inputs)
            labels[place, : len(row_labels)] = torch.tensor(row_labels)
        nats = _batch_nats(model, inputs.to(device), labels.to(device))
        for number, value in zip(numbers, nats.tolist(), strict=True):
            result[number] = value
    return result


def _batch_nats(model: MiniLLM, inputs: Tensor, labels: Tensor) -> Tensor:
    """(B, T), (B, T) -> (B,) float64."""
    hidden, _ = model.hidden_states(inputs)
    rows, columns = (labels != IGNORE).nonzero(as_tuple=True)
    nats = torch.zeros(labels.shape[0], dtype=torch.float64)
    for part in range(0, len(rows), 4096):  # bounds the logits in memory
        r, c = rows[part : part + 4096], columns[part : part + 4096]
        logits = F.linear(hidden[r, c], model.output_weight).float()
        loss = F.cross_entropy(logits, labels[r, c], reduction="none")
        nats.index_add_(0, r.cpu(), loss.double().cpu())
    return nats


def score(
    model: MiniLLM, records: Sequence[tuple[list[int], list[int], int]], *, length: int, batch_size: int, label: str
) -> list[Scored]:
    """Likelihood of records given as (ids, mask, bytes of the supervised text)."""
    rows, owners = [], []
    for number, (ids, mask, _) in enumerate(records):
        for row in windows(ids, mask, length):
            rows.append(row)
            owners.append(number)
    nats, tokens = [0.0] * len(records), [0] * len(records)
    for owner, row, value in zip(owners, rows, row_nats(model, rows, batch_size, label), strict=True):
        nats[owner] += value
        tokens[owner] += sum(token != IGNORE for token in row[1])
    return [Scored(n, t, record[2]) for n, t, record in zip(nats, tokens, records, strict=True)]


def likelihood_metrics(scored: Sequence[Scored]) -> dict[str, Metric]:
    """Loss in nats a token, perplexity, and bits per byte of the supervised text."""
    kept = [s for s in scored if s.num_tokens]
    if not kept:
        raise UserError("the held-out file has no text to score. Give another --data_path.")
    tokens, size = sum(s.num_tokens for s in kept), sum(s.num_bytes for s in kept)
    loss = ratio([s.nats for s in kept], [s.num_tokens for s in kept], tokens)
    bits = ratio([s.nats / math.log(2) for s in kept], [s.num_bytes for s in kept], size)
    return {"loss": loss, "perplexity": exponential(loss), "bits_per_byte": bits}


def text_records(tokenizer: RustBPETokenizer, texts: Iterable[str]) -> list[tuple[list[int], list[int], int]]:
    """Raw texts as (ids, mask, bytes): all of the text and its end are predicted."""
    records = []
    for text in texts:
        ids = [tokenizer.get_bos_token_id(), *tokenizer.encode(text), tokenizer.end_of_text_id]
        records.append((ids, [0] + [1] * (len(ids) - 1), len(text.encode("utf-8", errors="replace"))))
    return records


def chat_records(
    tokenizer: RustBPETokenizer, conversations: Iterable[list[dict[str, Any]]]
) -> list[tuple[list[int], list[int], int]]:
    """Conversations as (ids, mask, bytes of what the assistant says)."""
    records = []
    for messages in conversations:
        ids, mask = tokenizer.render_conversation(messages)
        said = [token for token, kept in zip(ids, mask, strict=True) if kept]
        records.append((ids, mask, len(tokenizer.decode_bytes(said, special=False))))
    return records


# --- answers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """One held-out question with its right answer."""

    messages: list[dict[str, Any]]
    """The conversation up to and with the last user turn."""
    expected: str
    category: str
    kind: str = ""
    """`word` for word problems, which are reported apart."""


def normalize(text: str) -> str:
    """Text without punctuation and spaces, widths and case folded."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if not unicodedata.category(c).startswith(("P", "Z", "C")) and not c.isspace())


NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def last_number(text: str) -> str | None:
    """The last number in a text, or None."""
    found = NUMBER.findall(unicodedata.normalize("NFKC", text))
    return found[-1] if found else None


def is_right(question: Question, said: str, names: tuple[str, str]) -> bool:
    """Whether an answer is right.

    Knowledge: equal to the expected one after removing punctuation and spaces. Mathematics: the same last number.
    Identity: names the model where the expected answer does, and its maker where the expected answer does; where it
    names neither, the same as knowledge.
    """
    if question.category == "math":
        return last_number(said) is not None and last_number(said) == last_number(question.expected)
    if question.category == "identity":
        wanted = [normalize(name) for name in names if normalize(name) in normalize(question.expected)]
        if wanted:
            return all(name in normalize(said) for name in wanted)
    return bool(normalize(said)) and normalize(said) == normalize(question.expected)


def ask(
    model: MiniLLM,
    tokenizer: RustBPETokenizer,
    questions: Sequence[Question],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> list[Answer]:
    """Greedy answers in the order of the questions; prompts of like length run side by side."""
    prompts = [tokenizer.render_for_completion(question.messages) for question in questions]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0)
    answers: list[Answer | None] = [None] * len(prompts)
    for start in tqdm(range(0, len(order), batch_size), desc="answers", unit="batch", leave=False):
        numbers = order[start : start + batch_size]
        for number, said in zip(
            numbers, answer(model, tokenizer, [prompts[n] for n in numbers], sampling), strict=True
        ):
            answers[number] = said
    return [said for said in answers if said is not None]


def answer_metrics(
    questions: Sequence[Question], answers: Sequence[Answer], names: tuple[str, str]
) -> dict[str, Metric]:
    """Accuracy of each exact category, word problems apart; how many answers ended; how many leak the model's name."""
    right: dict[str, list[bool]] = defaultdict(list)
    for question, said in zip(questions, answers, strict=True):
        if question.category in EXACT_CATEGORIES:
            correct = is_right(question, said.text, names)
            right[f"accuracy_{question.category}{'_word' if question.kind == 'word' else ''}"].append(correct)
    metrics = {name: proportion(sum(values), len(values)) for name, values in sorted(right.items())}
    metrics["ended"] = proportion(sum(said.ended for said in answers), len(answers))
    others = [said for question, said in zip(questions, answers, strict=True) if question.category != "identity"]
    if others and names[0]:
        leaks = sum(normalize(names[0]) in normalize(said.text) for said in others)
        metrics["name_in_other_answers"] = proportion(leaks, len(others))
    return metrics


# --- preference -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairScore:
    """Log-probabilities in nats of both answers of a pair, and their supervised tokens."""

    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int


def score_pairs(
    model: MiniLLM,
    tokenizer: RustBPETokenizer,
    pairs: Sequence[tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    *,
    length: int,
    batch_size: int,
    label: str,
) -> list[PairScore]:
    """Log-probability of the last turn of both sides of each pair."""
    rows: list[tuple[list[int], list[int]]] = []
    for pair in pairs:
        for messages in pair:
            ids, mask = tokenizer.render_conversation(messages)
            prompt = len(tokenizer.render_for_completion(messages[:-1]))
            mask = [0] * prompt + list(mask[prompt:])  # earlier assistant turns are the same on both sides
            rows.append(next(windows(ids[: length + 1], mask[: length + 1], length)))
    nats = row_nats(model, rows, batch_size, label)
    tokens = [sum(token != IGNORE for token in labels) for _, labels in rows]
    return [PairScore(-nats[i], -nats[i + 1], max(1, tokens[i]), max(1, tokens[i + 1])) for i in range(0, len(rows), 2)]


def preference_metrics(policy: Sequence[PairScore], reference: Sequence[PairScore], beta: float) -> dict[str, Metric]:
    """Share of pairs whose chosen answer the policy prefers; a tie counts as wrong.

    `preference_accuracy` compares implicit rewards, beta * (policy - reference) (arXiv:2305.18290, eq. 5), so the
    reference itself scores 0; `_no_reference` compares log-probabilities, `_length_normalized` log-probabilities a
    token, both with the share of the untrained reference beside it; `_longer_answer` is what a judge who only
    counts tokens would reach. `reward_margin` is the mean difference of the implicit rewards.
    """
    margins = [
        beta * ((p.chosen - r.chosen) - (p.rejected - r.rejected)) for p, r in zip(policy, reference, strict=True)
    ]
    n = len(margins)

    def share(wins: Iterable[bool]) -> Metric:
        return proportion(sum(wins), n)

    def normalized(pairs: Sequence[PairScore]) -> Metric:
        return share(p.chosen / p.chosen_tokens > p.rejected / p.rejected_tokens for p in pairs)

    return {
        "preference_accuracy": share(margin > 0 for margin in margins),
        "preference_accuracy_no_reference": share(p.chosen > p.rejected for p in policy),
        "preference_accuracy_length_normalized": normalized(policy),
        "preference_accuracy_no_reference_before": share(r.chosen > r.rejected for r in reference),
        "preference_accuracy_length_normalized_before": normalized(reference),
        "preference_accuracy_longer_answer": share(p.chosen_tokens > p.rejected_tokens for p in policy),
        "reward_margin": mean(margins),
    }


# --- a whole stage ----------------------------------------------------------------------------------------------


class Evaluation:
    """The metrics of one model; remembers three answers to show."""

    def __init__(
        self,
        model: MiniLLM,
        tokenizer: RustBPETokenizer,
        names: tuple[str, str],
        settings: dict[str, int],
        length: int,
    ) -> None:
        self.model, self.tokenizer, self.names, self.settings, self.length = model, tokenizer, names, settings, length
        self.samples: list[tuple[str, Answer, str]] = []

    def of_texts(self, records: list[dict[str, Any]]) -> dict[str, Metric]:
        """Loss, perplexity and bits per byte of raw texts."""
        texts = text_records(self.tokenizer, (record["text"] for record in records))
        prose = [record for record in records if record.get("category") == "corpus"] or records
        self._remember_texts([record["text"][:OPENING_CHARACTERS] for record in prose[:3]])
        scored = score(self.model, texts, length=self.length, batch_size=SCORE_BATCH, label="likelihood")
        return likelihood_metrics(scored)

    def of_chats(self, records: list[dict[str, Any]]) -> dict[str, Metric]:
        """The same over what the assistant says, and the accuracy of greedy answers."""
        conversations = [record["conversations"] for record in records]
        scored = score(
            self.model, chat_records(self.tokenizer, conversations),
            length=self.length, batch_size=SCORE_BATCH, label="likelihood",
        )  # fmt: skip
        questions = [question_of(record) for record in records]
        general = [q for q in questions if q.category not in EXACT_CATEGORIES][:GENERAL_ANSWERS]
        questions = [q for q in questions if q.category in EXACT_CATEGORIES] + general
        answers = ask(
            self.model, self.tokenizer, questions,
            batch_size=self.settings["batch_size"], max_new_tokens=self.settings["max_new_tokens"],
        )  # fmt: skip
        self._remember(questions, answers)
        return likelihood_metrics(scored) | answer_metrics(questions, answers, self.names)

    def of_pairs(self, records: list[dict[str, Any]], reference: MiniLLM, beta: float) -> dict[str, Metric]:
        """How often the better answer of a pair is preferred over the reference's taste, and by how much."""
        pairs = [(record["chosen"], record["rejected"]) for record in records]
        policy_scores, reference_scores = (
            score_pairs(model, self.tokenizer, pairs, length=self.length, batch_size=SCORE_BATCH, label=label)
            for model, label in ((self.model, "policy"), (reference, "reference"))
        )
        return preference_metrics(policy_scores, reference_scores, beta)

    def _remember_texts(self, openings: list[str]) -> None:
        prompts = [[self.tokenizer.get_bos_token_id(), *self.tokenizer.encode(text)] for text in openings]
        said = answer(self.model, self.tokenizer, prompts, Sampling(max_new_tokens=48))
        self.samples = [(opening, one, "") for opening, one in zip(openings, said, strict=True)]

    def _remember(self, questions: list[Question], answers: list[Answer]) -> None:
        """One answer of each of three categories, right or wrong as it comes."""
        seen: set[str] = set()
        for question, said in zip(questions, answers, strict=True):
            if question.category not in seen and len(seen) < 3:
                seen.add(question.category)
                mark = ""
                if question.category in EXACT_CATEGORIES:
                    mark = "✓" if is_right(question, said.text, self.names) else f"✗ ({question.expected})"
                self.samples.append((str(question.messages[-1]["content"]), said, mark))


def question_of(record: dict[str, Any]) -> Question:
    """The last question of a conversation, and what was answered."""
    messages = record["conversations"]
    return Question(
        messages[:-1], str(messages[-1]["content"]), record.get("category", "general"), str(record.get("kind", ""))
    )
