"""Messages about the held-out split, and the error if too few records are left to train on.

Shapes: N records (rejected ones included).
"""

from collections.abc import Sequence

import numpy as np

from configs.messages import both, warning
from configs.paths import CONFIG_DIR, display
from configs.schema import CATEGORIES, MixConfig, UserError
from dataset.mix.heldout import LARGEST_SHARE
from dataset.mix.scan import HELDOUT_MARKS, Scan
from dataset.mix.sources import Source
from dataset.mix.table import Flags, Sides, Table, is_heldout, is_training
from dataset.records.keys import SPLITS

LEAST_LEFT = 0.1
"""If less than this share of a file or a category is left to train on, it is an error."""
FEW_HELDOUT = 10
"""With fewer held-out records `evaluate_stage.py` prints no accuracy."""


def odd_columns(scan: Scan, sources: Sequence[Source]) -> list[str]:
    """A message for each file whose fields `group` or `split` hold values that we do not know."""
    notes = []
    for source, found in zip(sources, scan.of_source, strict=True):
        groups, splits = found.odd_groups, found.odd_splits
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


def check_what_is_left(
    table: Table,
    scan: Scan,
    sources: Sequence[Source],
    sides: Sides,
    leaks: Flags,
    notes: list[str],
) -> None:
    """Raises: UserError if a user's file or a category has too few training records left."""
    # Check each file of the user first, then each category.
    marked = np.isin(table.splits, HELDOUT_MARKS)
    lost = leaks | is_heldout(sides)
    for source, span in zip(sources, scan.spans(), strict=True):
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
        _check_left(display(source.path), sides[span], lost[span], leaks[span], notes)
    for index in table.used():
        mine = table.category == index
        _check_left(f"category {CATEGORIES[index]}", sides[mine], lost[mine], leaks[mine], [])


def _check_left(
    what: str,
    sides: Sides,
    lost: Flags,
    leaks: Flags,
    notes: list[str],
) -> None:
    """Check how many of these records are left to train on. If many are lost, warn the user.

    Raises: UserError if the share that is left is less than LEAST_LEFT.
    """
    left, gone = int(np.count_nonzero(is_training(sides))), int(np.count_nonzero(lost))
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


def tell_heldout(table: Table, sources: Sequence[Source], sides: Sides, config: MixConfig, notes: list[str]) -> None:
    """Add a message for each category with files from the user: how many records are held out."""
    for name in dict.fromkeys(source.category for source in sources if not source.is_sample):
        mine = table.own & table.of(name)
        heldout = int(np.count_nonzero(is_heldout(sides[mine])))
        total = int(np.count_nonzero(is_training(sides[mine]))) + heldout
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
