"""Why a record was dropped: how reasons are counted and listed, and when they are too many to go on."""

from collections import Counter

from configs.paths import CONFIG_DIR, display
from configs.schema import UserError
from dataset.mix.sources import WRONG_CATEGORY, Source, files_line
from dataset.records.turns import ROLES

REJECTS_FILE = "rejects.jsonl"
BAD_LINES_ALLOWED = 3
BAD_SHARE_ALLOWED = 0.05
MAX_REASONS = 50
"""Reasons that are told apart; the names in further ones are left out."""


def problem_of(
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
