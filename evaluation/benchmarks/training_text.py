"""The training text that benchmarks are held against: the mix that some weights were trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.artifacts import read_json
from configs.messages import both
from configs.paths import display
from configs.stage_table import heldout_file, record_file
from dataset.mix.write import MANIFEST_FILE
from evaluation.benchmarks.bigram import Bigram, record_texts
from model.manifest import TrainingFile

HELDOUT_CHARACTERS = 200_000
"""Held-out text by which the bigram's smoothing is chosen."""


@dataclass(frozen=True)
class TrainingText:
    """The training files of a mix."""

    files: tuple[Path, ...]
    heldout: Path | None
    notes: tuple[str, ...]

    def texts(self) -> Iterator[str]:
        """All that a model trained on this mix may have seen."""
        for path in self.files:
            yield from record_texts(path)

    def bigram(self, training_data: Sequence[TrainingFile]) -> Bigram:
        """A bigram of the files that these weights were trained on, as far as this mix has them."""
        names = {Path(file.path).name for file in training_data}
        bigram = Bigram(text for path in self.files if not names or path.name in names for text in record_texts(path))
        if self.heldout is not None:
            bigram.fit(list(_some(record_texts(self.heldout))))
        return bigram


def training_text(folder: Path, training_data: Sequence[TrainingFile]) -> TrainingText | None:
    """The training files of the mix in a folder; None if there is no mix.

    Args: training_data: what the weights were trained on. A note says if that is not this mix.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return None
    outputs = read_json(folder / MANIFEST_FILE, "Build the mix again.", "请重新生成配比").get("outputs", {})
    hashes = {str(output.get("sha256")) for output in outputs.values()}
    kinds = ("documents", "conversations", "pairs")
    files = tuple(path for kind in kinds if (path := folder / record_file(kind)).is_file())
    heldout = folder / heldout_file("documents")
    notes = []
    if not training_data or any(file.sha256 not in hashes for file in training_data):
        notes.append(
            both(
                f"these weights were not, or not only, trained on the mix in {display(folder)}: contamination and bigram "
                "tell about that mix",
                "权重并非（只）由此配比训练：污染检查和二元模型只针对该配比",
            )
        )
    return TrainingText(files, heldout if heldout.is_file() else None, tuple(notes))


def _some(texts: Iterator[str]) -> Iterator[str]:
    """The first texts, up to HELDOUT_CHARACTERS."""
    left = HELDOUT_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)
