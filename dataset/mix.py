"""From the user's sources to the three training sets and their held-out parts.

Two passes over the sources, neither of which holds texts. The first validates every record and keeps a few hashes of
it; then it is decided, on those hashes alone, what is held out, dropped, sampled or repeated; the second pass writes.
Memory is some 40 bytes a record plus one bucket of the shuffle, however large the files are.
"""

import fcntl
import fnmatch
import hashlib
import json
import math
import os
import random
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import yaml

from configs.artifacts import atomic_write, fingerprint, sha256_file, write_error, write_json
from configs.messages import both, warning
from configs.paths import CONFIG_DIR, IDENTITY_MARK, IDENTITY_SAMPLE, IDENTITY_SOURCE, display
from configs.progress import Progress, progress_bar
from configs.schema import CATEGORIES, CHAT_CATEGORIES, MixConfig, UserError, as_dict
from dataset.names import names_in
from dataset.records.files import format_of, is_source, read_items
from dataset.records.keys import SPLITS, group_key, has_group, normalised_question, question_key, split_of, text_hash
from dataset.records.lines import Item, decode_item, shown_text
from dataset.records.record import BadRecord, ChatRecord, LeftOut, PreferenceRecord, Record, TextRecord
from dataset.records.shapes import parse_record
from dataset.records.turns import ROLES
from dataset.samples.files import SAMPLE_FILES, sample_names, write_samples

MANIFEST_FILE = "mix_manifest.json"
REJECTS_FILE = "rejects.jsonl"
OUTPUTS = {
    (stage, heldout): f"{stage}_chinese{'_heldout' if heldout else ''}.jsonl"
    for stage in ("pretrain", "sft", "dpo")
    for heldout in (False, True)
}
"""(stage, whether held out) -> file name."""
BAD_LINES_ALLOWED = 3
BAD_SHARE_ALLOWED = 0.05
LARGEST_SHARE = 0.1
"""No category gives more of its records than this to the held-out side, however few it has."""
LARGEST_KEY = 0.02
"""No key takes more of a category's records than this to the held-out side, but one it may always take."""
LEAST_LEFT = 0.1
"""A file or category of which less than this share is left to train on is an error."""
FEW_HELDOUT = 10
"""Below so many held-out records `evaluate_stage.py` prints no accuracy."""
SHORT_TURN = 8
"""Letters and digits; 继续, 好的 and 谢谢 are short turns."""
SHARED_TURN = {True: 3, False: 20}
"""Whether a turn is short -> conversations that may say it before it can count as a common one."""
LONGEST_QUESTION = 200
"""Characters; a longer raw text is not taken for a question."""
BUCKET_BYTES = 64 << 20
MAX_BUCKETS = 64
"""Files open at once for one output; some systems allow a process only 256."""

_NO_PAIR, _A_PAIR, _RAW_TEXT = "not a preference pair", "a preference pair", "raw text in a chat category"
_WRONG_CATEGORY = {_NO_PAIR: "general", _A_PAIR: "preference", _RAW_TEXT: "corpus"}
"""A reason -> the category that such records belong to."""
MAX_REASONS = 50
"""Reasons that are told apart; the names in further ones are left out."""
_SPLITS = {None: 0, "train": 1, "heldout": 2, "validation": 3, "valid": 3, "val": 3, "dev": 3, "test": 4}
_UNSPLIT, _TRAIN, _HELDOUT, _VALIDATION, _TEST, _REJECTED = 0, 1, 2, 3, 4, 5
_STATE_DROPPED, _STATE_TRAIN, _STATE_VALIDATION, _STATE_TEST = 0, 1, 2, 3
_SPLIT_NAMES = {_STATE_VALIDATION: "validation", _STATE_TEST: "test"}

Bits = npt.NDArray[np.uint64]


# --- sources ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """A file to mix in."""

    path: Path
    category: str
    is_sample: bool = False


@dataclass(frozen=True, slots=True)
class Sources:
    """What a source folder holds."""

    files: list[Source]
    left_out: dict[str, str]
    """File name -> why it is not read."""
    bundled: dict[str, int] = field(default_factory=dict)
    """Category with files of the user's -> training records that the bundled samples hold of it."""


def find_sources(source_dir: Path, sample_dir: Path, config: MixConfig, categories: Mapping[str, str]) -> Sources:
    """The user's files with their categories, and sample data for each category without one.

    `categories`: name patterns and categories, as in the `files` block of configs/mixture.yaml. Lays the bundled
    identity file into the folder where the user has none. Raises: UserError for a file whose category nobody can tell.
    """
    if not source_dir.is_dir():
        raise UserError(
            f"{display(source_dir)}: no such folder. Create it and put your JSONL files there, or check --source_dir.",
            "没有这个目录：请新建并放入 JSONL 文件，或检查 --source_dir",
        )
    files: list[Source] = []
    left_out: dict[str, str] = {}
    for path in sorted(source_dir.iterdir()):
        if path.name.startswith(".") or _is_bundled_identity(path):
            continue
        if path.is_dir() or not is_source(path):
            left_out[path.name] = "a folder" if path.is_dir() else "not .jsonl, .json or .csv (.gz, .xz)"
            continue
        if not path.name.isprintable():  # line ends, and bytes that are no UTF-8
            raise UserError(
                f"{display(source_dir)}/{path.name!r}: its name holds what is no text. Rename the file.",
                "文件名不是可显示的文本（例如 GBK 编码）：请改名",
            )
        category = "identity" if path.name == IDENTITY_SOURCE else _category_of(path, categories)
        if category == "skip":
            left_out[path.name] = "skip, says configs/mixture.yaml"
        elif not _is_wanted(category, config):
            left_out[path.name] = f"the target of {category} is 0"
        else:
            files.append(Source(path, category))
    own = {source.category for source in files}
    if "identity" in own and _is_bundled_identity(source_dir / IDENTITY_SOURCE):
        left_out[IDENTITY_SOURCE] = "bundled; your own identity file takes its place 已由您的身份数据替换"
    if "identity" not in own and _is_wanted("identity", config):
        files.append(_bundled_identity(source_dir))
    wanted = {name for name in CATEGORIES if _is_wanted(name, config)}
    names = sample_names(wanted, own)
    shrinking = any(getattr(config, name) for name in wanted - own if name != "identity")
    beside = sample_names(wanted & own, ()) if shrinking else []  # what there would be without the user's files
    written = write_samples(sample_dir, [*names, *(name for name in beside if name not in names)])
    files += [Source(written[name], SAMPLE_FILES[name].category, is_sample=True) for name in names]
    files.sort(key=lambda source: (CATEGORIES.index(source.category), source.path.name))
    counts: Counter[str] = Counter()
    for name in beside:
        counts[SAMPLE_FILES[name].category] += _num_training_records(written[name])
    return Sources(files, left_out, dict(counts))


def _num_training_records(sample: Path) -> int:
    """Records of a bundled file that are not marked as held out."""
    with sample.open(encoding="utf-8") as lines:
        return sum(split_of(json.loads(line)) in (None, "train") for line in lines)


def _is_wanted(category: str, config: MixConfig) -> bool:
    """A target of 0 leaves a category out, but of raw text it means: all."""
    return category == "corpus" or bool(getattr(config, category))


def _is_bundled_identity(path: Path) -> bool:
    """Whether a file is the identity file as the mix once wrote it, and nobody has edited it since."""
    if path.name != IDENTITY_SOURCE or not path.is_file():
        return False
    mark = path.with_name(IDENTITY_MARK)
    written = mark.read_text(encoding="utf-8").strip() if mark.exists() else ""
    return sha256_file(path) in {written, sha256_file(IDENTITY_SAMPLE)}


def _bundled_identity(source_dir: Path) -> Source:
    """The bundled identity file, laid into the source folder for the user to edit, where that can be written."""
    path, bundled = source_dir / IDENTITY_SOURCE, sha256_file(IDENTITY_SAMPLE)
    if path.exists() and sha256_file(path) == bundled:
        return Source(path, "identity", is_sample=True)
    if not os.access(source_dir, os.W_OK):
        return Source(IDENTITY_SAMPLE, "identity", is_sample=True)
    for target, content in (
        (path, IDENTITY_SAMPLE.read_bytes()),
        (path.with_name(IDENTITY_MARK), f"{bundled}\n".encode()),
    ):
        with atomic_write(target, "wb") as file:
            file.write(content)
    return Source(path, "identity", is_sample=True)


def _category_of(path: Path, categories: Mapping[str, str]) -> str:
    for pattern, category in categories.items():
        if path.name == pattern or fnmatch.fnmatchcase(path.name.lower(), pattern.lower()):
            if category not in (*CATEGORIES, "skip"):
                where = f"{display(CONFIG_DIR / 'mixture.yaml')}: files: {pattern}: {category}"
                raise UserError(
                    f"{where}: no such category. Use {', '.join(CATEGORIES)} or skip.", "没有这个类别：请用所列之一"
                )
            return category
    raise UserError(
        f"{display(path)}: its name tells no category. Add the line `  {files_line(path.name, 'general')}` (or "
        f"{', '.join(CATEGORIES[1:])}, or skip) under `files:` in {display(CONFIG_DIR / 'mixture.yaml')}.",
        "从文件名看不出类别：请在 files: 下加上这一行",
    )


def files_line(name: str, category: str) -> str:
    """The line of the `files` block that gives this file, and no other, its category; quoted where YAML asks for it."""
    pattern = re.sub(r"([*?[])", r"[\1]", name)  # patterns know these three
    try:
        is_plain = yaml.safe_load(f"{pattern}: {category}") == {pattern: category}
    except yaml.YAMLError:
        is_plain = False
    return f"{pattern if is_plain else json.dumps(pattern, ensure_ascii=not pattern.isprintable())}: {category}"


def own_identity(sources: Sequence[Source], config: MixConfig) -> tuple[dict[str, Any], MixConfig, list[str]]:
    """Whose identity data it is and what it calls the model: that fills the placeholders of the bundled samples, and the
    evaluation asks for it.

    Returns: the manifest's `identity`; the settings with these names; lines for the user.
    """
    own = [source for source in sources if source.category == "identity" and not source.is_sample]
    if not own:
        return {"own": False, "name": config.name, "author": config.author}, config, []
    names = names_in(_answers(own, config), config.name, config.author)
    settled = replace(config, name=names.name or config.name, author=names.author or config.author)
    notes = []
    said = [f"the model {names.name}"] * (settled.name != config.name)
    said += [f"its maker {names.author}"] * (settled.author != config.author)
    if said:
        notes.append(
            both(
                f"identity: your files call {' and '.join(said)}, and so do the bundled samples and the evaluation",
                f"按您的身份数据，模型叫 {settled.name}，作者是 {settled.author}，其余样例和评测与之一致",
            )
        )
    if names.name is None:
        notes.append(
            warning(
                f"identity: your files don't say what the model is called ({config.name} is in none of their answers): "
                "the evaluation can't ask for its name. If they do, pass --name NAME and --author NAME, or set `name` and "
                f"`author` in {display(CONFIG_DIR / 'mixture.yaml')}",
                "身份数据中找不到模型的名字：请用 --name 和 --author 指定",
            )
        )
    return {"own": True, "name": names.name, "author": names.author}, settled, notes


def _answers(sources: Sequence[Source], config: MixConfig) -> Iterator[str]:
    """What the assistant says in the readable records of some files."""
    for source in sources:
        fill = _placeholders(source, config)
        for _, item in read_items(source.path):
            try:
                record = _record_of(item, source, fill)
            except BadRecord:
                continue  # the first pass names it
            if isinstance(record, ChatRecord):
                yield from (message["content"] for message in record.messages if message["role"] == "assistant")


def sample_factor(distinct: Mapping[str, int], bundled: Mapping[str, int], config: MixConfig) -> float:
    """By how much the targets of categories without a file of the user's shrink: what lets no category (identity
    excepted) need more than `max_rounds` rounds.

    `distinct`: training records of each category. `bundled`: those that the samples alone would give where the user
    brought files. They count where they are more, so that one small file of the user's changes nothing elsewhere.
    """
    reachable = [
        max(count, bundled.get(category, 0)) * config.max_rounds / getattr(config, category)
        for category, count in distinct.items()
        if category != "identity" and getattr(config, category)
    ]
    return min([1.0, *reachable])


# --- first pass: what is there ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Scan:
    """What the first pass remembers; one entry of each column a record, over all sources in order."""

    contents: bytearray = field(default_factory=bytearray)
    """8 bytes a record: hash of what is learnt from it."""
    keys: bytearray = field(default_factory=bytearray)
    """8 bytes a record: hash of its first user turn or its text."""
    splits: bytearray = field(default_factory=bytearray)
    """1 byte a record: its own split, or that it was rejected."""
    groups: bytearray = field(default_factory=bytearray)
    """8 bytes a record with a `group`: hash of it."""
    groupers: "array[int]" = field(default_factory=lambda: array("I"))
    """The record of each group."""
    questions: bytearray = field(default_factory=bytearray)
    """8 bytes a user turn: hash of the question."""
    short: bytearray = field(default_factory=bytearray)
    """1 byte a user turn: whether it is a short one."""
    askers: "array[int]" = field(default_factory=lambda: array("I"))
    """The record of each user turn."""
    counts: list[int] = field(default_factory=list)
    """Records of each source, rejected ones included."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of each source's records."""
    states: list[tuple[int, int]] = field(default_factory=list)
    """Size and time of change of each source file, to notice when it changes between the passes."""
    digests: list[str] = field(default_factory=list)
    """SHA-256 of each source file."""
    rejected: list[Counter[str]] = field(default_factory=list)
    """Reasons of each source's rejected records."""
    marked: list[Counter[str]] = field(default_factory=list)
    """Of each source: `records` with marks of other chat formats, and the `marks`."""
    formats: list[str] = field(default_factory=list)
    """What each source is where that is not plain lines in UTF-8."""
    odd_groups: list[int] = field(default_factory=list)
    """Records of each source whose `group` is no text."""
    odd_splits: list[int] = field(default_factory=list)
    """Records of each source whose `split` is none of ours."""


def scan_sources(sources: Sequence[Source], config: MixConfig, rejects: IO[str], bar: Progress) -> Scan:
    """Validate every record. Bad ones go to `rejects` with file, line, reason and text.

    Raises: UserError, once all sources are read, for one that holds too many bad records or not a single good one.
    """
    scan = Scan()
    problems = []
    for source in sources:
        bar.set_description(source.path.name)
        scan.formats.append(format_of(source.path))
        problem = _scan_source(scan, source, config, rejects, bar)
        if problem:
            problems.append(problem)
    if problems:
        more = f" ({len(problems) - 1} more files have the like.)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}", problems[0].chinese)
    return scan


def _scan_source(scan: Scan, source: Source, config: MixConfig, rejects: IO[str], bar: Progress) -> UserError | None:
    """Add one source's records; returns what is wrong with it as a whole."""
    scan.states.append(_file_state(source.path))
    digest = hashlib.sha256()
    fill = _placeholders(source, config)
    reasons: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    start, size, first_bad = len(scan.splits), 0, 0
    odd_groups = odd_splits = 0

    def on_bytes(block: memoryview) -> None:
        digest.update(block)
        bar.update(len(block))

    for number, item in read_items(source.path, on_bytes):
        try:
            record = _record_of(item, source, fill)
        except BadRecord as error:
            reason = str(error)
            if isinstance(error, LeftOut):
                left_out[reason] += 1
            else:
                reasons[reason if reason in reasons or len(reasons) < MAX_REASONS else reason.split(":")[0]] += 1
                first_bad = first_bad or number
            line = {"file": source.path.name, "line": number, "reason": reason, "text": shown_text(item)}
            rejects.write(json.dumps(line, ensure_ascii=False) + "\n")
            scan.splits.append(_REJECTED)
            scan.contents += bytes(8)
            scan.keys += bytes(8)
            continue
        if record.marks:
            marked.update(records=1, marks=record.marks)
        number_of_record = len(scan.splits)
        for question in map(normalised_question, _questions_of(record)):
            scan.questions += text_hash(question)
            scan.short.append(len(question) <= SHORT_TURN)
            scan.askers.append(number_of_record)
        if has_group(record):
            scan.groups += text_hash(group_key(record))
            scan.groupers.append(number_of_record)
        odd_groups += not has_group(record) and record.fields.get("group") not in (None, "")
        split = split_of(record.fields)
        odd_splits += split is None and record.fields.get("split") not in (None, "")
        scan.splits.append(_SPLITS[split])
        scan.contents += text_hash(_content_of(record))
        scan.keys += text_hash(question_key(record))
        size += len(item) if isinstance(item, bytes) else len(_line(record.fields))
    count = len(scan.splits) - start
    scan.counts.append(count)
    scan.sizes.append(size)
    scan.digests.append(digest.hexdigest())
    scan.rejected.append(reasons + left_out)
    scan.marked.append(marked)
    scan.odd_groups.append(odd_groups)
    scan.odd_splits.append(odd_splits)
    return _problem_of(source, count, reasons, left_out, first_bad)


def _problem_of(
    source: Source, count: int, reasons: Counter[str], left_out: Counter[str], first_bad: int
) -> UserError | None:
    """What is wrong with a file as a whole. What says itself that it is not to be learnt is no fault."""
    bad = reasons.total()
    listed = ", ".join(f"{reason}: {times}" for reason, times in reasons.most_common(3))
    where = display(source.path)
    if count == 0:
        return UserError(
            f"{where}: is empty. Fill it with one JSON record a line, or remove it.", "文件是空的：请填入数据或删除"
        )
    if left_out and count == left_out.total():
        told = ", ".join(f"{reason}: {times}" for reason, times in left_out.most_common(3))
        return UserError(
            f"{where}: every record says that it is not to be learnt ({told}). Remove the file, or those marks.",
            "所有记录都标明不参与训练：请删除该文件或去掉标记",
        )
    count -= left_out.total()
    if bad < count and (bad <= BAD_LINES_ALLOWED or bad <= BAD_SHARE_ALLOWED * count):
        return None
    told = f"{listed}; first: line {first_bad}"
    reason = reasons.most_common(1)[0][0]
    if reason in _WRONG_CATEGORY:
        line = files_line(source.path.name, _WRONG_CATEGORY[reason])
        return UserError(
            f"{where}: its records are not of the category {source.category} ({told}). Put the line `  {line}` first under "
            f"`files:` in {display(CONFIG_DIR / 'mixture.yaml')}, in place of another one for this file.",
            f"不是 {source.category} 类的记录：请在 files: 下加上这一行",
        )
    what = "no readable record" if bad == count else f"{bad} of {count} records can't be used"
    advice, chinese = _advice(reason)
    return UserError(
        f"{where}: {what} ({told}). {advice} They are listed in {REJECTS_FILE} in the output folder.",
        f"{bad} 条记录不可用：{chinese}；详见 {REJECTS_FILE}",
    )


_ADVICE = (
    (
        "unknown role",
        f"Name the speakers {', '.join(ROLES)}, or in another way that docs/formats.md lists.",
        "请按 docs/formats.md 命名说话人",
    ),
    (
        "unknown shape",
        "docs/formats.md lists the fields that are read: rename yours to one of them.",
        "请按 docs/formats.md 命名字段",
    ),
    ("SQuAD", "That gives each question its own line.", "请改为每行一个问题"),
    ("GB18030", "Save the whole file in one encoding, UTF-8 or GB18030.", "请整个文件只用一种编码"),
    ("invalid UTF-8", "Save the file as UTF-8 (or wholly as GB18030).", "请另存为 UTF-8"),
    (
        "malformed JSON",
        "Each line must be one whole JSON object, as json.dumps writes it. Fix or remove those lines.",
        "每行应是一个完整的 JSON 对象",
    ),
    (
        "a line of CSV",
        'If it is a table with a header, end its name in .csv; of plain text make {"text": ...} a line.',
        '表格请存为 .csv，纯文本请改成每行一个 {"text": ...}',
    ),
    ("a line of TSV", "It needs a header line too.", "请存为带表头的 .csv"),
    ("plain text", "One JSON object a line.", '请改成每行一个 {"text": ...}'),
    ("a Python dict", "One JSON object a line.", "请用 json.dumps 写成 JSON"),
    (
        "not a JSON object",
        'Each line must be an object with fields, such as {"text": ...}.',
        '每行应是 {"text": ...} 这样的对象',
    ),
    (
        "multiple choice",
        "It needs a question, options (A, B, ... or a list) and an answer among them.",
        "选择题要有题目、选项和其中的答案",
    ),
    (
        "no assistant answer",
        "A conversation must end with what the assistant says. Fix or remove those records.",
        "对话应以助手的话结尾",
    ),
    (
        "roles do not alternate",
        "User and assistant must take turns, the user first. Fix or remove those records.",
        "用户与助手应轮流发言，用户在先",
    ),
    (
        "row with another number",
        "Cells that hold commas or line ends need double quotes around them.",
        "含逗号或换行的单元格要加双引号",
    ),
    ("line above", "Split those records into smaller ones.", "请把过长的记录拆小"),
)
"""Beginning of a reason, and what to do about it in English and in Chinese."""


def _advice(reason: str) -> tuple[str, str]:
    found = ((advice, chinese) for start, advice, chinese in _ADVICE if reason.startswith(start))
    return next(found, ("Fix or remove those records.", "请修改或删除"))


def _file_state(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(
            f"{display(path)}: can't be read ({error.strerror}). Check the path and its permissions.",
            "无法读取：请检查路径和权限",
        ) from error
    return stat.st_size, stat.st_mtime_ns


def _placeholders(source: Source, config: MixConfig) -> dict[str, str]:
    """Filled in identity files and in the bundled samples alone: elsewhere `{{name}}` may be somebody's code."""
    if source.category == "identity" or source.is_sample:
        return {"{{name}}": config.name, "{{name_lower}}": config.name.lower(), "{{author}}": config.author}
    return {}


def _record_of(item: Item, source: Source, fill: Mapping[str, str]) -> Record:
    """The record as its category wants it. Raises: BadRecord."""
    record = parse_record(decode_item(item, fill))
    if source.category == "preference":
        if not isinstance(record, PreferenceRecord):
            raise BadRecord(_RAW_TEXT if isinstance(record, TextRecord) else _NO_PAIR)
    elif isinstance(record, PreferenceRecord):
        raise BadRecord(_A_PAIR)
    elif source.category != "corpus" and isinstance(record, TextRecord):
        raise BadRecord(_RAW_TEXT)
    return record


def _questions_of(record: Record) -> list[str]:
    if isinstance(record, TextRecord):
        return [record.text] if len(record.text) <= LONGEST_QUESTION else []
    return record.questions()


def _content_of(record: Record) -> str:
    """What is learnt from a record, so that two records with equal content are one."""
    if isinstance(record, TextRecord):
        return record.text
    if isinstance(record, PreferenceRecord):
        return _joined(record.chosen) + "\x1d" + _joined(record.rejected)
    return _joined(record.messages)


def _joined(messages: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for message in messages:
        parts += [message["role"], message["content"]]
        if len(message) > 2:
            extra = {key: value for key, value in message.items() if key not in {"role", "content"}}
            parts.append(json.dumps(extra, ensure_ascii=False, sort_keys=True))
    return "\x1f".join(parts)


# --- the choice -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of one category, in records."""

    asked: int
    """Target after the sample factor; for the whole corpus what there is."""
    reached: int
    """Written, repetitions included."""
    available: int
    """Distinct training records."""
    heldout: int

    @property
    def repetition(self) -> float:
        """Times that a written record is written, on average."""
        return self.reached / min(self.reached, self.available) if self.reached else 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What happens to each record."""

    states: npt.NDArray[np.uint8]
    copies: npt.NDArray[np.uint32]
    """How often a training record is written for its stage."""
    duplicates: npt.NDArray[np.bool_]
    leaks: npt.NDArray[np.bool_]
    """Training records in which the user asks a held-out question."""
    factor: float
    """By how much the targets of categories that hold samples alone shrink; 1 where there is none."""
    tallies: dict[str, Tally]
    notes: list[str]
    """What a user should know of the split, a line each."""


def choose(
    scan: Scan, sources: Sequence[Source], config: MixConfig, bundled: Mapping[str, int] | None = None
) -> Choice:
    """Decide what is held out, dropped, sampled and repeated. The same seed and sources give the same choice.

    `bundled`: as in `Sources`.

    Raises: UserError where a file or a category of the user's is left without records to train on.
    """
    notes = _odd_columns(scan, sources)
    table = _table(scan, sources)
    _use_groups(table, scan, sources, notes)
    _rekey_shared_openings(table, scan, notes)
    states = _held_out(table, scan, config, notes)
    duplicates = _duplicates(table.contents, table.readable, states)
    states[duplicates] = _STATE_DROPPED
    leaks = _leaks(table, scan, states, notes)
    states[leaks] = _STATE_DROPPED
    category = table.category
    _check_what_is_left(table, scan, sources, states, leaks, notes)
    _tell_heldout(table, sources, states, config, notes)

    training = states == _STATE_TRAIN
    heldout = states >= _STATE_VALIDATION
    used = [name for index, name in enumerate(CATEGORIES) if any(source.category == name for source in sources)]
    distinct = {name: int(np.count_nonzero(training[category == CATEGORIES.index(name)])) for name in used}
    owned = {source.category for source in sources if not source.is_sample}
    common = sample_factor(distinct, bundled or {}, config)
    factors = {name: 1.0 if name in owned else common for name in used}
    copies = np.zeros(len(states), dtype=np.uint32)
    tallies = {}
    for name in used:
        asked = 0
        for number, members in enumerate(_pools(name, sources, scan.counts, training)):
            wanted = getattr(config, name) or len(members)
            # Targets of samples shrink together, but none below what there is to learn.
            factor = factors[name]
            target = max(math.floor(wanted * factor), min(wanted, len(members)) if factor < 1 else 0)
            rounds = target if name == "identity" else config.max_rounds
            rng = np.random.default_rng([config.seed, CATEGORIES.index(name), number])
            for part, wanted_of_it in _own_first(members, table.own, target):
                copies[part] = _copies(len(part), wanted_of_it, rounds, rng)
            asked += target
        mine = category == CATEGORIES.index(name)
        tallies[name] = Tally(asked, int(copies[mine].sum()), distinct[name], int(np.count_nonzero(heldout[mine])))
    return Choice(states, copies, duplicates, leaks, min(factors.values()), tallies, notes)


def _pools(
    name: str, sources: Sequence[Source], counts: Sequence[int], training: npt.NDArray[np.bool_]
) -> Iterator[npt.NDArray[np.intp]]:
    """The training records that share one target: a whole category, but each identity file by itself."""
    ends = np.cumsum(counts)
    spans = [
        np.arange(end - count, end)
        for source, count, end in zip(sources, counts, ends, strict=True)
        if source.category == name
    ]
    for span in spans if name == "identity" else [np.concatenate(spans)]:
        yield span[training[span]]


def _own_first(
    members: npt.NDArray[np.intp], own: npt.NDArray[np.bool_], target: int
) -> list[tuple[npt.NDArray[np.intp], int]]:
    """Parts of a pool and how many of each are wanted: where not all find room, the bundled samples that stand beside the
    user's records leave them nine tenths of it."""
    mine, samples = members[own[members]], members[~own[members]]
    if target >= len(members) or not len(mine) or not len(samples):
        return [(members, target)]
    wanted = min(len(mine), target - min(len(samples), target // 10))
    return [(mine, wanted), (samples, target - wanted)]


def _copies(available: int, target: int, max_rounds: int, rng: np.random.Generator) -> npt.NDArray[np.uint32]:
    """How often each record is taken to reach `target` exactly: whole rounds, and a random remainder."""
    copies = np.zeros(available, dtype=np.uint32)
    if available:
        rounds, rest = divmod(min(target, max_rounds * available), available)
        copies += np.uint32(rounds)
        copies[rng.permutation(available)[:rest]] += 1
    return copies


@dataclass(slots=True)
class _Table:
    """What the split needs of each record, rejected ones included."""

    keys: Bits
    """Records with one key are on one side."""
    contents: Bits
    splits: npt.NDArray[np.uint8]
    category: npt.NDArray[np.uint8]
    own: npt.NDArray[np.bool_]
    """Whether it is the user's; the others are bundled samples."""
    readable: npt.NDArray[np.bool_]
    first: npt.NDArray[np.bool_]
    """Of readable records with equal content the first: what counts as a record below."""
    asks_last: npt.NDArray[np.bool_]
    """Whether its last user turn is what it asks (a group, a shared opening), not its first."""
    sizes: npt.NDArray[np.int64]
    """Records of each category; where some are the user's, theirs alone."""

    def largest(self, category: int) -> int:
        """Records of a category that one key may take to the held-out side."""
        return max(1, int(LARGEST_KEY * self.sizes[category]))

    def used(self) -> list[int]:
        """The categories that have records."""
        return [index for index in range(len(CATEGORIES)) if self.sizes[index]]


def _table(scan: Scan, sources: Sequence[Source]) -> _Table:
    splits = np.frombuffer(scan.splits, dtype=np.uint8)
    contents = np.frombuffer(scan.contents, dtype="<u8")
    category = np.repeat(np.array([CATEGORIES.index(s.category) for s in sources], dtype=np.uint8), scan.counts)
    own = np.repeat(np.array([not source.is_sample for source in sources], dtype=np.bool_), scan.counts)
    readable = splits != _REJECTED
    members = np.flatnonzero(readable)
    first = np.zeros(len(splits), dtype=np.bool_)
    first[members[np.unique(contents[members], return_index=True)[1]]] = True
    sizes, own_sizes = (np.bincount(category[part], minlength=len(CATEGORIES)) for part in (first, first & own))
    asks_last = np.zeros(len(splits), dtype=np.bool_)
    keys = np.frombuffer(scan.keys, dtype="<u8").copy()
    return _Table(
        keys, contents, splits, category, own, readable, first, asks_last, np.where(own_sizes, own_sizes, sizes)
    )


def _odd_columns(scan: Scan, sources: Sequence[Source]) -> list[str]:
    """A line for each column of the user's that bears a name of ours but not our values."""
    notes = []
    for source, groups, splits in zip(sources, scan.odd_groups, scan.odd_splits, strict=True):
        if groups:
            notes.append(
                both(
                    f"{source.path.name}: the `group` of {groups:,} records is no text and is ignored",
                    f"{groups:,} 条记录的 group 不是文字，不予采用",
                )
            )
        if splits:
            notes.append(
                both(
                    f"{source.path.name}: the `split` of {splits:,} records is none of ours ({', '.join(SPLITS)}) "
                    "and is ignored",
                    f"{splits:,} 条记录的 split 不是我们的取值，不予采用",
                )
            )
    return notes


def _use_groups(table: _Table, scan: Scan, sources: Sequence[Source], notes: list[str]) -> None:
    """Let `group` be the key, but not in a user's file of which one group is too large a share of the category."""
    groups = np.frombuffer(scan.groups, dtype="<u8")
    groupers = np.frombuffer(scan.groupers, dtype=np.uint32).astype(np.intp)
    source_of = np.searchsorted(np.cumsum(scan.counts), groupers, side="right")
    taken = np.ones(len(groups), dtype=np.bool_)
    for index in table.used():
        mine = np.flatnonzero(table.category[groupers] == index)
        counted = (table.first & table.own)[groupers[mine]]
        _, group_of = np.unique(groups[mine], return_inverse=True)
        sizes = np.bincount(group_of[counted], minlength=int(group_of.max(initial=-1)) + 1)
        limit = table.largest(index)
        for number, source in enumerate(sources):
            of_source = source_of[mine] == number
            biggest = int(sizes[group_of[of_source]].max(initial=0))
            if source.is_sample or biggest <= limit:
                continue
            taken[mine[of_source]] = False
            notes.append(
                both(
                    f"{source.path.name}: its `group` is ignored: one group has {biggest:,} of the {table.sizes[index]:,} "
                    f"records of {source.category}, and at most {limit:,} may be held out together",
                    f"group 不予采用：最大的一组有 {biggest:,} 条，一组最多 {limit:,} 条",
                )
            )
    table.keys[groupers[taken]] = groups[taken]
    table.asks_last[groupers[taken]] = True


def _rekey_shared_openings(table: _Table, scan: Scan, notes: list[str]) -> None:
    """Where too many of the user's conversations open with one turn (在吗), all that the user says is the key."""
    questions = np.frombuffer(scan.questions, dtype="<u8")
    askers = np.frombuffer(scan.askers, dtype=np.uint32)
    if not len(askers):
        return
    starts = np.flatnonzero(np.concatenate(([True], askers[1:] != askers[:-1])))
    turns = np.diff(starts, append=len(askers))
    candidates = table.own & table.readable & ~table.asks_last
    several = candidates[askers[starts]] & (turns > 1)
    if not several.any():
        return
    shared = np.zeros(len(table.keys), dtype=np.bool_)
    for index in table.used():
        mine = np.flatnonzero(candidates & (table.category == index))
        distinct, key_of = np.unique(table.keys[mine], return_inverse=True)
        counts = np.bincount(key_of[table.first[mine]], minlength=len(distinct))
        shared |= candidates & np.isin(table.keys, distinct[counts > max(SHARED_TURN[True], table.largest(index))])
    several &= shared[askers[starts]]
    if not several.any():
        return
    place = np.arange(len(askers), dtype=np.uint64) - np.repeat(starts, turns).astype(np.uint64)
    with np.errstate(over="ignore"):  # a hash of the turns and their places
        said = np.add.reduceat(_mixed(questions ^ _mixed(place, 1), 2), starts)
    records = askers[starts[several]]
    table.keys[records] = said[several]
    table.asks_last[records] = True
    notes.append(
        both(
            f"{len(records):,} conversations open with a turn that more than {LARGEST_KEY:.0%} of their category share: "
            "all that the user says decides their side, not the opening alone",
            f"{len(records):,} 段对话的开头相同，按用户的全部发言划分留出",
        )
    )


def _duplicates(
    contents: Bits, readable: npt.NDArray[np.bool_], states: npt.NDArray[np.uint8]
) -> npt.NDArray[np.bool_]:
    """All records of equal content but one: a held-out one where there is one, else the first."""
    members = np.flatnonzero(readable)
    order = members[np.lexsort((states[members] < _STATE_VALIDATION, contents[members]))]
    ordered = contents[order]
    duplicates = np.zeros(len(contents), dtype=np.bool_)
    duplicates[order[1:]] = ordered[1:] == ordered[:-1]
    return duplicates


def _held_out(table: _Table, scan: Scan, config: MixConfig, notes: list[str]) -> npt.NDArray[np.uint8]:
    """State of each record by its key: all records with one key, in every category and file, are on one side.

    The records' own splits come first. What is missing is drawn by the hash of the key; a key is drawn only where it
    costs no category too much: in records that it holds out, and in others that ask its question on the way.
    """
    readable = np.flatnonzero(table.readable)
    distinct, key_of = np.unique(table.keys[readable], return_inverse=True)
    split_of, category_of = table.splits[readable], table.category[readable]
    own, first = table.own[readable], table.first[readable]
    rank = _mixed(distinct, config.seed)

    def having(*wanted: int) -> npt.NDArray[np.bool_]:
        marked = np.zeros(len(distinct), dtype=np.bool_)
        marked[key_of[np.isin(split_of, wanted)]] = True
        return marked

    def members(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        return np.bincount(key_of[mask & first], minlength=len(distinct)).astype(np.int32)

    held = having(_HELDOUT, _VALIDATION, _TEST)
    free = ~held & ~having(_TRAIN)
    # Of a key that many of the user's records share, a record's own mark speaks for that record alone.
    unmarked = own & np.isin(split_of, (_UNSPLIT, _TRAIN))
    shared = np.zeros(len(distinct), dtype=np.bool_)
    for index in table.used():
        shared |= held & (members(unmarked & (category_of == index)) > table.largest(index))
    staying = unmarked & shared[key_of]
    if staying.any():
        count = int(np.count_nonzero(staying))
        notes.append(
            both(
                f"{count:,} records without a mark of their own stay in training though records with the same opening are "
                "marked as held out: they are too many",
                f"{count:,} 条记录与留出记录开头相同，但数量太多，仍用于训练",
            )
        )

    costs = _costs(table, scan, readable, key_of, len(distinct))
    given, taken, targets, room = {}, {}, {}, {}
    for index in table.used():
        mine = category_of == index
        is_own = bool((own & mine).any())
        # Of a category with files of the user's, their records count; the bundled ones are made to be counted by keys.
        given[index] = (
            members(own & mine) if is_own else np.minimum(1, np.bincount(key_of[mine], minlength=len(distinct)))
        )
        total = int(given[index].sum())
        kept = members(staying & mine).sum() if is_own else 0
        taken[index] = int(given[index][held].sum() - kept)
        targets[index] = _heldout_target(total, config)
        # What a category of the user's may still give up, to the held-out side or as leaks.
        room[index] = int(LARGEST_SHARE * total) - taken[index] if is_own else len(readable)
        free &= costs[index] <= table.largest(index)
    owner = np.zeros(len(distinct), dtype=np.uint8)
    for index in reversed(range(len(CATEGORIES))):
        owner[key_of[category_of == index]] = index
    for index in table.used():
        missing = targets[index] - taken[index]
        if missing <= 0 or config.heldout_share <= 0:
            continue
        candidates = np.flatnonzero((given[index] > 0) & free & ~held)
        drawn = _draw(candidates[np.argsort(rank[candidates], kind="stable")], given[index], missing, costs, room)
        held[drawn] = True
        for other in table.used():
            taken[other] += int(given[other][drawn].sum())
            room[other] -= int(costs[other][drawn].sum())
    undecided = np.flatnonzero(held)
    state = np.full(len(distinct), _STATE_TRAIN, dtype=np.uint8)
    for index in range(len(CATEGORIES)):  # every second key, in a random order, so that the halves are equal
        mine = undecided[owner[undecided] == index]
        mine = mine[np.argsort(_mixed(distinct[mine], config.seed + 1), kind="stable")]
        state[mine[0::2]], state[mine[1::2]] = _STATE_VALIDATION, _STATE_TEST
    state[having(_VALIDATION)] = _STATE_VALIDATION
    state[having(_TEST)] = _STATE_TEST
    states = np.full(len(table.keys), _STATE_DROPPED, dtype=np.uint8)
    states[readable] = np.where(staying, _STATE_TRAIN, state[key_of])
    return states


def _costs(
    table: _Table, scan: Scan, readable: npt.NDArray[np.intp], key_of: npt.NDArray[np.intp], num_keys: int
) -> dict[int, npt.NDArray[np.int32]]:
    """What each key would cost each category if it were held out: its records, and those of other keys that ask its
    question, which would then be leaks."""
    category_of, first = table.category[readable], table.first[readable]
    costs = {
        index: np.bincount(key_of[first & (category_of == index)], minlength=num_keys).astype(np.int32)
        for index in table.used()
    }
    questions = np.frombuffer(scan.questions, dtype="<u8")
    askers = np.frombuffer(scan.askers, dtype=np.uint32)
    if len(askers):
        key_index = np.zeros(len(table.keys), dtype=np.int32)
        key_index[readable] = key_of
        is_key = _is_key(askers, table.asks_last)
        asked, places = np.unique(questions[is_key], return_index=True)
        owners = key_index[askers[is_key][places]]
        place = np.minimum(np.searchsorted(asked, questions), len(asked) - 1)
        foreign = (asked[place] == questions) & (owners[place] != key_index[askers]) & table.first[askers]
        for index in table.used():
            mine = foreign & (table.category[askers] == index)
            costs[index] += np.bincount(owners[place[mine]], minlength=num_keys).astype(np.int32)
    return costs


def _draw(
    order: npt.NDArray[np.intp],
    given: npt.NDArray[np.int32],
    missing: int,
    costs: Mapping[int, npt.NDArray[np.int32]],
    room: Mapping[int, int],
) -> npt.NDArray[np.intp]:
    """The first keys of `order` that give `missing` records and cost no category more than it has room for."""
    left, drawn = dict(room), []
    while missing > 0:
        fits = np.ones(len(order), dtype=np.bool_)
        for index, cost in costs.items():
            fits &= (cost[order] == 0) | (cost[order] <= left[index])
        order = order[fits]
        if not len(order):
            break
        enough = np.cumsum(given[order]) - given[order] >= missing
        for index, cost in costs.items():
            enough |= (cost[order] > 0) & (np.cumsum(cost[order]) > left[index])
        number = int(np.argmax(enough)) if enough.any() else len(order)
        chosen, order = order[:number], order[number:]
        drawn.append(chosen)
        missing -= int(given[chosen].sum())
        left = {index: left[index] - int(costs[index][chosen].sum()) for index in left}
    return np.concatenate([*drawn, np.zeros(0, dtype=np.intp)])


def _heldout_target(records: int, config: MixConfig) -> int:
    wanted = min(max(round(config.heldout_share * records), config.heldout_min), config.heldout_max)
    return min(wanted, int(records * LARGEST_SHARE))


def _mixed(values: Bits, seed: int) -> Bits:
    """A pseudo-random number for each value and seed (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z: Bits = values + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _is_key(askers: npt.NDArray[np.uint32], asks_last: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which user turns are the questions of their records."""
    changes = askers[1:] != askers[:-1]
    first, last = np.concatenate(([True], changes)), np.concatenate((changes, [True]))
    return np.where(asks_last[askers], last, first)


def _leaks(table: _Table, scan: Scan, states: npt.NDArray[np.uint8], notes: list[str]) -> npt.NDArray[np.bool_]:
    """Training records in which a user turn is the question of a held-out record with another key.

    That question is the first user turn, which is the key; in a record with a group the last one: what comes before it
    may be anybody's talk. A turn that many conversations share (继续, 好的) gives nothing away and is no leak."""
    questions = np.frombuffer(scan.questions, dtype="<u8")
    askers = np.frombuffer(scan.askers, dtype=np.uint32)
    leaks = np.zeros(len(states), dtype=np.bool_)
    if not len(askers):
        return leaks
    held = np.unique(questions[_is_key(askers, table.asks_last) & (states[askers] >= _STATE_VALIDATION)])
    turns = np.flatnonzero((states[askers] == _STATE_TRAIN) & np.isin(questions, held))
    asked, places, question_of = np.unique(questions[turns], return_index=True, return_inverse=True)
    floor = np.where(np.frombuffer(scan.short, dtype=np.bool_)[turns[places]], SHARED_TURN[True], SHARED_TURN[False])
    common = np.zeros(len(asked), dtype=np.bool_)
    for index in table.used():
        mine = table.category[askers[turns]] == index
        mine &= table.own[askers[turns]] | ~table.own[table.category == index].any()
        pairs = np.unique(question_of[mine].astype(np.int64) * len(states) + askers[turns[mine]])
        counts = np.bincount(pairs // len(states), minlength=len(asked))
        common |= counts > np.maximum(floor, table.largest(index))
    leaks[askers[turns[~common[question_of]]]] = True
    spared = np.zeros(len(states), dtype=np.bool_)
    spared[askers[turns]] = True
    if count := int(np.count_nonzero(spared & ~leaks)):
        notes.append(
            both(
                f"{count:,} records ask on the way what held-out records ask, but in turns that many conversations share: "
                "kept",
                f"{count:,} 条记录含有留出问题，但只是许多对话共有的短句，予以保留",
            )
        )
    return leaks


def _check_what_is_left(
    table: _Table,
    scan: Scan,
    sources: Sequence[Source],
    states: npt.NDArray[np.uint8],
    leaks: npt.NDArray[np.bool_],
    notes: list[str],
) -> None:
    """Raises: UserError for a file of the user's, or a category, that is left (nearly) without training records."""
    marked = np.isin(table.splits, (_HELDOUT, _VALIDATION, _TEST))
    lost = leaks | (states >= _STATE_VALIDATION)
    start = 0
    for source, count in zip(sources, scan.counts, strict=True):
        span = slice(start, start + count)
        start += count
        if source.is_sample:
            continue
        readable = int(np.count_nonzero(table.readable[span]))
        if readable and marked[span].sum() == readable:
            raise UserError(
                f"{display(source.path)}: all its {readable:,} records are marked as held out (`split`), so nothing of it "
                "is trained on. Remove `split` from its records; or leave the file out (`skip` under `files:` in "
                f"{display(CONFIG_DIR / 'mixture.yaml')}) and evaluate on it: "
                "python scripts/evaluate_stage.py --stage STAGE --data_path FILE.",
                "整个文件都标为留出，没有可训练的记录：请去掉 split 字段，或把文件设为 skip",
            )
        _check_left(display(source.path), states[span], lost[span], leaks[span], notes)
    for index in table.used():
        mine = table.category == index
        _check_left(f"category {CATEGORIES[index]}", states[mine], lost[mine], leaks[mine], [])


def _check_left(
    what: str,
    states: npt.NDArray[np.uint8],
    lost: npt.NDArray[np.bool_],
    leaks: npt.NDArray[np.bool_],
    notes: list[str],
) -> None:
    left, gone = int(np.count_nonzero(states == _STATE_TRAIN)), int(np.count_nonzero(lost))
    told = f"{gone - int(leaks.sum()):,} held out, {int(leaks.sum()):,} that ask a held-out question"
    if gone and left < LEAST_LEFT * (left + gone):
        raise UserError(
            f"{what}: {left:,} of {left + gone:,} records are left to train on ({told}). Mark fewer records as held out "
            "(`split`), make sure that they do not all open alike, or pass --heldout_share 0.",
            f"只剩 {left:,} 条可训练：请减少标为留出的记录，或用 --heldout_share 0",
        )
    if gone > LARGEST_SHARE * (left + gone):
        notes.append(
            warning(
                f"{what}: {gone:,} of {left + gone:,} records are not trained on ({told})",
                f"注意：{gone:,} 条不用于训练",
            )
        )


def _tell_heldout(
    table: _Table, sources: Sequence[Source], states: npt.NDArray[np.uint8], config: MixConfig, notes: list[str]
) -> None:
    """A line for each category with files of the user's: how many records it gives, and what that means."""
    for name in dict.fromkeys(source.category for source in sources if not source.is_sample):
        mine = table.own & (table.category == CATEGORIES.index(name))
        heldout = int(np.count_nonzero(states[mine] >= _STATE_VALIDATION))
        total = int(np.count_nonzero(states[mine] == _STATE_TRAIN)) + heldout
        if total == 0:
            continue
        line = f"{name}: {heldout:,} of your {total:,} records are held out, to judge the model by"
        chinese = f"您的 {total:,} 条中留出 {heldout:,} 条用于评测"
        if heldout == 0:
            reason = "heldout_share is 0" if config.heldout_share == 0 else "too few, or too much alike"
            line = f"{name}: none of your {total:,} records is held out ({reason}): trained on, and not judged"
            chinese = f"您的 {total:,} 条全部用于训练，不做评测"
        elif heldout < FEW_HELDOUT:
            line += f"; below {FEW_HELDOUT} no accuracy is printed"
            chinese += f"；少于 {FEW_HELDOUT} 条，不给出准确率"
        notes.append(both(line, chinese))


# --- second pass: writing -------------------------------------------------------------------------------------------


class ShuffledLines:
    """Lines to write in a random order, without holding them: each goes to a random bucket on the disk, and each bucket
    is shuffled in memory. The buckets are unnamed files, which vanish with the process."""

    def __init__(self, folder: Path, expected_bytes: int, seed: Sequence[int], stack: ExitStack) -> None:
        num_buckets = min(max(1, -(-expected_bytes // BUCKET_BYTES)), MAX_BUCKETS)
        self.folder = folder
        self.rng = random.Random(fingerprint(list(seed)))
        self.count = 0
        self.buckets: list[IO[bytes]] = []
        for _ in range(num_buckets):
            self.buckets.append(stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=1 << 17)))  # noqa: SIM115

    def add(self, line: bytes, copies: int = 1) -> None:
        for _ in range(copies):
            self.buckets[int(self.rng.random() * len(self.buckets))].write(line)
        self.count += copies

    def write(self, path: Path) -> str:
        """Write everything to `path`, atomically, and give the buckets back. Returns: its SHA-256."""
        digest = hashlib.sha256()
        with atomic_write(path, "wb") as file:
            for bucket in self.buckets:
                bucket.seek(0)
                lines = bucket.readlines()
                self.rng.shuffle(lines)
                for line in lines:
                    file.write(line)
                    digest.update(line)
                bucket.close()
        return digest.hexdigest()


def write_outputs(
    scan: Scan, choice: Choice, sources: Sequence[Source], config: MixConfig, folder: Path, bar: Progress
) -> dict[str, dict[str, Any]]:
    """Write the six files. Returns: name -> records and SHA-256. Raises: UserError when a source changed meanwhile."""
    expected = _expected_bytes(scan, choice, sources)
    try:
        with ExitStack() as stack:
            outputs = {
                key: ShuffledLines(folder, expected[key], (config.seed, number), stack)
                for number, key in enumerate(OUTPUTS)
            }
            start = 0
            for index, source in enumerate(sources):
                bar.set_description(source.path.name)
                _write_source(source, choice, start, config, outputs, bar)
                if _file_state(source.path) != scan.states[index]:
                    raise UserError(
                        f"{display(source.path)}: changed while it was read. Rerun.", "读取期间文件被改动：请重新运行"
                    )
                start += scan.counts[index]
            (folder / MANIFEST_FILE).unlink(missing_ok=True)  # from here on the files of an older mix are going
            return {
                name: {"records": outputs[key].count, "sha256": outputs[key].write(folder / name)}
                for key, name in OUTPUTS.items()
            }
    except OSError as error:
        raise write_error(folder, error) from error


def _expected_bytes(scan: Scan, choice: Choice, sources: Sequence[Source]) -> dict[tuple[str, bool], int]:
    """Roughly the size of each output, from the mean size of each source's records."""
    expected = dict.fromkeys(OUTPUTS, 0)
    start = 0
    for source, count, size in zip(sources, scan.counts, scan.sizes, strict=True):
        span = slice(start, start + count)
        start += count
        mean = size / max(count, 1) + 100
        copies = int(choice.copies[span].sum())
        once = int(np.count_nonzero(choice.copies[span]))
        heldout = int(np.count_nonzero(choice.states[span] >= _STATE_VALIDATION))
        for stage in _stages(source.category):
            written = once if stage == "pretrain" and source.category != "corpus" else copies
            expected[stage, False] += int(mean * written)
            expected[stage, True] += int(mean * heldout)
    return expected


def _stages(category: str) -> tuple[str, ...]:
    if category == "preference":
        return ("dpo",)
    return ("pretrain", "sft") if category in CHAT_CATEGORIES else ("pretrain",)


def _write_source(
    source: Source,
    choice: Choice,
    start: int,
    config: MixConfig,
    outputs: Mapping[tuple[str, bool], ShuffledLines],
    bar: Progress,
) -> None:
    fill = _placeholders(source, config)
    states, copies = memoryview(choice.states), memoryview(choice.copies)  # type: ignore[arg-type]
    for position, (number, item) in enumerate(read_items(source.path, lambda block: bar.update(len(block))), start):
        state = states[position] if position < len(states) else _STATE_DROPPED
        if state == _STATE_DROPPED or (state == _STATE_TRAIN and not copies[position]):
            continue
        record = _record_of(item, source, fill)
        gained = {"source": record.fields.get("source") or source.path.name, "category": source.category}
        gained["origin"] = f"{source.path.name}:{number}"
        heldout = state != _STATE_TRAIN
        if heldout:
            gained["split"] = _SPLIT_NAMES[state]
        times = 1 if heldout else copies[position]
        if isinstance(record, ChatRecord):
            text = _line({"text": record.plain_text(), **gained})
            if source.category == "corpus":
                outputs["pretrain", heldout].add(text, times)
                continue
            outputs["pretrain", heldout].add(text)
            outputs["sft", heldout].add(_line({**record.fields, **gained}), times)
        else:
            stage = "pretrain" if isinstance(record, TextRecord) else "dpo"
            outputs[stage, heldout].add(_line({**record.fields, **gained}), times)


_ENCODER = json.JSONEncoder(ensure_ascii=False)


def _line(record: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(record).encode("utf-8") + b"\n"


# --- the whole --------------------------------------------------------------------------------------------------


def build_mix(sources: Sources, config: MixConfig, output_dir: Path) -> dict[str, Any]:
    """Mix the sources into `output_dir`; the manifest, which is also returned, is written last.

    Raises: UserError. The files of an older mix stay as they were unless the new ones are ready to replace them.
    """
    files = sources.files
    with output_lock(output_dir):
        _remove_leftovers(output_dir)
        identity, config, notes = own_identity(files, config)
        total = 2 * sum(_file_state(source.path)[0] for source in files)
        with progress_bar(total, desc="mix", unit="B", unit_scale=True) as bar:
            scan = _scan_with_rejects(files, config, output_dir / REJECTS_FILE, bar)
            choice = choose(scan, files, config, sources.bundled)
            outputs = write_outputs(scan, choice, files, config, output_dir, bar)
        manifest = _manifest(scan, choice, sources, config, outputs)
        manifest |= {"identity": identity, "notes": [*notes, *choice.notes]}
        write_json(output_dir / MANIFEST_FILE, manifest)
    return manifest


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Keep a second mix out of the same folder. Raises: UserError when there is one, or the folder can't be written."""
    path = folder / ".mix.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{display(folder)}: another mix is writing there. Wait for it, or give --output_dir.",
                    "另一个混合任务正在写入：请等它结束，或用 --output_dir",
                ) from None
            yield
    except OSError as error:
        raise write_error(folder, error) from error


def _remove_leftovers(folder: Path) -> None:
    """Temporary files of a mix that was killed; they can be as large as the mix."""
    for name in (*OUTPUTS.values(), REJECTS_FILE, MANIFEST_FILE):
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def _scan_with_rejects(sources: Sequence[Source], config: MixConfig, path: Path, bar: Progress) -> Scan:
    """The first pass. The rejects file is there afterwards, also when the pass ends with an error about bad records."""
    problem: UserError | None = None
    with atomic_write(path) as rejects:
        try:
            scan = scan_sources(sources, config, rejects, bar)
        except UserError as error:
            problem = error
    if problem:
        raise problem
    return scan


def _manifest(
    scan: Scan, choice: Choice, sources: Sources, config: MixConfig, outputs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    entries = []
    start = 0
    for index, source in enumerate(sources.files):
        span = slice(start, start + scan.counts[index])
        start += scan.counts[index]
        copies, states = choice.copies[span], choice.states[span]
        kept = int(np.count_nonzero(copies))
        dropped = dict(scan.rejected[index])
        others = {
            "duplicate": int(choice.duplicates[span].sum()),
            "asks a held-out question": int(choice.leaks[span].sum()),
            "not sampled": int(np.count_nonzero((states == _STATE_TRAIN) & (copies == 0))),
        }
        entries.append(
            {
                "file": source.path.name,
                "category": source.category,
                "sample": source.is_sample,
                "sha256": scan.digests[index],
                "format": scan.formats[index],
                "read": scan.counts[index],
                "kept": kept,
                "heldout": int(np.count_nonzero(states >= _STATE_VALIDATION)),
                "foreign_marks": {name: scan.marked[index][name] for name in ("records", "marks")},
                "dropped": dropped | {reason: count for reason, count in others.items() if count},
                "repetition": round(int(copies.sum()) / kept, 4) if kept else 0.0,
            }
        )
    settings = as_dict(config)
    return {
        "seed": config.seed,
        "settings": settings,
        "fingerprint": fingerprint([settings, [[e["file"], e["category"], e["sha256"]] for e in entries]]),
        "sample_factor": choice.factor,
        "categories": {
            name: {**{f.name: getattr(tally, f.name) for f in fields(tally)}, "repetition": round(tally.repetition, 4)}
            for name, tally in choice.tallies.items()
        },
        "sources": entries,
        "left_out": sources.left_out,
        "outputs": outputs,
    }
