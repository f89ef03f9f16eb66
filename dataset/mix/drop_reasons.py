"""Why a record was dropped: the reasons, their counts, and when a file has too many bad records."""

import json
from collections import Counter
from dataclasses import dataclass, field

from configs.paths import CONFIG_DIR, display
from configs.schema import UserError
from dataset.chat import ROLES
from dataset.mix.sources import WRONG_CATEGORY, Source, files_line
from dataset.records.lines import Item, shown_text
from dataset.records.record import BadRecord, LeftOut

REJECTS_FILE = "rejects.jsonl"
BAD_LINES_ALLOWED = 3
"""Bad records that even a small file may have."""
BAD_SHARE_ALLOWED = 0.05
"""Share of a file's records that may be bad."""
MAX_REASONS = 50
"""The largest number of different reasons for a file. After that, a new reason is counted without
the text after its colon."""

DUPLICATE, LEAK, NOT_SAMPLED = "duplicate", "asks a held-out question", "not sampled"
"""Reasons for which the mix drops a good record. All other reasons say what is wrong with a record.
They are the messages of `BadRecord` and `LeftOut`, which the readers in dataset/records/ raise."""
SOUND = (DUPLICATE, LEAK, NOT_SAMPLED)


@dataclass(slots=True)
class Rejections:
    """Counts why records of one file were rejected."""

    faults: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    """Good records with a mark that says: do not train on this. They are no mistakes."""
    first_bad: int = 0
    """Line of the first bad record; 0 if there is none."""

    def add(self, problem: BadRecord, line: int) -> None:
        """Count a rejected record. `line`: its line in the file."""
        reason = str(problem)
        if isinstance(problem, LeftOut):
            self.left_out[reason] += 1
            return
        is_told_apart = reason in self.faults or len(self.faults) < MAX_REASONS
        self.faults[reason if is_told_apart else reason.split(":")[0]] += 1
        self.first_bad = self.first_bad or line

    def counts(self) -> dict[str, int]:
        """Reason -> records."""
        return dict(self.faults + self.left_out)


def rejected_line(source: Source, line: int, item: Item, problem: BadRecord) -> str:
    """The line of `rejects.jsonl` for a record that can't be used."""
    told = {"file": source.path.name, "line": line, "reason": str(problem), "text": shown_text(item)}
    return json.dumps(told, ensure_ascii=False) + "\n"


def problem_of(source: Source, count: int, rejections: Rejections) -> UserError | None:
    """The error for a file with too many bad records; None if it has few.

    Args: count: the number of records in the file, also the rejected records.
    """
    faults, left_out = rejections.faults, rejections.left_out
    where = display(source.path)
    if count == 0:
        return UserError(
            f"{where}: is empty. Fill it with one JSON record a line, or remove it.", "文件是空的：请填入数据或删除"
        )
    if left_out and count == left_out.total():
        return UserError(
            f"{where}: every record says that it is not to be learnt ({_listed(left_out)}). Remove the file, or those marks.",
            "所有记录都标明不参与训练：请删除该文件或去掉标记",
        )
    count -= left_out.total()
    bad = faults.total()
    if bad < count and (bad <= BAD_LINES_ALLOWED or bad <= BAD_SHARE_ALLOWED * count):
        return None
    told = f"{_listed(faults)}; first: line {rejections.first_bad}"
    reason = faults.most_common(1)[0][0]
    if reason in WRONG_CATEGORY:
        line = files_line(source.path.name, WRONG_CATEGORY[reason])
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


def _listed(reasons: Counter[str]) -> str:
    """The three most frequent reasons, with their counts."""
    return ", ".join(f"{reason}: {times}" for reason, times in reasons.most_common(3))


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
"""How a reason begins, and what to do about it in English and in Chinese."""


def _advice(reason: str) -> tuple[str, str]:
    """What to do about a reason, in English and in Chinese."""
    found = ((advice, chinese) for start, advice, chinese in _ADVICE if reason.startswith(start))
    return next(found, ("Fix or remove those records.", "请修改或删除"))
