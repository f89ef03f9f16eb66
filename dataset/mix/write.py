"""The second pass over the sources: writes the training and held-out files, in a random order."""

import hashlib
import random
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from configs.artifacts import atomic_write, fingerprint, write_error
from configs.paths import display
from configs.progress import Progress
from configs.schema import CHAT_CATEGORIES, MixConfig, UserError
from dataset.mix.choice import Choice
from dataset.mix.scan import Scan
from dataset.mix.sources import Source, file_state, read_source
from dataset.mix.table import Side, is_heldout
from dataset.records.lines import json_line
from dataset.records.record import BadRecord, ChatRecord, TextRecord

MANIFEST_FILE = "mix_manifest.json"
OUTPUTS = {
    (stage, heldout): f"{stage}_chinese{'_heldout' if heldout else ''}.jsonl"
    for stage in ("pretrain", "sft", "dpo")
    for heldout in (False, True)
}
"""(stage, whether held out) -> file name."""
_DROPPED, _TRAIN = int(Side.DROPPED), int(Side.TRAIN)
_SPLIT_NAMES = {int(Side.VALIDATION): "validation", int(Side.TEST): "test"}
"""These are plain numbers, because comparing them is faster than comparing enum members."""
BUCKET_BYTES = 64 << 20
"""Size of a bucket of the shuffle. Buckets are larger only if MAX_BUCKETS of them are too few."""
MAX_BUCKETS = 64
"""Most buckets of one output. A bucket is an open file, and some systems allow only 256 of them."""


class ShuffledLines:
    """Writes lines in a random order, without having all lines in memory.

    Each line goes to a random bucket on the disk. Then each bucket is shuffled in memory. The
    buckets are unnamed files, which disappear with the process.
    """

    def __init__(self, folder: Path, expected_bytes: int, seed: Sequence[int], stack: ExitStack) -> None:
        # Take enough buckets, so that each of them fits into memory, but at most MAX_BUCKETS.
        num_buckets = min(max(1, -(-expected_bytes // BUCKET_BYTES)), MAX_BUCKETS)
        self.folder = folder
        self.rng = random.Random(fingerprint(list(seed)))
        self.count = 0
        self.buckets: list[IO[bytes]] = []
        for _ in range(num_buckets):
            self.buckets.append(stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=1 << 17)))  # noqa: SIM115

    def add(self, line: bytes, copies: int = 1) -> None:
        """Add a line. It will be written `copies` times."""
        for _ in range(copies):
            self.buckets[int(self.rng.random() * len(self.buckets))].write(line)
        self.count += copies

    def write(self, path: Path) -> str:
        """Write all lines to `path` in random order, and close the buckets.

        Returns: its SHA-256.
        """
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
    """Write the six files.

    Returns: name -> records and SHA-256.
    Raises: UserError if a source has changed since the first pass, or if a file can't be written.
    """
    expected = _expected_bytes(scan, choice, sources)
    try:
        with ExitStack() as stack:
            outputs = {
                key: ShuffledLines(folder, expected[key], (config.seed, number), stack)
                for number, key in enumerate(OUTPUTS)
            }
            for source, found, span in zip(sources, scan.of_source, scan.spans(), strict=True):
                bar.set_description(source.path.name)
                _write_source(source, choice.sides[span], choice.copies[span], config, outputs, bar)
                if file_state(source.path) != found.state:
                    raise _changed(source)
            (folder / MANIFEST_FILE).unlink(missing_ok=True)  # from here on, the files of an older mix are replaced
            return {
                name: {"records": outputs[key].count, "sha256": outputs[key].write(folder / name)}
                for key, name in OUTPUTS.items()
            }
    except OSError as error:
        raise write_error(folder, error) from error


def _changed(source: Source) -> UserError:
    return UserError(f"{display(source.path)}: changed while it was read. Rerun.", "读取期间文件被改动：请重新运行")


def _expected_bytes(scan: Scan, choice: Choice, sources: Sequence[Source]) -> dict[tuple[str, bool], int]:
    """About how many bytes each output gets. Computed with the mean record size of each source."""
    expected = dict.fromkeys(OUTPUTS, 0)
    for source, found, span in zip(sources, scan.of_source, scan.spans(), strict=True):
        mean = found.size / max(found.count, 1) + 100  # bytes; 100 for the fields that we add
        copies = int(choice.copies[span].sum())
        once = int(np.count_nonzero(choice.copies[span]))
        heldout = int(np.count_nonzero(is_heldout(choice.sides[span])))
        for stage in _stages(source.category):
            written = once if stage == "pretrain" and source.category != "corpus" else copies
            expected[stage, False] += int(mean * written)
            expected[stage, True] += int(mean * heldout)
    return expected


def _stages(category: str) -> tuple[str, ...]:
    """The stages that train on the records of a category."""
    if category == "preference":
        return ("dpo",)
    return ("pretrain", "sft") if category in CHAT_CATEGORIES else ("pretrain",)


def _write_source(
    source: Source,
    side_of: npt.NDArray[np.uint8],
    copies_of: npt.NDArray[np.uint32],
    config: MixConfig,
    outputs: Mapping[tuple[str, bool], ShuffledLines],
    bar: Progress,
) -> None:
    """Add the records of one source to the outputs.

    Raises: UserError when the source has changed since the first pass.
    """
    # Reading single numbers from a memoryview is several times as fast as from an array.
    sides, copies = memoryview(side_of), memoryview(copies_of)  # type: ignore[arg-type]

    def is_written(position: int) -> bool:
        if position >= len(sides):  # the file has grown, and `write_outputs` will notice that
            return False
        side = sides[position]
        return bool(copies[position]) if side == _TRAIN else side != _DROPPED

    for position, line, _, record in read_source(source, config, lambda block: bar.update(len(block)), is_written):
        if isinstance(record, BadRecord):
            raise _changed(source)
        side = sides[position]
        # Add to every record its source, category and place. If it is held out, also add its half.
        gained = {"source": record.fields.get("source") or source.path.name, "category": source.category}
        gained["origin"] = f"{source.path.name}:{line}"
        heldout = side != _TRAIN
        if heldout:
            gained["split"] = _SPLIT_NAMES[side]
        times = 1 if heldout else copies[position]
        if isinstance(record, ChatRecord):
            text = json_line({"text": record.plain_text(), **gained})
            if source.category == "corpus":
                outputs["pretrain", heldout].add(text, times)
                continue
            # Only SFT repeats a conversation. Pretraining gets its text once.
            outputs["pretrain", heldout].add(text)
            outputs["sft", heldout].add(json_line({**record.fields, **gained}), times)
        else:
            stage = "pretrain" if isinstance(record, TextRecord) else "dpo"
            outputs[stage, heldout].add(json_line({**record.fields, **gained}), times)
