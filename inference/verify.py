"""An exported model in another program, compared with ours: logits, greedy text, ids, template.

Shapes: B prompts, T tokens, V vocabulary.
"""

import json
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from configs.paths import DANGER_PROMPTS, FIRST_MINUTES, IDENTITY_SAMPLE
from dataset.chat import Message
from dataset.tokenizer import RustBPETokenizer
from dataset.tokenizer_files import to_byte_alphabet
from inference.conversation import context_tokens
from inference.engine import Engine
from inference.sampling import Sampling
from model.likelihood import lm_loss_sum
from model.model_minillm import MiniLLM

NUM_TEXTS = 1000
NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 200, 64, 32
BATCH = 20
"""Prompts at once: their logits are B x T x V numbers."""
NEAR_TIE = 1e-4
"""Two logits nearer than this may change places by rounding alone."""
LARGEST_DIFFERENCE = 1e-4
"""Of two logits in float32 that should be the same."""
WRITTEN_RANGES = (
    (0x20, 0x7F), (0x4E00, 0x9FA6), (0x3000, 0x3040), (0xFF00, 0xFFEF), (0x1F300, 0x1F640), (0x20, 0x2FFF),
)  # fmt: skip
"""Characters of random texts: ASCII, Han, punctuation, emoji, and all below U+3000."""
ODD_TEXTS = (
    "", " ", "\n\n \t", "a  b   c", "1234567890", "don't 'S", "e\u0301\u200d", "\r\n行\r\n", "<|", "<|bos|", "\x00\x1f",
)  # fmt: skip

_WEATHER = {"name": "天气", "description": "查天气", "parameters": {"type": "object", "properties": {}}}
_TOOLS = [{"type": "function", "function": _WEATHER}]
_QUESTION: Message = {"role": "user", "content": "你是谁？\nWho are you?"}
_ANSWER: Message = {"role": "assistant", "content": "我是助手。"}
_CALL: Message = {"role": "assistant", "content": "", "tool_calls": [{"name": "天气", "arguments": {"城市": "北京"}}]}
CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    (_QUESTION,),
    (_QUESTION, _ANSWER, {"role": "user", "content": " 再说一遍 "}),
    ({"role": "system", "content": "用中文回答。"}, _QUESTION),
    (_QUESTION, {**_ANSWER, "reasoning_content": "想一想"}, _QUESTION),
    ({"role": "system", "content": "", "tools": _TOOLS}, _QUESTION, _CALL, {"role": "tool", "content": "晴"}),
)
"""Each ends where the assistant would answer; together they use every branch of the template."""


class Reader(Protocol):
    """Another program that has opened the exported model."""

    name: str
    version: str

    def scores(self, prompts: Tensor) -> Tensor:
        """(B, T) ids -> logits (B, T, V); or log-probabilities of the next token (B, 1, V), NaN
        where the program does not tell."""

    def greedy(self, prompts: Tensor, num_tokens: int) -> list[list[int]]:
        """The likeliest tokens after each prompt, up to an end token or the limit."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts. Text that spells a mark stays text."""

    def has_weights(self, model: MiniLLM) -> bool:
        """Whether the export holds the numbers of our model, in the type that it was written in.

        Logits alone would not show a small change, or an expert that no prompt reaches.
        """

    def held(self, model: MiniLLM) -> MiniLLM:
        """Our model with the numbers that the export holds: rounded ones, if it was quantized."""

    def has_merges(self, merges: Sequence[tuple[str, str]]) -> bool:
        """Whether the program merges by this list, in the alphabet of tokenizer.json.

        Two merges that have changed places show in few texts.
        """

    def templates(self, messages: Sequence[Message], **options: Any) -> list[list[int]]:
        """Ids of a conversation by each copy of the chat template that the export holds.

        Options are those of transformers: `add_generation_prompt`, `enable_thinking`. Nothing where
        the export has no such option.
        """


@dataclass(frozen=True)
class Bars:
    """What a reader may differ by."""

    logit: float | None = LARGEST_DIFFERENCE
    """Of a logit or log-probability. None: the weights were rounded, so logits and greedy text are
    reported alone."""
    bits: float = 0.0
    """Share by which rounded weights may need more bits for a text."""


@dataclass
class Report:
    """What one reader gave; an object of verify.json."""

    version: str
    weights_equal: bool
    max_logit_diff: float
    greedy_equal: int
    """Answers that are equal token by token."""
    near_ties: int
    """Answers that part where our two best logits are nearer than NEAR_TIE, or than logits of this
    type may differ."""
    answers: int
    ids_equal: bool
    """Of all texts, and the merges."""
    template_equal: bool
    more_bits: float
    """Share by which the numbers of the export need more bits a byte, in our network."""
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(model: MiniLLM, tokenizer: RustBPETokenizer, reader: Reader, bars: Bars | None = None) -> Report:
    """Ask our model and the other program the same.

    Args: model: in the mode for evaluation, on the CPU.
    """
    bars = bars or Bars()
    texts = verification_texts(tokenizer)
    # What a model was trained on may be shorter; llama.cpp reads no more than that.
    new_tokens = min(NEW_TOKENS, context_tokens(model) // 3)
    prompts = verification_prompts(tokenizer, texts, min(PROMPT_TOKENS, 2 * new_tokens))
    tie = max(NEAR_TIE, bars.logit or 0.0)  # logits that may differ more change places more easily
    engine = Engine(model, tokenizer)
    difference, equal, near = 0.0, 0, 0
    for batch in prompts.split(BATCH):
        difference = max(difference, _difference(_logits(model, batch), reader.scores(batch)))
        answers = zip(greedy(engine, batch, new_tokens), reader.greedy(batch, new_tokens), strict=True)
        for prompt, (ours, theirs) in zip(batch, answers, strict=True):
            equal += ours == theirs
            near += ours != theirs and _part_at_a_near_tie(model, prompt, ours, theirs, tie)
    merges = [(to_byte_alphabet(left), to_byte_alphabet(right)) for left, right in tokenizer.merges()]
    report = Report(
        version=reader.version,
        weights_equal=reader.has_weights(model),
        max_logit_diff=difference,
        greedy_equal=equal,
        near_ties=near,
        answers=len(prompts),
        ids_equal=reader.encode(texts) == [tokenizer.encode(text) for text in texts] and reader.has_merges(merges),
        template_equal=all(ours == theirs for ours, theirs in _renderings(tokenizer, reader)),
        more_bits=_nats(reader.held(model), prompts) / _nats(model, prompts) - 1,
        ok=False,
    )
    same_text = bars.logit is None or (difference <= bars.logit and equal + near == len(prompts))
    same_rest = report.weights_equal and report.ids_equal and report.template_equal
    report.ok = same_text and same_rest and report.more_bits <= bars.bits
    return report


# --- what is asked --------------------------------------------------------------------------------


def verification_texts(tokenizer: RustBPETokenizer, count: int = NUM_TEXTS) -> list[str]:
    """Texts to encode, always the same for one vocabulary.

    Odd ones; a third of what people type; a third of random characters, some with the name of a
    mark among them; and a third in which each token of the vocabulary stands once, so that no
    merge goes untried.
    """
    rng = random.Random(17)
    typed = sorted(set(_bundled_texts()))
    third = (count - len(ODD_TEXTS)) // 3
    marks = list(tokenizer.special_tokens)
    texts = [*ODD_TEXTS, *rng.sample(typed, third)]
    for number in range(third):
        low_high = [rng.choice(WRITTEN_RANGES) for _ in range(rng.randrange(1, 60))]
        words = [chr(rng.randrange(*both)) for both in low_high]
        if number % 4 == 0:
            words.insert(rng.randrange(len(words)), rng.choice(marks))
        texts.append("".join(words))
    tokens = [token.decode("utf-8", "ignore") for token in tokenizer.mergeable_ranks]
    rng.shuffle(tokens)
    left = count - len(texts)
    return texts + ["".join(tokens[number::left]) for number in range(left)]


def _bundled_texts() -> Iterator[str]:
    """What people type, and what is answered, in the bundled files."""
    for path in (FIRST_MINUTES, DANGER_PROMPTS, IDENTITY_SAMPLE):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            yield from [record["prompt"]] if "prompt" in record else []
            yield from (turn["content"] for turn in record.get("conversations", []))


def verification_prompts(tokenizer: RustBPETokenizer, texts: Sequence[str], length: int) -> Tensor:
    """(NUM_PROMPTS, length): rows of one stream of the texts, each after `<|bos|>`."""
    stream = [token for text in texts for token in tokenizer.encode(text)]
    size = length - 1
    while len(stream) < NUM_PROMPTS * size:
        stream = stream * 2
    rows = torch.tensor(stream[: NUM_PROMPTS * size]).view(NUM_PROMPTS, size)
    begin = torch.full((NUM_PROMPTS, 1), tokenizer.get_bos_token_id())
    return torch.cat((begin, rows), dim=1)


def _renderings(tokenizer: RustBPETokenizer, reader: Reader) -> Iterator[tuple[list[int], list[int]]]:
    """Ids of conversations, by ours and by each template of theirs."""
    for messages in CONVERSATIONS:
        whole = tokenizer.render_conversation(messages)[0]
        yield from ((whole, theirs) for theirs in reader.templates(messages))
        for thinking in (None, True, False):
            ours = tokenizer.render_for_completion(messages, enable_thinking=thinking)
            options = {} if thinking is None else {"enable_thinking": thinking}
            for theirs in reader.templates(messages, add_generation_prompt=True, **options):
                yield ours, theirs


# --- what ours answers ----------------------------------------------------------------------------


@torch.inference_mode()
def _logits(model: MiniLLM, prompts: Tensor) -> Tensor:
    return model(prompts).float()


@torch.inference_mode()
def _nats(model: MiniLLM, prompts: Tensor) -> float:
    """Of all tokens of the prompts but the first."""
    labels = torch.cat((prompts[:, 1:], torch.zeros_like(prompts[:, :1])), dim=1)
    places = torch.arange(prompts.numel()).view_as(prompts)[:, :-1].flatten()
    hidden, _ = model.hidden_states(prompts)
    return float(lm_loss_sum(hidden, model.output_weight, labels, places))


def greedy(engine: Engine, prompts: Tensor, num_tokens: int) -> list[list[int]]:
    """The likeliest tokens after each prompt, up to an end token."""
    requests = [engine.add(prompt, Sampling(max_new_tokens=num_tokens))[0] for prompt in prompts.tolist()]
    engine.run()
    return [request.ids for request in requests]


def until_end(tokens: Sequence[int], ends: Collection[int]) -> list[int]:
    """The tokens before the first end token."""
    return list(tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))])


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference; infinity where a number is none, or none can be compared."""
    if theirs.shape[1] == 1:  # log-probabilities of the next token, as far as they are told
        ours = ours[:, -1:] - ours[:, -1:].logsumexp(dim=-1, keepdim=True)
        told = ~theirs.isnan()
        ours, theirs = ours[told], theirs[told]
    if ours.shape != theirs.shape or not theirs.numel() or not theirs.isfinite().all():
        return float("inf")
    return float((ours - theirs).abs().max())


def _part_at_a_near_tie(model: MiniLLM, prompt: Tensor, ours: list[int], theirs: list[int], tie: float) -> bool:
    """Whether our two best logits are nearly equal where two answers part."""
    shorter = min(len(ours), len(theirs))
    common = next((place for place in range(shorter) if ours[place] != theirs[place]), shorter)
    ids = torch.cat((prompt, torch.tensor(ours[:common], dtype=prompt.dtype)))[None]
    best = _logits(model, ids)[0, -1].topk(2).values
    return float(best[0] - best[1]) < tie
