"""Held-out records: those of a file that a checkpoint can fairly be scored on, and why not all."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.artifacts import sha256_file
from configs.messages import both
from configs.paths import display, find_dataset
from configs.schema import UserError
from configs.stage_table import DATA_STEMS, PROMPTS, STAGE_TABLE, heldout_file
from dataset.mix.split_report import FEW_HELDOUT
from dataset.records.files import numbered_records
from dataset.records.keys import split_of
from evaluation.intervals import Metric
from evaluation.provenance import Trained, is_held_out_by_a_mix, is_of_the_same_mix, not_trained_on
from evaluation.questions import category_of

HALVES = {
    "test": "the half that no trainer reads and no validation curve is drawn from",
    "validation": "the half that settings may have been chosen by; no test half in this file",
}
"""Value of a record's `split` -> what is printed about it. The first of these that a file has is
the half to evaluate on."""
FIELD_OF_DATA = {"documents": "text", "conversations": "conversations", "pairs": "chosen", PROMPTS: "conversations"}
"""Kind of data -> the field that each of its records has."""
SHAPES = {"text": "raw text", "conversations": "a conversation", "chosen": "a pair of answers"}
NEARLY_ALL = 0.9
"""A file counts as training data if at least this share of its records was trained on."""

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Heldout:
    """Held-out records of one file."""

    path: Path
    sha256: str
    split: str
    """`test` or `validation`; `all` if the file has no halves."""
    records: Records
    notes: list[str]
    """Lines that say what was left out, and why."""
    counts: Counter[str]
    """Category -> its records in both halves of the file that were not trained on."""


def read_heldout(path: Path, stage: str, trained: Trained, max_samples: int, seed: int) -> Heldout:
    """The records of a file to evaluate on: those of one half (`HALVES`), without those that the
    checkpoint was trained on.

    Args: max_samples: at most so many of each category and kind, drawn by `seed`; 0: all.
    Raises: UserError if the records have another shape, if the file is (nearly) all training data
    of the checkpoint or may be, or if it has nothing to evaluate on.
    """
    path = find_dataset(path)
    digest = sha256_file(path)
    _refuse_training_file(path, digest, trained)
    found = _of_shape(path, stage)
    split = next((name for name in HALVES if name in {split_of(record) for record in found}), "all")
    notes: list[str] = []
    # A small mix may hold no record out. That is no mistake, and the pipeline continues.
    if not found and is_held_out_by_a_mix(path):
        notes.append(
            both(f"{display(path)}: the mix held no record out: trained on, and not judged", "没有留出记录，不做评测")
        )
        return Heldout(path, digest, split, [], notes, Counter())
    if not found:
        raise UserError(
            f"{display(path)}: no record to evaluate on. Give another --data_path.",
            "没有可评测的记录：请换 --data_path",
        )
    notes += _doubts(path, trained)
    # Records to score are of one half. `counts`, which `without_few` reads, are of both.
    unseen = not_trained_on(found, trained.keys)
    records, all_of_half = ([r for r in part if split in ("all", r.get("split"))] for part in (unseen, found))
    if left_out := len(all_of_half) - len(records):
        _refuse_nearly_all(path, left_out, len(all_of_half))
        notes.append(
            both(
                f"{display(path)}: {left_out} of {len(all_of_half)} records left out: the model was trained on them",
                f"其中 {left_out} 条模型训练时见过，不计入评测",
            )
        )
    counts = Counter("preference" if STAGE_TABLE[stage].data == "pairs" else category_of(record) for record in unseen)
    return Heldout(path, digest, split, _sampled(records, max_samples, seed), notes, counts)


def _of_shape(path: Path, stage: str) -> Records:
    """All records of a file. Raises: UserError with the first line that has another shape."""
    field, records = FIELD_OF_DATA[STAGE_TABLE[stage].data], []
    for number, record in numbered_records(path):
        if field not in record:
            # Every record has one of the three fields, so the message can say what this one is.
            other = next(data for data, shape in FIELD_OF_DATA.items() if shape in record)
            raise UserError(
                f"{display(path)}:{number}: {SHAPES[FIELD_OF_DATA[other]]}, but --stage {stage} is evaluated on records of "
                f"{SHAPES[field]} (`{field}`). Give another --data_path, or weights of --stage {DATA_STEMS[other]}.",
                "记录格式与该阶段不符：请换 --data_path 或 --stage",
            )
        records.append(record)
    return records


def _refuse_training_file(path: Path, digest: str, trained: Trained) -> None:
    """Raises: UserError if the file is one of the checkpoint's training files."""
    if any(source.sha256 == digest for source in trained.sources):
        raise UserError(
            f"{display(path)}: this checkpoint was trained on this very file, so a score on it means nothing. "
            "Give a held-out file with --data_path.",
            "这是训练数据，得分没有意义：请用 --data_path 指定留出数据",
        )


def _refuse_nearly_all(path: Path, seen: int, total: int) -> None:
    """Raises: UserError if (nearly) all records of the file were trained on."""
    if seen >= NEARLY_ALL * total:
        share = "every one" if seen == total else str(seen)
        raise UserError(
            f"{display(path)}: this checkpoint was trained on {share} of its {total} records, so a score on them "
            "means nothing. Give a held-out file with --data_path.",
            f"{total} 条中有 {seen} 条训练时见过，得分没有意义：请用 --data_path 指定留出数据",
        )


def _doubts(path: Path, trained: Trained) -> list[str]:
    """A line of doubt if it is not fully known what the checkpoint was trained on; else none.

    Raises: UserError if, in addition, another mix held these records out: the checkpoint's own mix
    has most likely put some of them into its training data.
    """
    if not trained.lacking or is_of_the_same_mix(path, trained.sources):
        return []
    if is_held_out_by_a_mix(path):
        raise UserError(
            f"{display(path)}: held out by another mix than this checkpoint was trained on, and which of these records it "
            f"has seen can't be told ({trained.lacking}). Train it on this mix: bash scripts/run.sh; or give --data_path a "
            "file that it has not seen.",
            "数据已重新混合，无法判断哪些记录训练时见过：请重新训练或换 --data_path",
        )
    return [
        both(
            f"{display(path)}: whether any of it was trained on can't be told ({trained.lacking})",
            "无法判断其中是否有训练时见过的记录",
        )
    ]


def _sampled(records: Records, max_samples: int, seed: int) -> Records:
    """At most so many records of each category and kind; 0: all."""
    if not max_samples:
        return records
    # Each kind is drawn apart, or a small one might not come at all.
    by_kind: dict[tuple[str, str], Records] = defaultdict(list)
    for record in records:
        by_kind[category_of(record), str(record.get("kind", ""))].append(record)
    choose = random.Random(seed)
    return [record for kept in by_kind.values() for record in choose.sample(kept, min(max_samples, len(kept)))]


def chats_beside(path: Path) -> Path | None:
    """The held-out chats of the mix in the folder of other held-out records: they show what a
    training did to the answers. None if there are none."""
    chats = path.with_name(path.name.replace("dpo", "sft") if "dpo" in path.name else heldout_file("conversations"))
    return chats if chats != path and chats.exists() else None


def without_few(metrics: dict[str, Metric], counts: Mapping[str, int], notes: list[str]) -> dict[str, Metric]:
    """The metrics without the accuracies of categories that have fewer than `FEW_HELDOUT` held-out
    records.

    Args: counts: held-out records of each category. notes: gets a line for each such category.
    """
    left = dict(metrics)
    for category, count in sorted(counts.items()):
        # `accuracy_math` and the kinds below it, `accuracy_math_word`.
        prefix = "preference_accuracy" if category == "preference" else f"accuracy_{category}"
        gone = [name for name in left if name == prefix or name.startswith(f"{prefix}_")]
        if gone and count < FEW_HELDOUT:
            left = {name: metric for name, metric in left.items() if name not in gone}
            notes.append(
                both(
                    f"{category}: {count} held-out records here, fewer than {FEW_HELDOUT}: no accuracy is printed",
                    f"此处只有 {count} 条留出记录，不给出准确率",
                )
            )
    return left
