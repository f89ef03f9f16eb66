"""Replay: rows of the SFT mix beside new rows in every step, so that what the mix taught stays.

A model that learns from new rows alone answers everything as they do: it says its new name when
somebody asks for a poem. Old rows between the new ones prevent that (Robins 1995, "Catastrophic
forgetting, rehearsal and pseudorehearsal").

Where the new rows give the model another name, old conversations that say the old one would teach
the opposite. They are read, but none of their tokens is a target.

Shapes: B rows of a batch, L tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from configs.artifacts import fingerprint
from configs.messages import warning
from configs.paths import DATA_DIR, display, env_path, find_dataset
from configs.schema import UserError
from configs.stage_settings import ReplayConfig
from configs.stage_table import tensor_folder
from dataset.lm_dataset import Batch, SFTDataset, rows_at, target_places
from dataset.mix.identity import another_name
from dataset.records.files import read_records
from dataset.tensors import IGNORE
from dataset.tokenizer import RustBPETokenizer
from evaluation.provenance import mixture_of, names_of
from model.manifest import TrainingFile
from trainer.facts import Facts, checked_manifest, depending_on, with_replayed
from trainer.loop import Rows
from trainer.validation import validation_rows


@dataclass(frozen=True, slots=True)
class Replay:
    """Old rows that a run takes beside its new ones."""

    path: Path
    """Folder of their tensors."""
    share: float
    """Of the rows of each step."""
    names: tuple[str, ...]
    """Conversations that say one of these are no targets."""
    tokenizer: RustBPETokenizer

    def beside(self, new: Rows) -> Rows:
        """The new rows with the old ones."""
        return WithReplay(new, self._without_names(SFTDataset(self.path)), self.share)

    def validation(self) -> dict[str, Rows]:
        """Held-out rows of the mix. Their loss shows what is forgotten."""
        rows = validation_rows(SFTDataset, self.path)
        return {"mix": self._without_names(rows)} if rows is not None and len(rows) else {}

    def _without_names(self, rows: Rows) -> Rows:
        return WithoutNames(rows, self.names, self.tokenizer) if self.names else rows


class WithReplay:
    """New rows and old rows in a fixed proportion. Numbers from `len(new)` on mean old rows."""

    def __init__(self, new: Rows, old: Rows, share: float) -> None:
        """Args: share: of old rows in a step, from 0 to below 1."""
        self.new, self.old, self.share = new, old, share

    def __len__(self) -> int:
        """Rows of an epoch: each new row once, and the old ones that come with them."""
        return with_replayed(len(self.new), self.share)

    def largest(self, count: int) -> np.ndarray:
        """Numbers of rows that need as much memory as any others, (count,)."""
        return self.new.largest(count)

    def rows_of_step(self, step: int, rows_per_step: int, seed: int) -> np.ndarray:
        """Numbers of the rows that a step takes, (rows_per_step,): `share` of them are old.

        Both kinds have an order of their own, which depends on the seed alone.
        """
        # In the list of all rows of all steps, floor(share * p) old rows stand before place p. So
        # old rows lie evenly between new ones, even if a step is a single row.
        places = np.arange(step * rows_per_step, (step + 1) * rows_per_step)
        old_before = np.floor(places * self.share).astype(np.int64)
        is_old = np.floor((places + 1) * self.share).astype(np.int64) > old_before
        numbers = np.empty(rows_per_step, dtype=np.int64)
        numbers[~is_old] = rows_at((places - old_before)[~is_old], len(self.new), seed)
        numbers[is_old] = len(self.new) + rows_at(old_before[is_old], len(self.old), seed)
        return numbers

    def batch(self, indices: np.ndarray) -> Batch:
        """The rows with these numbers (B,), as tensors, in this order."""
        is_old = indices >= len(self.new)
        parts = []
        if not is_old.all():
            parts.append(self.new.batch(indices[~is_old]))
        if is_old.any():
            parts.append(self.old.batch(indices[is_old] - len(self.new)))
        # `parts` has the new rows first. `order` brings each row to its place in `indices`.
        order = torch.from_numpy(np.argsort(np.argsort(is_old, kind="stable"), kind="stable"))
        names = ("input_ids", "labels", "document_ids")
        batch = {name: torch.cat([part[name] for part in parts])[order] for name in names}
        return batch | {"target_places": target_places(batch["labels"])}


class WithoutNames:
    """Rows in which conversations that say one of some names have no targets."""

    def __init__(self, rows: Rows, names: Sequence[str], tokenizer: RustBPETokenizer) -> None:
        self.rows, self.names, self.tokenizer = rows, tuple(names), tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def largest(self, count: int) -> np.ndarray:
        """Numbers of rows that need as much memory as any others, (count,)."""
        return self.rows.largest(count)

    def batch(self, indices: np.ndarray) -> Batch:
        """The rows with these numbers (B,), as tensors."""
        batch = self.rows.batch(indices)
        labels = batch["labels"].clone()  # (B, L)
        for row, documents in enumerate(batch["document_ids"]):
            for document in range(int(documents.max()) + 1):
                inside = documents == document  # (L,)
                text = self.tokenizer.decode(batch["input_ids"][row][inside].tolist())
                if says(text, self.names):
                    labels[row][inside] = IGNORE
        return batch | {"labels": labels, "target_places": target_places(labels)}


def says(text: str, names: Sequence[str]) -> bool:
    """Whether a text says one of the names, in any case."""
    return any(name.casefold() in text.casefold() for name in names)


# --- which rows -----------------------------------------------------------------------------------


def find_replay(facts: Facts) -> tuple[Facts, Replay | None]:
    """The old rows that the settings ask for, and the facts of a run that depends on them.

    Raises: UserError if there are none, or if they do not fit the new rows.
    """
    settings = facts.run.train
    assert isinstance(settings, ReplayConfig)
    if not settings.replay_share:
        return facts, None
    path = Path(settings.replay_path or env_path("DATA_DIR", DATA_DIR) / tensor_folder("conversations"))
    if not path.is_dir():
        raise UserError(
            f"{display(path)}: no such folder. {settings.replay_share:.0%} of each step are rows of the SFT mix, so that the "
            "model keeps what it has learnt. Make them: python scripts/export_embeddings.py sft; give another folder with "
            "--replay_path; or pass --replay_share 0.",
            "没有用于复习的数据：请先运行该命令，或用 --replay_path 指定，或加 --replay_share 0",
        )
    manifest = checked_manifest(path, facts.run, facts.tokenizer, facts.runtime)
    if manifest.max_length != facts.data.max_length:
        raise UserError(
            f"{display(path)}: rows of {manifest.max_length} tokens, but {display(facts.tensors_path)} has rows of "
            f"{facts.data.max_length}. Pass --max_seq_len {manifest.max_length}, or --replay_share 0.",
            f"两份数据的行长不同：请用 --max_seq_len {manifest.max_length}，或加 --replay_share 0",
        )
    source = TrainingFile(path=manifest.source.path, records=manifest.source.records, sha256=manifest.source.sha256)
    names = names_to_leave_out(facts, settings, path, source)
    content = fingerprint([manifest.fingerprint, settings.replay_share, names])
    facts = replace(depending_on(facts, "replay", content, source), replay_share=settings.replay_share)
    left_out = f"; conversations that say {' or '.join(names)} are no targets" if names else ""
    facts.say(f"replay: {settings.replay_share:.0%} of each step's rows are of {display(path)}{left_out}")
    return facts, Replay(path, settings.replay_share, names, facts.tokenizer)


def names_to_leave_out(facts: Facts, settings: ReplayConfig, path: Path, source: TrainingFile) -> tuple[str, ...]:
    """The names that old conversations must not teach: as a flag gives them, else those of the mix,
    if the new records give the model another name.

    Args: path: the folder with the old rows. source: the record file that they were made from.
    """
    if settings.replay_without:
        return tuple(name.strip() for name in settings.replay_without.split(",") if name.strip())
    name, author = names_of(mixture_of(path.parent, [source]), ("", ""))
    answers = []
    try:
        for record in read_records(find_dataset(Path(facts.data.source.path))):
            answers += [str(turn["content"]) for turn in record["conversations"] if turn["role"] == "assistant"]
    except UserError:
        # Tensors are enough to train on. But a new name that is only in them would be taught beside
        # the old one.
        facts.say(
            warning(
                f"{facts.data.source.path}: can't be read, so whether it gives the model another name is not known. If it "
                "does, pass --replay_without OLD_NAME.",
                "读不到原始记录，无法判断是否改名：若改名，请用 --replay_without 写出旧名字",
            )
        )
        return ()
    new = another_name(answers, name, author)
    return tuple(old for old in (name, author) if old and old not in new) if new else ()
