"""Benchmark files in their original formats -> items. The files are never changed or copied.

Where a format allows several right options, or none, the record is left out and counted.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.artifacts import fingerprint, sha256_file
from configs.paths import display
from configs.schema import UserError
from evaluation.benchmarks.items import Item, Items

LETTERS = "ABCD"
MORE_LETTERS = LETTERS + "EFG"
"""Of items that may have more than four options."""
SEVERAL_RIGHT = "several right options"
NO_OPTIONS = "no options"
EMPTY_OPTION = "an option without text"
UNREADABLE = "options not found in the text"

Found = Iterator[Item | str]
"""Items of a file; a text instead of one says why it is left out."""
Reader = Callable[[Path], Found]


def read_files(paths: Sequence[Path], reader: Reader) -> Items:
    """The items of some files, in their order. Raises: UserError if there are none."""
    found: list[Item] = []
    left_out: Counter[str] = Counter()
    for path in paths:
        for one in reader(path):
            if isinstance(one, Item):
                found.append(one)
            else:
                left_out[one] += 1
    if not found:
        places = ", ".join(display(path) for path in paths) or "no files"
        raise UserError(
            f"{places}: no item to score. Put the benchmark's original files there.",
            "没有可评测的题目：请放入该基准的原始文件",
        )
    hashes = sorted((f"{path.parent.name}/{path.name}", sha256_file(path)) for path in paths)
    return Items(tuple(found), dict(left_out), fingerprint(hashes))


# --- CMMLU, C-Eval: a CSV a subject ---------------------------------------------------------------


def read_cmmlu(path: Path) -> Found:
    """`,Question,A,B,C,D,Answer` (Li et al. 2023, arXiv:2306.09212); the subject is the file's
    name."""
    yield from _read_csv(path, path.stem, "Question", "Answer")


def read_ceval(path: Path) -> Found:
    """`id,question,A,B,C,D,answer[,explanation]` (Huang et al. 2023, arXiv:2305.08322), in files
    named SUBJECT_dev.csv and SUBJECT_val.csv."""
    yield from _read_csv(path, path.stem.rpartition("_")[0], "question", "answer")


def _read_csv(path: Path, subject: str, question: str, answer: str) -> Found:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):  # line 1 has the names
            try:
                options = tuple(row[letter].strip() for letter in LETTERS)
                item = Item(subject, row[question].strip(), options, LETTERS.index(row[answer].strip()))
                yield item if all(options) else EMPTY_OPTION
            except (KeyError, ValueError, AttributeError):
                columns = ",".join([question, *LETTERS, answer])
                raise _broken(path, number, f"no row with {columns}") from None


# --- JSON lines -----------------------------------------------------------------------------------


def read_xcopa(path: Path) -> Found:
    """`premise, choice1, choice2, question, label` (Ponti et al. 2020, arXiv:2005.00333).

    The question, cause or effect, becomes the word before the choice.
    """
    for number, record in _lines(path):
        try:
            link = {"cause": "，因为", "effect": "，所以"}[record["question"]]
            premise = record["premise"].strip().rstrip("。.")
            choices = (link + record["choice1"].strip(), link + record["choice2"].strip())
            yield Item(record["question"], premise, choices, int(record["label"]), cluster=premise)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise _broken(path, number, "not a record of XCOPA") from None


def read_zhoblimp(path: Path) -> Found:
    """`UID, phenomenon, sentence_good, sentence_bad` (Liu et al. 2024, arXiv:2411.06096).

    The good sentence is option 0. The group is the phenomenon.
    """
    for number, record in _lines(path):
        try:
            pair = (record["sentence_good"], record["sentence_bad"])
            if not all(isinstance(sentence, str) and sentence for sentence in pair):
                raise TypeError
            yield Item(record["phenomenon"], "", pair, 0, cluster=pair)
        except (KeyError, TypeError):
            raise _broken(path, number, "not a record of ZhoBLiMP") from None


def read_cmath(path: Path) -> Found:
    """`grade, input, golden` (Wei et al. 2023, arXiv:2306.16636); in the file of distractors
    `distractor` (how many) stands in place of the grade."""
    for number, record in _lines(path):
        try:
            group = f"grade {record['grade']}" if "grade" in record else f"distractors {record['distractor']}"
            question = record["input"].strip()
            yield Item(group, question, golden=str(record["golden"]), cluster=record.get("original", question))
        except (KeyError, AttributeError):
            raise _broken(path, number, "not a record of CMATH") from None


def read_agieval(path: Path) -> Found:
    """`passage, question, options, label` (Zhong et al. 2023, arXiv:2304.06364); the subject is the
    file's name."""
    for number, record in _lines(path):
        try:
            if not record["options"]:
                yield NO_OPTIONS
                continue
            letters = re.findall("[A-Z]", str(record["label"]))
            if len(letters) != 1:
                yield SEVERAL_RIGHT
                continue
            # (A) stands before each option.
            options = tuple(re.sub(r"^\s*[(（][A-Z][)）]\s*", "", option).strip() for option in record["options"])
            passage, question = (record["passage"] or "").strip(), record["question"].strip()
            answer = MORE_LETTERS.index(letters[0])
            if not answer < len(options) <= len(MORE_LETTERS):
                raise ValueError
            item = Item(path.stem, question, options, answer, cluster=passage or None, passage=passage)
            yield item if all(options) else EMPTY_OPTION  # a picture was lost
        except (KeyError, TypeError, AttributeError, ValueError):
            raise _broken(path, number, "not a record of AGIEval") from None


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and record of each line. Raises: UserError for one that is no JSON object."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    raise _broken(path, number, "not a JSON object")
                yield number, record


# --- GAOKAO-Bench: options inside the text --------------------------------------------------------

_OPTION = re.compile(r"(?<![A-Za-z])([A-D])\s*[．.、:：]\s*")
_NEXT_QUESTION = re.compile(r"\n\s*[(（]?\d{1,2}\s*[)）．.、]")


def read_gaokao(path: Path) -> Found:
    """`{"example": [{question, answer: [letter, ...]}]}` (Zhang et al. 2023, arXiv:2305.12474).

    The options are a part of the text. A record with several answers is a passage with as many
    questions; each becomes an item of one cluster.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))["example"]
        subject = path.stem.removeprefix("2010-2022_").removesuffix("_MCQs")
        for number, record in enumerate(records, start=1):
            yield from _of_record(subject, record["question"], list(record["answer"]), number)
    except (KeyError, TypeError, ValueError):
        raise _broken(path, 0, "not a file of GAOKAO-Bench") from None


def _of_record(subject: str, text: str, answers: Sequence[str], number: int) -> Found:
    questions = with_options(text)
    if len(answers) == 1 and questions:  # earlier ones are letters inside the question itself
        start, _, options = questions[-1]
        questions = [(0, text[:start], options)]
    cluster = f"{subject} {number}" if len(answers) > 1 else None
    if len(questions) != len(answers):
        yield from [UNREADABLE] * len(answers)
        return
    # What stands before the first number is the passage that all questions share.
    passage = ""
    if len(answers) > 1:
        first = questions[0][1]
        begin = [match.start() for match in _NEXT_QUESTION.finditer(first)]
        passage = first[: begin[-1]].strip() if begin else ""
    for place, ((_, asked, options), answer) in enumerate(zip(questions, answers, strict=True)):
        if len(answer) != 1 or answer not in LETTERS:
            yield SEVERAL_RIGHT
            continue
        question = asked.strip() if place or not passage else asked[len(passage) :].strip()
        question = question.removeprefix(passage).strip()
        yield Item(subject, question, options, LETTERS.index(answer), cluster=cluster, passage=passage)


def with_options(text: str) -> list[tuple[int, str, tuple[str, ...]]]:
    """The questions of a text whose options A to D stand inside it.

    Returns: for each the place of its `A.`, the text before that, and its options.
    """
    marks = list(_OPTION.finditer(text))
    found: list[tuple[int, str, tuple[str, ...]]] = []
    begin = place = 0
    while place + len(LETTERS) <= len(marks):
        four = marks[place : place + len(LETTERS)]
        if "".join(mark[1] for mark in four) != LETTERS:
            place += 1
            continue
        following = _NEXT_QUESTION.search(text, four[-1].end())
        end = following.start() if following else len(text)
        ends = [mark.start() for mark in four[1:]] + [end]
        options = tuple(" ".join(text[mark.end() : until].split()) for mark, until in zip(four, ends, strict=True))
        if all(options):
            found.append((four[0].start(), text[begin : four[0].start()], options))
        begin = end
        place += len(LETTERS)
    return found


def _broken(path: Path, number: int, problem: str) -> UserError:
    where = f"{display(path)}:{number}" if number else display(path)
    return UserError(f"{where}: {problem}. Take the benchmark's original file.", "不是该基准的原始格式：请使用原始文件")
