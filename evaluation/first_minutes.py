"""What a person types first: prompts, each with a rule for its answer, asked turn by turn.

A line of `dataset/first_minutes.jsonl` is one prompt:

    {"list": "unseen", "half": "report", "kind": "sums", "prompt": "1+1=?", "number": "2"}
    {"list": "core", "kind": "turns", "turns": ["法国首都？", "那德国呢？"], "accept": ["柏林"]}

- `list`: `core` is what nearly everyone types. It may be trained on, so it has a score of its own.
  `unseen` is the real score. Its `half` is `choose`, by which settings may be chosen, or `report`.
- `kind`: one of KINDS. `cluster`: what counts once in the interval; without it the prompt itself.
- `prompt`, or `turns`: what the user says turn by turn. The model's own answers stand between.
- The rule for the last answer has at least one of these:
  `accept`: it contains one of these texts; with `exact` it equals one of them.
  `all`: it contains all of these texts. `forbid`: it contains none of these.
  `number`: it ends with this number.
  `honest`: an honest line is right too. If the rule asks for nothing else, only an honest line is.
- `max_chars`: the answer is at most this long.

Texts are compared as `normalize` gives them: without punctuation, spaces, full width and capitals.
`{{name}}` and `{{author}}` are filled in. An answer is always wrong if it does not end, is empty,
repeats itself or breaks a character.
"""

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from configs.messages import both
from configs.paths import FIRST_MINUTES, display, find_dataset
from configs.schema import UserError
from configs.stage_table import continues_text
from dataset.records.keys import normalised_question
from evaluation.answers import HONEST_LINE, Key, Said, contains, normalize
from evaluation.numbers import Result, result_of
from evaluation.questions import Asker, Messages
from inference.engine import Answer

LISTS = ("core", "unseen")
HALVES = ("choose", "report")
KINDS = ("identity", "chat", "feelings", "facts", "sums", "beyond", "unknown", "turns")
KINDS_OF_ANY_MODEL = ("identity", "chat")
"""Kinds that are scored even if the model learnt its general talk or knowledge from a user's own
data, which may say nothing about the other kinds."""
_FIELDS = {
    "list": str, "half": str, "kind": str, "prompt": str, "turns": list, "accept": list, "all": list, "forbid": list,
    "number": str, "honest": bool, "exact": bool, "max_chars": int, "cluster": str,
}  # fmt: skip
_RULES = ("accept", "all", "forbid", "number", "honest")
UNNAMED = "\ufffc"
"""Stands in a prompt for a name that is not known."""

REPEATED_CLAUSE_CHARACTERS = 4
REPEATS = 3
"""An answer repeats itself if a clause of `REPEATED_CLAUSE_CHARACTERS` or more characters occurs
`REPEATS` times."""
_LOOP = re.compile(r"(.{2,30}?)\1{2,}", re.DOTALL)
LOOP_CHARACTERS, LOOP_OF_ONE, LOOP_OF_DIGITS = 8, 10, 20
"""In characters: a part that is said three times in a row is a loop if all of it is this long. It
may be longer if the part is one character (哈哈哈) or has digits alone (the decimals of 1/3)."""


class JudgedWhole:
    """A rule that must read the whole answer, because no key says which answers are right."""

    __slots__ = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """None."""
        return ()

    @property
    def has_more(self) -> bool:
        """Any answer may be right."""
        return True


@dataclass(frozen=True)
class Prompt(JudgedWhole):
    """What a person types, and what makes the answer right. The fields are those of a line of the
    file (see the top of this page)."""

    turns: tuple[str, ...]
    kind: str
    is_core: bool
    half: str
    accept: tuple[str, ...] = ()
    all_of: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    number: str = ""
    honest: bool = False
    exact: bool = False
    max_chars: int = 0
    cluster: Hashable = None

    @property
    def tried(self) -> tuple[str, ...]:
        """Answers that may be right: what the constant baseline is chosen from."""
        tried = [*self.accept]
        if self.number:
            tried.append(self.number)
        if self.all_of:
            tried.append("，".join(self.all_of))
        if self.honest:
            tried.append(HONEST_LINE)
        return tuple(tried)

    # The baselines hold tens of thousands of answers against each prompt, so its texts are
    # normalised once.

    @cached_property
    def _accepted(self) -> list[str]:
        return [normalize(text) for text in self.accept]

    @cached_property
    def _forbidden(self) -> list[tuple[str, str]]:
        return [(text, normalize(text)) for text in self.forbid]

    @cached_property
    def _needed(self) -> list[tuple[str, str]]:
        return [(text, normalize(text)) for text in self.all_of]

    @cached_property
    def _result(self) -> Result | None:
        return result_of(self.number)

    def broken(self, said: Said) -> str:
        """What is wrong with an answer; empty if it is right."""
        if not said.plain:
            return "empty"
        if self.max_chars and len(said.text) > self.max_chars:
            return f"longer than {self.max_chars} characters"
        for text, plain in self._forbidden:
            if contains(said.plain, plain):
                return f"contains {text}"
        # An honest line needs none of what follows, but must keep the two rules above.
        if self.honest and said.is_honest(self.turns[-1]):
            return ""
        if self.exact and said.plain not in self._accepted:
            return f"is not {' / '.join(self.accept)}"
        if self.accept and not any(contains(said.plain, plain) for plain in self._accepted):
            return f"contains none of {' / '.join(self.accept)}"
        for text, plain in self._needed:
            if not contains(said.plain, plain):
                return f"does not contain {text}"
        if self.number and self._result not in said.results:
            return f"does not end with {self.number}"
        if self.honest and not (self.accept or self.all_of or self.number):
            return "no honest line"
        return ""


def load_prompts(path: Path, names: tuple[str, str]) -> list[Prompt]:
    """The prompts of a file, with the model's name and its author's filled in.

    Raises: UserError with file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{display(path)}: no such file. Check --first_minutes, or give none.",
            "没有这个文件：请检查路径，或用 none",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{display(path)}: can't be read ({error}). Check the file, or give --first_minutes none.",
            "文件读不了：请检查，或用 none",
        ) from None
    prompts: list[Prompt] = []
    seen: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = _prompt_of(line, names)
            key = tuple(normalised_question(turn) for turn in prompt.turns)
            if key in seen:
                raise ValueError(f"asks the same as line {seen[key]}")
        except ValueError as error:
            raise UserError(
                f"{display(path)}:{number}: {error}. Fix or remove that line.", "该行有误：请修正或删除"
            ) from None
        seen[key] = number
        prompts.append(prompt)
    if not prompts:
        raise UserError(
            f"{display(path)}: no prompts. Fill it, or give --first_minutes none.", "文件是空的：请补上内容，或用 none"
        )
    return prompts


def _prompt_of(line: str, names: tuple[str, str]) -> Prompt:
    """A line as a prompt. Raises: ValueError with what is wrong."""
    # Escaped for JSON, because a name may have a quotation mark in it.
    for mark, name in zip(("{{name}}", "{{author}}"), names, strict=True):
        line = line.replace(mark, json.dumps(name, ensure_ascii=False)[1:-1])
    try:
        fields = json.loads(line)
    except ValueError:
        raise ValueError("not a JSON object") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    _check(fields)
    turns = tuple(fields["turns"]) if "turns" in fields else (fields["prompt"],)
    return Prompt(
        turns=turns,
        kind=fields["kind"],
        is_core=fields["list"] == "core",
        half=fields.get("half", ""),
        accept=tuple(fields.get("accept", ())),
        all_of=tuple(fields.get("all", ())),
        forbid=tuple(fields.get("forbid", ())),
        number=fields.get("number", ""),
        honest=fields.get("honest", False),
        exact=fields.get("exact", False),
        max_chars=fields.get("max_chars", 0),
        cluster=fields.get("cluster") or "\n".join(normalised_question(turn) for turn in turns),
    )


def _check(fields: Mapping[str, Any]) -> None:
    """Raises: ValueError, which says what is wrong with the fields of a line."""
    for name, value in fields.items():
        if name not in _FIELDS:
            raise ValueError(f"unknown field {name!r} (there are {', '.join(_FIELDS)})")
        # In Python a bool is an int, but `"max_chars": true` is a mistake.
        if not isinstance(value, _FIELDS[name]) or (_FIELDS[name] is int and isinstance(value, bool)):
            raise ValueError(f"{name} is {type(value).__name__} instead of {_FIELDS[name].__name__}")
        if isinstance(value, list) and not (value and all(isinstance(text, str) and normalize(text) for text in value)):
            raise ValueError(f"{name} must be a list of texts, none of them empty")
    for name, choices in (("list", LISTS), ("kind", KINDS)):
        if fields.get(name) not in choices:
            raise ValueError(f"{name} is {fields.get(name)!r}: must be one of {', '.join(choices)}")
    if fields["list"] == "unseen" and fields.get("half") not in HALVES:
        raise ValueError(f"half is {fields.get('half')!r}: must be one of {', '.join(HALVES)}")
    if fields["list"] == "core" and "half" in fields:
        raise ValueError("half is for unseen prompts alone")
    if ("prompt" in fields) == ("turns" in fields):
        raise ValueError("must have either prompt or turns")
    if "prompt" in fields and not fields["prompt"].strip():
        raise ValueError("prompt is empty")
    if not any(fields.get(name) for name in _RULES):
        raise ValueError(f"no rule: needs one of {', '.join(_RULES)}")
    if fields.get("exact") and "accept" not in fields:
        raise ValueError("exact needs accept")
    if "number" in fields and result_of(fields["number"]) is None:
        raise ValueError(f"number is {fields['number']!r}: not a number")
    if fields.get("max_chars", 1) < 1:
        raise ValueError("max_chars must be 1 or more")


# --- the prompts to ask ---------------------------------------------------------------------------


def choose_prompts(
    given: str, stage: str, half: str, names: tuple[str, str], *, everything: bool
) -> tuple[list[Prompt], list[str]]:
    """The first prompts to ask after SFT and every later stage; none after pretraining.

    They are all of the list `core` and one half of `unseen`. Prompts about a name that is not known
    are left out.

    Args: given: `--first_minutes`: a file, `none`, or empty for the bundled file if it is there.
    names: the model's name and its author's, empty if unknown. everything: all kinds; else only
    `KINDS_OF_ANY_MODEL`, for a model whose general talk or knowledge is not bundled samples alone.
    Returns: the prompts, and a line about those that are left out, if there are any.
    Raises: UserError if the file can't be read or has a wrong line.
    """
    if given == "none" or continues_text(stage) or (not given and not FIRST_MINUTES.exists()):
        return [], []
    # An unknown name is filled in as a mark, by which its prompts are found again below.
    filled = (names[0] or UNNAMED, names[1] or UNNAMED)
    prompts = load_prompts(find_dataset(Path(given)) if given else FIRST_MINUTES, filled)
    chosen = [
        prompt
        for prompt in prompts
        if (prompt.is_core or prompt.half == half) and (everything or prompt.kind in KINDS_OF_ANY_MODEL)
    ]
    named = [prompt for prompt in chosen if not _asks_for_unknown_name(prompt)]
    if len(named) == len(chosen):
        return chosen, []
    note = both(
        f"{len(chosen) - len(named)} first prompts left out: your identity records tell no name to ask for. Pass --name and "
        "--author to build_chinese_mix.py, or set them in configs/mixture.yaml",
        "不知道模型叫什么，相关问题不评：请在 configs/mixture.yaml 中设置 name 和 author",
    )
    return named, [note]


def _asks_for_unknown_name(prompt: Prompt) -> bool:
    texts = (*prompt.turns, *prompt.accept, *prompt.all_of, *prompt.forbid)
    return any(UNNAMED in text for text in texts)


# --- answers --------------------------------------------------------------------------------------


class Spoken(Protocol):
    """A prompt of one or more turns, with a rule for the last answer."""

    @property
    def turns(self) -> tuple[str, ...]:
        """What the user says."""
        ...

    def broken(self, said: Said) -> str:
        """What is wrong with the last answer; empty if it is right."""
        ...


def ask_in_turns(prompts: Sequence[Spoken], ask: Asker) -> list[list[Answer]]:
    """The model's answers to each turn of each prompt; its own answers stand between the turns.

    The n-th turns of all prompts are asked at once, because a batch is much faster.
    """
    conversations: list[Messages] = [[] for _ in prompts]
    answers: list[list[Answer]] = [[] for _ in prompts]
    for turn in range(max((len(prompt.turns) for prompt in prompts), default=0)):
        numbers = [number for number, prompt in enumerate(prompts) if turn < len(prompt.turns)]
        for number in numbers:
            conversations[number].append({"role": "user", "content": prompts[number].turns[turn]})
        # Shorter prompts are done; only those that have this turn are asked.
        for number, said in zip(numbers, ask([conversations[number] for number in numbers]), strict=True):
            answers[number].append(said)
            conversations[number].append({"role": "assistant", "content": said.text})
    return answers


def fault_of(said: Answer) -> str:
    """Why an answer is wrong whatever was asked; else empty.

    It does not end, breaks a character (U+FFFD stands for broken bytes), or repeats itself.
    """
    if not said.ended:
        return "does not end"
    if "\ufffd" in said.text:
        return "breaks a character"
    if repeats_itself(said.text):
        return "repeats itself"
    return ""


def repeats_itself(text: str) -> bool:
    """Whether a clause of 4 or more characters occurs three times, or a part is said three times in
    a row."""
    parts = Said(text).clauses
    if any(parts.count(part) >= REPEATS for part in set(parts) if len(part) >= REPEATED_CLAUSE_CHARACTERS):
        return True
    for loop in _LOOP.finditer(text):
        part = loop[1]
        if part.isdigit():
            least = LOOP_OF_DIGITS
        elif len(set(part)) == 1:
            least = LOOP_OF_ONE
        else:
            least = LOOP_CHARACTERS
        if len(loop[0]) >= least:
            return True
    return False


def judge(prompt: Spoken, answers: Sequence[Answer]) -> str:
    """What is wrong with the answers to a prompt, one a turn; empty if nothing is.

    No answer may have a fault (`fault_of`). Only the last one must also keep the prompt's rule.
    """
    for turn, said in enumerate(answers, start=1):
        if fault := fault_of(said):
            return fault if turn == len(answers) else f"turn {turn} {fault}"
    return prompt.broken(Said(answers[-1].text))
