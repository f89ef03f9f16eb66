"""From the user's sources to the three training sets, their held-out parts and the manifest.

The sources are read twice, and neither pass holds texts. The first pass checks every record and
keeps a few hashes of it (scan.py). On those hashes alone it is decided what is held out, dropped,
sampled or repeated (choice.py). The second pass writes (write.py). Memory is some 40 bytes a record
plus one bucket of the shuffle, however large the files are.
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
    """Mix the sources into `output_dir`; the manifest, which is also returned, is written last.

    Raises: UserError. The files of an older mix stay as they were unless the new ones are ready to
    replace them.
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
    """Keep a second mix out of the same folder. Raises: UserError when there is one, or the folder
    can't be written."""
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
    """Temporary files of a mix that was killed; they can be as large as the mix."""
    for name in (*OUTPUTS.values(), REJECTS_FILE, MANIFEST_FILE):
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def _scan_with_rejects(sources: Sequence[Source], config: MixConfig, path: Path, bar: Progress) -> Scan:
    """The first pass. The rejects file is there afterwards, also when the pass ends with an error
    about bad records."""
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
    """What was made from what; docs/formats.md describes it."""
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
    """What became of the records of one source, which stand at `span`."""
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
