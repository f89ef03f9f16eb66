"""Train a byte-level BPE tokenizer on your text with the Rust crate `rustbpe`.
用 Rust 在自己的文本上训练分词器。

    python scripts/train_rustbpe_tokenizer.py    # on data/processed, data/chinese or the samples
    python scripts/train_rustbpe_tokenizer.py --input my.jsonl --vocab-size 6400 \\
        --output out/tokenizer

Writes tokenizer.pkl, tokenizer_meta.json, tokenizer.json and tokenizer_config.json. The crate is
built once: maturin develop --release --manifest-path rustbpe/Cargo.toml
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from configs.cli import run
from configs.progress import Progress, progress_bar
from configs.schema import LARGEST_COUNT, UserError
from dataset.tokenizer import RustBPETokenizer, rust_class
from dataset.tokenizer_training import build_parser, train_folder

DEFAULT_MAX_HAN_RUN = 2
"""In characters. In a small text sentences are alike: without a cap whole phrases become tokens,
and the model knows no other wording. To a large text the cap does little harm (docs/lab_log.md)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Read, learn, measure, write."""
    parser = build_parser(__doc__)
    parser.add_argument(
        "--max-han-run",
        type=int,
        default=DEFAULT_MAX_HAN_RUN,
        metavar="N",
        help="cut runs of Han after N characters, in training only; 0: no cap, denser on much varied text "
        "训练时连续汉字的最大长度；0 为不限，适合量大而多样的文本 (%(default)s)",
    )
    args = parser.parse_args(argv)
    if not 0 <= args.max_han_run <= LARGEST_COUNT:
        raise UserError(
            f"--max-han-run {args.max_han_run}: must be 0 (no cap) or more, and at most {LARGEST_COUNT}.",
            "超出范围；0 为不限",
        )

    rust_class()  # fails now if the crate is missing, before much text is read

    def learn(texts: Iterator[str], vocab_size: int, pattern: str) -> RustBPETokenizer:
        bars: list[Progress] = []
        shown = [0]

        def show(done: int, wanted: int) -> None:
            if not bars:  # only now, because reading the text has a bar of its own
                bars.append(progress_bar(wanted, desc="merging 合并", unit="merges"))
            bars[0].update(done - shown[0])
            shown[0] = done

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the text has no more pairs", UserWarning)  # told by train_folder
            tokenizer = RustBPETokenizer.train_from_iterator(
                texts, vocab_size, pattern=pattern, max_han_run=args.max_han_run or None, progress=show
            )
        for bar in bars:
            bar.close()
        return tokenizer

    return train_folder(args, learn, {"trainer": "rustbpe", "max_han_run": args.max_han_run})


if __name__ == "__main__":
    run(main)
