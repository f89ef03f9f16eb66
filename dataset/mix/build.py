"""From the user's sources to the three training sets, their held-out parts and the manifest.

The sources are read twice, and neither pass keeps texts in memory. The first pass checks every
record and keeps a few hashes of it (scan.py). These hashes are enough to decide which records are
held out, dropped, sampled or repeated (choice.py). The second pass writes the files (write.py). The
mix needs about 40 bytes of memory for each record, and memory for one bucket of the shuffle.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from configs.artifacts import atomic_write, fingerprint, write_error, write_json
from configs.locks import Lock, take_lock
from configs.paths import display
from configs.progress import Progress, progress_bar
from configs.schema import MixConfig, UserError
from dataset.mix.choice import Choice, choose
from dataset.mix.drop_reasons import DUPLICATE, LEAK, NOT_SAMPLED, REJECTS_FILE
from dataset.mix.identity import own_identity
from dataset.mix.scan import Scan, SourceScan, scan_sources
from dataset.mix.sources import Source, Sources, file_state
from dataset.mix.table import is_heldout, is_training
from dataset.mix.write import MANIFEST_FILE, OUTPUTS, write_outputs


def build_mix(sources: Sources, config: MixConfig, output_dir: Path) -> dict[str, Any]:
    """Mix the sources into `output_dir`. The manifest is written last.

    Returns: the manifest.
    Raises: UserError if sources can't be used or files can't be written. The files of an older mix
    are replaced only when the new files are ready.
    """
    files = sources.files
    with output_lock(output_dir):
        _remove_leftovers(output_dir)
        identity, config, notes = own_identity(files, config)
        total = 2 * sum(file_state(source.path)[0] for source in files)  # bytes; each file is read twice
        with progress_bar(total, desc="mix", unit="B", unit_scale=True) as bar:
            scan = _scan_with_rejects(files, config, output_dir / REJECTS_FILE, bar)
            choice = choose(scan, files, config, sources.bundled)
            outputs = write_outputs(scan, choice, files, config, output_dir, bar)
        manifest = _manifest(scan, choice, sources, config, outputs)
        manifest |= {"identity": identity, "notes": [*notes, *choice.notes]}
        write_json(output_dir / MANIFEST_FILE, manifest)
    return manifest


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that no second mix writes there.

    Raises: UserError if another mix holds the lock, or if nothing can be written to the folder.
    """
    path = folder / ".mix.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            if take_lock(file.fileno()) is Lock.TAKEN:
                raise UserError(
                    f"{display(folder)}: another mix is writing there. Wait for it, or give --output_dir.",
                    "另一个混合任务正在写入：请等它结束，或用 --output_dir",
                )
            yield
    except OSError as error:
        raise write_error(folder, error) from error


def _remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of a mix that was killed. They can be as large as the mix."""
    for name in (*OUTPUTS.values(), REJECTS_FILE, MANIFEST_FILE):
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def _scan_with_rejects(sources: Sequence[Source], config: MixConfig, path: Path, bar: Progress) -> Scan:
    """The first pass, with the rejects file.

    Raises: UserError about bad records. Even then the rejects file is written.
    """
    # `atomic_write` keeps a file only if its block ends without an error. So we catch the error,
    # and raise it after the block.
    problem: UserError | None = None
    with atomic_write(path) as rejects:
        try:
            scan = scan_sources(sources, config, rejects, bar)
        except UserError as error:
            problem = error
    if problem:
        raise problem
    return scan


def _manifest(
    scan: Scan, choice: Choice, sources: Sources, config: MixConfig, outputs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The manifest of a mix, as docs/formats.md describes it."""
    settings = asdict(config)
    entries = [
        _source_entry(source, found, choice, span)
        for source, found, span in zip(sources.files, scan.of_source, scan.spans(), strict=True)
    ]
    return {
        "seed": config.seed,
        "settings": settings,
        "fingerprint": fingerprint([settings, [[e["file"], e["category"], e["sha256"]] for e in entries]]),
        "sample_factor": choice.factor,
        "categories": {
            name: {**asdict(tally), "repetition": round(tally.repetition, 4)} for name, tally in choice.tallies.items()
        },
        "sources": entries,
        "left_out": sources.left_out,
        "outputs": outputs,
    }


def _source_entry(source: Source, found: SourceScan, choice: Choice, span: slice) -> dict[str, Any]:
    """What happened to the records of one source. `span`: their rows in each column."""
    copies, sides = choice.copies[span], choice.sides[span]
    kept = int(np.count_nonzero(copies))
    decided = {
        DUPLICATE: int(choice.duplicates[span].sum()),
        LEAK: int(choice.leaks[span].sum()),
        NOT_SAMPLED: int(np.count_nonzero(is_training(sides) & (copies == 0))),
    }
    return {
        "file": source.path.name,
        "category": source.category,
        "sample": source.is_sample,
        "sha256": found.digest,
        "format": found.format,
        "read": found.count,
        "kept": kept,
        "heldout": int(np.count_nonzero(is_heldout(sides))),
        "foreign_marks": {name: found.marked[name] for name in ("records", "marks")},
        "dropped": found.rejections.counts() | {reason: count for reason, count in decided.items() if count},
        "repetition": round(int(copies.sum()) / kept, 4) if kept else 0.0,
    }
