"""Let a teacher answer the questions of your conversations: distillation by texts, whatever its
vocabulary. 让教师模型回答对话中的问题：按文本蒸馏，词表可以不同。

python scripts/teacher_answers.py --teacher QWEN_FOLDER --input data/processed/sft_chinese.jsonl \\
    --output data/chinese/teacher_answers.jsonl
python trainer/train_full_sft.py --data_path data/chinese/teacher_answers.jsonl

The last answer of each conversation is replaced by the likeliest answer of the teacher (Kim and
Rush 2016, arXiv:1606.07947, section 3.3). A conversation whose answer has no end, or no words, is
left out and counted. A run that is interrupted goes on where it was.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.artifacts import append_line, atomic_write, fingerprint, require_writable, sha256_file
from configs.cli import Parser, run
from configs.flags import add_shared
from configs.messages import both
from configs.paths import display, find_dataset
from configs.progress import progress_bar
from configs.schema import UserError
from dataset.records.files import read_records
from evaluation.questions import ask
from inference.loading import OpenModel, open_model
from model.device import choose_device
from model.weights import weights_fingerprint

AT_ONCE = 256
"""Conversations after whose answers the file of the interrupted run is written."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, metavar="PATH", help="weights or folder 教师权重或目录")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="conversations 对话数据")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSONL to write 输出文件")
    parser.add_argument(
        "--max_new_tokens", type=int, default=128, metavar="N", help="longest answer 回答最长词元数 (128)"
    )
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="answers side by side 并行条数 (64)")
    parser.add_argument(
        "--max_samples", type=int, default=0, metavar="N", help="conversations; 0: all 对话数，0 为全部"
    )
    add_shared(parser, "tokenizer_dir", "device")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Conversations + teacher -> conversations with its answers."""
    arguments = build_parser().parse_args(argv)
    for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("max_samples", 0)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be {least} or more.", f"应不小于 {least}")
    source, path, output = find_dataset(arguments.input), find_dataset(arguments.teacher), arguments.output
    require_writable(output.parent)
    made_of = fingerprint([sha256_file(source), weights_fingerprint(path), arguments.max_new_tokens])
    teacher = open_model(path, device=choose_device(arguments.device), tokenizer_dir=arguments.tokenizer_dir)
    # What is answered already is kept beside the output: a line a conversation.
    unfinished = output.with_name(f".{output.name}.{made_of[:16]}.unfinished")
    answered = _lines(unfinished)
    conversations = islice(_conversations(source), arguments.max_samples or None)
    total = sum(1 for _ in islice(_conversations(source), arguments.max_samples or None))
    with progress_bar(total, desc="answers", unit="conversations") as bar:
        bar.update(min(len(answered), total))
        rest = islice(conversations, len(answered), None)
        while part := list(islice(rest, AT_ONCE)):
            new = answers_of(teacher, part, batch_size=arguments.batch_size, max_new_tokens=arguments.max_new_tokens)
            append_line(unfinished, new)
            answered += new
            bar.update(len(part))
    kept = [record for record in answered[:total] if record is not None]
    if not kept:
        raise UserError(
            f"{display(source)}: the teacher gave no whole answer to {total} conversations. Give other --input, or raise "
            "--max_new_tokens.",
            "教师没有给出完整的回答：请换数据，或调大 --max_new_tokens",
        )
    with atomic_write(output) as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
    unfinished.unlink(missing_ok=True)
    print(
        f"{display(output)}: {len(kept)} conversations; "
        + both(
            f"{total - len(kept)} left out, whose answer has no end or no words",
            f"{total - len(kept)} 条回答不完整，已略去",
        )
    )
    return 0


def _conversations(source: Path) -> Iterator[Mapping[str, Any]]:
    """The conversations of a file that end with an answer. Raises: UserError for other records."""
    for number, record in enumerate(read_records(source), 1):
        if "conversations" not in record:
            raise UserError(
                f"{display(source)}: record {number} is no conversation. Give conversations with --input.",
                "不是对话数据：请用 --input 给出对话",
            )
        if record["conversations"][-1]["role"] == "assistant":
            yield record


def answers_of(
    teacher: OpenModel, records: Sequence[Mapping[str, Any]], *, batch_size: int, max_new_tokens: int
) -> list[dict[str, Any] | None]:
    """The records with the teacher's answers; None for one without a whole answer."""
    prompts = [record["conversations"][:-1] for record in records]
    said = ask(teacher.model, teacher.tokenizer, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens)
    found: list[dict[str, Any] | None] = []
    for record, prompt, answer in zip(records, prompts, said, strict=True):
        text = answer.text.strip()
        turns = [*prompt, {"role": "assistant", "content": text}]
        found.append({**record, "conversations": turns} if answer.ended and text else None)
    return found


def _lines(unfinished: Path) -> list[dict[str, Any] | None]:
    """What an interrupted run has answered. A line that was cut short is taken away."""
    if not unfinished.exists():
        return []
    whole = [line for line in unfinished.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    with atomic_write(unfinished) as file:
        file.writelines(whole)
    return [record for line in whole for record in json.loads(line)]


if __name__ == "__main__":
    run(main)
