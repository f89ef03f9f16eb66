"""Turn mixed records into token tensors that the trainers read by memory map.
把混合后的数据转成训练用的词元张量。

python scripts/export_embeddings.py sft
python scripts/export_embeddings.py sft --inspect 3
python scripts/export_embeddings.py pretrain --input my_texts.jsonl --output my_tokens \\
    --max-length 512
"""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from configs.cli import Parser, add_switch, run
from configs.flags import SHARED
from configs.load import load_profile
from configs.paths import DATA_DIR, OUT_DIR, default_tokenizer_dir, display, env_path, find_dataset, heldout_beside
from configs.schema import TrainConfig, UserError
from configs.stage_table import DATA_STEMS, record_file, tensor_folder
from dataset.tensors import IGNORE, VALIDATION_FOLDER, Manifest, open_tensors, read_manifest
from dataset.tokenizer import RustBPETokenizer
from dataset.tokens.build import TensorJob, build_tensors, current_tensors

GREEN, GREY, PLAIN = "\033[32m", "\033[90m", "\033[0m"


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("stage", choices=DATA_STEMS.values(), help="what the tensors are for 用于哪个阶段")
    parser.add_argument("--input", type=Path, metavar="FILE", help="records 输入 (DATA_DIR/STAGE_chinese.jsonl)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="tensor folder 输出目录 (DATA_DIR/STAGE_tokens)")
    parser.add_argument(
        "--heldout",
        type=Path,
        metavar="FILE",
        help="its validation records become DIR/validation 验证集来源 (INPUT_heldout.jsonl)",
    )
    parser.add_argument("--tokenizer_dir", "--load_from", **SHARED["tokenizer_dir"])  # of another model: its folder
    parser.add_argument("--profile", metavar="NAME", help="take --max-length from configs/NAME.yaml 从配置读取长度")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens in a row 每行词元数 (2048)")
    parser.add_argument(
        "--bos-token",
        metavar="NAME",
        help="special token that opens a sequence, or none 起始词元 (the tokenizer's 默认用分词器的)",
    )
    add_switch(
        parser,
        "--append-eos",
        help="close each sequence with <|endoftext|> 末尾加结束词元 (1 for pretrain, else 0: answers end themselves)",
    )
    parser.add_argument(
        "--num-workers", type=int, default=0, metavar="N", help="processes; 0: one a core 进程数 (%(default)s)"
    )
    parser.add_argument(
        "--inspect", type=int, default=0, metavar="N", help="show N samples token by token 查看样本与掩码"
    )
    add_switch(parser, "--show-ids", default=False, help="with --inspect: the ids too 同时显示编号")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Records + tokenizer -> tensor folder, unless one that fits is there."""
    arguments = build_parser().parse_args(argv)
    if arguments.inspect < 0:
        raise UserError(f"--inspect {arguments.inspect}: must be 0 or more.", "样本数不能为负")
    job = resolve_job(arguments)
    manifest = current_tensors(job)
    if manifest is not None:
        print(f"{display(job.output)}: up to date ({describe(manifest)})")
    else:
        manifest = build_tensors(job)
        print(f"{display(job.output)}: {describe(manifest)}")
        if manifest.validation is not None and manifest.validation.rows:
            folder = job.output / VALIDATION_FOLDER
            print(f"{display(folder)}: {describe(read_manifest(folder))}")
    if arguments.inspect:
        inspect(job, arguments.inspect, show_ids=arguments.show_ids)
    return 0


def resolve_job(arguments: Namespace) -> TensorJob:
    """What to build: flags over the profile over defaults. Raises: UserError."""
    data = next(data for data, stem in DATA_STEMS.items() if stem == arguments.stage)
    data_dir = env_path("DATA_DIR", DATA_DIR)
    source, output = arguments.input or data_dir / record_file(data), arguments.output or data_dir / tensor_folder(data)
    try:
        source = find_dataset(source)
    except UserError:
        # The records may be gone while their tensors are still there, and those can be used.
        if not output.is_dir():
            raise
    tokenizer_dir = arguments.tokenizer_dir or default_tokenizer_dir(env_path("OUT_DIR", OUT_DIR))
    tokenizer = RustBPETokenizer.from_directory(tokenizer_dir)
    opening = tokenizer.chat_format.opening(data) if arguments.bos_token is None else arguments.bos_token
    train = load_profile(arguments.profile).stages[arguments.stage] if arguments.profile else TrainConfig()
    return TensorJob(
        data,
        source,
        output,
        tokenizer,
        max_length=train.max_seq_len if arguments.max_length is None else arguments.max_length,
        num_workers=arguments.num_workers,
        bos_token=None if opening == "none" else opening,
        append_eos=arguments.append_eos,
        heldout=find_dataset(arguments.heldout) if arguments.heldout else heldout_beside(source),
    )


def describe(manifest: Manifest) -> str:
    """One line about a tensor folder."""
    rows, tokens, length = manifest.rows, manifest.num_tokens, manifest.max_length
    if manifest.data == "pairs":
        what = f"{rows:,} pairs, {tokens:,} tokens"
    else:
        what = f"{rows:,} rows of {length:,}, {tokens:,} tokens ({tokens / (rows * length):.1%} of the rows)"
    return f"{what}, {manifest.num_targets:,} learnt; {manifest.source.records:,} records"


# --- samples, token by token ----------------------------------------------------------------------


MOST_TOKENS_A_CHARACTER = 4
"""A character has at most 4 bytes in UTF-8, and a token at least one."""


@dataclass(frozen=True)
class Sample:
    """One document, conversation or side of a pair."""

    title: str
    ids: list[int]
    targets: list[bool]
    """Which of the tokens are targets."""


def inspect(job: TensorJob, count: int, *, show_ids: bool) -> None:
    """Print samples from places far apart in the tensors, and mark the targets in them."""
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if coloured:
        print(f"\nlegend 图例: {GREEN}learnt 参与训练{PLAIN}·{GREY}given 仅作输入{PLAIN}")
    else:
        print("\nlegend 图例: [learnt]·given")
    arrays = {name: tensor.numpy() for name, tensor in open_tensors(job.output).items()}
    for sample in pair_samples(arrays, count) if job.data == "pairs" else row_samples(arrays, count):
        print(f"\n{sample.title}: {len(sample.ids)} tokens, {sum(sample.targets)} learnt")
        print(render(sample, job.tokenizer, coloured=coloured, show_ids=show_ids))


def row_samples(arrays: dict[str, np.ndarray], count: int) -> Iterator[Sample]:
    """Single documents, each from another row."""
    for number, row in enumerate(spread(count, len(arrays["input_ids"]))):
        documents = arrays["document_ids"][row]
        document = number % (documents.max() + 1)  # not always the first one of its row
        places = np.flatnonzero(documents == document)
        ids, labels = arrays["input_ids"][row, places], arrays["labels"][row, places]
        yield sample_of(f"row {row:,}, document {document}", ids, labels)


def pair_samples(arrays: dict[str, np.ndarray], count: int) -> Iterator[Sample]:
    """Both sides of pairs."""
    for pair in spread(count, len(arrays["chosen_offsets"]) - 1):
        for side in ("chosen", "rejected"):
            start, end = arrays[f"{side}_offsets"][pair : pair + 2]
            ids, labels = arrays[f"{side}_input_ids"][start:end], arrays[f"{side}_labels"][start:end]
            yield sample_of(f"pair {pair:,}, {side}", ids, labels)


def spread(count: int, total: int) -> list[int]:
    """Up to `count` numbers from 0 to total - 1, evenly spread."""
    numbers: list[int] = np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
    return numbers


def sample_of(title: str, ids: np.ndarray, labels: np.ndarray) -> Sample:
    """A sample. Args: ids, labels: (T,) each."""
    # A label belongs to the token after its place, so the first token is never a target.
    return Sample(title, ids.tolist(), [False, *(labels[:-1] != IGNORE).tolist()])


def render(sample: Sample, tokenizer: RustBPETokenizer, *, coloured: bool, show_ids: bool) -> str:
    """The tokens with dots between them; targets are green, or in brackets."""
    parts = []
    texts = token_texts(sample.ids, tokenizer)
    for token_id, shown, is_target in zip(sample.ids, texts, sample.targets, strict=True):
        text = visible(shown) + (f"({token_id})" if show_ids else "")
        if coloured:
            parts.append(f"{GREEN if is_target else GREY}{text}{PLAIN}")
        else:
            parts.append(f"[{text}]" if is_target else text)
    return "·".join(parts)


def token_texts(ids: Sequence[int], tokenizer: RustBPETokenizer) -> list[str]:
    """The text of each token. If 谜 takes two tokens, they show as 谜1/2 and 谜2/2."""
    texts: list[str] = []
    while len(texts) < len(ids):
        start = len(texts)
        # The fewest tokens from here on whose bytes are whole characters.
        for size in range(1, MOST_TOKENS_A_CHARACTER + 1):
            try:
                whole = tokenizer.decode_bytes(ids[start : start + size]).decode("utf-8")
            except UnicodeDecodeError:
                continue
            texts += [whole] if size == 1 else [f"{whole}{part}/{size}" for part in range(1, size + 1)]
            break
        else:
            texts.append(tokenizer.id_to_token(ids[start]))  # its bytes belong to no character
    return texts


def visible(text: str) -> str:
    """A token's text on one line; characters that would move the cursor show as escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


if __name__ == "__main__":
    run(main)
