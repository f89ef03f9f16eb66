"""Finds the files of the mix and their categories, and reads the records of these files."""

import fnmatch
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from configs.artifacts import atomic_write, sha256_file
from configs.paths import CONFIG_DIR, IDENTITY_MARK, IDENTITY_SAMPLE, IDENTITY_SOURCE, display
from configs.schema import CATEGORIES, MixConfig, UserError
from dataset.records.files import is_source, read_items
from dataset.records.keys import split_of
from dataset.records.lines import Item, decode_item
from dataset.records.record import BadRecord, PreferenceRecord, Record, TextRecord
from dataset.records.shapes import parse_record
from dataset.samples.files import SAMPLE_FILES, sample_names, write_samples

NO_PAIR, A_PAIR, RAW_TEXT = "not a preference pair", "a preference pair", "raw text in a chat category"
WRONG_CATEGORY = {NO_PAIR: "general", A_PAIR: "preference", RAW_TEXT: "corpus"}
"""The reason why a record does not fit its category -> a category that it fits."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file to mix in."""

    path: Path
    category: str
    """One of CATEGORIES."""
    is_sample: bool = False
    """True: a bundled sample. False: a file of the user."""


@dataclass(frozen=True, slots=True)
class Sources:
    """All files of a source folder."""

    files: list[Source]
    left_out: dict[str, str]
    """File name -> why it is not read."""
    bundled: dict[str, int] = field(default_factory=dict)
    """For each category with files from the user: the training records in its bundled samples."""


def find_sources(source_dir: Path, sample_dir: Path, config: MixConfig, categories: Mapping[str, str]) -> Sources:
    """The user's files with their categories, and samples for each category without such a file.

    If the user has no identity file, the bundled one is copied into the folder.

    Args: categories: name pattern -> category, as in the `files` block of configs/mixture.yaml.
    Raises: UserError for a file whose category is unclear; the message shows the line to add.
    """
    if not source_dir.is_dir():
        raise UserError(
            f"{display(source_dir)}: no such folder. Create it and put your JSONL files there, or check --source_dir.",
            "没有这个目录：请新建并放入 JSONL 文件，或检查 --source_dir",
        )
    files: list[Source] = []
    left_out: dict[str, str] = {}
    for path in sorted(source_dir.iterdir()):
        if path.name.startswith(".") or _is_bundled_identity(path):
            continue
        if path.is_dir() or not is_source(path):
            left_out[path.name] = "a folder" if path.is_dir() else "not .jsonl, .json or .csv (.gz, .xz)"
            continue
        if not path.name.isprintable():  # line ends, and bytes that are not UTF-8
            raise UserError(
                f"{display(source_dir)}/{path.name!r}: its name holds what is no text. Rename the file.",
                "文件名不是可显示的文本（例如 GBK 编码）：请改名",
            )
        category = "identity" if path.name == IDENTITY_SOURCE else _category_of(path, categories)
        if category == "skip":
            left_out[path.name] = "skip, says configs/mixture.yaml"
        elif not _is_wanted(category, config):
            left_out[path.name] = f"the target of {category} is 0"
        else:
            files.append(Source(path, category))
    # The user's own identity data replaces the bundled file.
    own = {source.category for source in files}
    if "identity" in own and _is_bundled_identity(source_dir / IDENTITY_SOURCE):
        left_out[IDENTITY_SOURCE] = "bundled; your own identity file takes its place 已由您的身份数据替换"
    if "identity" not in own and _is_wanted("identity", config):
        files.append(_bundled_identity(source_dir))
    # Take bundled samples for the categories without a file from the user.
    wanted = {name for name in CATEGORIES if _is_wanted(name, config)}
    names = sample_names(wanted, own)
    shrinking = any(getattr(config, name) for name in wanted - own if name != "identity")
    # If the user has files of a category, its samples are not used. They are only counted.
    beside = sample_names(wanted & own, ()) if shrinking else []
    written = write_samples(sample_dir, [*names, *(name for name in beside if name not in names)])
    files += [Source(written[name], SAMPLE_FILES[name].category, is_sample=True) for name in names]
    files.sort(key=lambda source: (CATEGORIES.index(source.category), source.path.name))
    counts: Counter[str] = Counter()
    for name in beside:
        counts[SAMPLE_FILES[name].category] += _num_training_records(written[name])
    return Sources(files, left_out, dict(counts))


def _num_training_records(sample: Path) -> int:
    """Records of a bundled file that are not marked as held out."""
    with sample.open(encoding="utf-8") as lines:
        return sum(split_of(json.loads(line)) in (None, "train") for line in lines)


def _is_wanted(category: str, config: MixConfig) -> bool:
    """Whether the mix takes a category. A target of 0 means none; for the corpus it means all."""
    return category == "corpus" or bool(getattr(config, category))


def _is_bundled_identity(path: Path) -> bool:
    """Whether a file is the bundled identity file, as the mix wrote it, without changes."""
    if path.name != IDENTITY_SOURCE or not path.is_file():
        return False
    mark = path.with_name(IDENTITY_MARK)
    written = mark.read_text(encoding="utf-8").strip() if mark.exists() else ""
    return sha256_file(path) in {written, sha256_file(IDENTITY_SAMPLE)}


def _bundled_identity(source_dir: Path) -> Source:
    """The bundled identity file. It is copied into the source folder if that is allowed."""
    path, bundled = source_dir / IDENTITY_SOURCE, sha256_file(IDENTITY_SAMPLE)
    if path.exists() and sha256_file(path) == bundled:
        return Source(path, "identity", is_sample=True)
    if not os.access(source_dir, os.W_OK):
        return Source(IDENTITY_SAMPLE, "identity", is_sample=True)
    for target, content in (
        (path, IDENTITY_SAMPLE.read_bytes()),
        (path.with_name(IDENTITY_MARK), f"{bundled}\n".encode()),
    ):
        with atomic_write(target, "wb") as file:
            file.write(content)
    return Source(path, "identity", is_sample=True)


def _category_of(path: Path, categories: Mapping[str, str]) -> str:
    """The category of a file, by its name, or `skip`. Raises: UserError if no pattern matches."""
    for pattern, category in categories.items():
        if path.name == pattern or fnmatch.fnmatchcase(path.name.lower(), pattern.lower()):
            if category not in (*CATEGORIES, "skip"):
                where = f"{display(CONFIG_DIR / 'mixture.yaml')}: files: {pattern}: {category}"
                raise UserError(
                    f"{where}: no such category. Use {', '.join(CATEGORIES)} or skip.", "没有这个类别：请用所列之一"
                )
            return category
    raise UserError(
        f"{display(path)}: its name tells no category. Add the line `  {files_line(path.name, 'general')}` (or "
        f"{', '.join(CATEGORIES[1:])}, or skip) under `files:` in {display(CONFIG_DIR / 'mixture.yaml')}.",
        "从文件名看不出类别：请在 files: 下加上这一行",
    )


def files_line(name: str, category: str) -> str:
    """The line of the `files` block that gives a category to this file and no other.

    The name is quoted if YAML needs it.
    """
    pattern = re.sub(r"([*?[])", r"[\1]", name)  # these three are wildcards: [*] means a plain *
    try:
        is_plain = yaml.safe_load(f"{pattern}: {category}") == {pattern: category}
    except yaml.YAMLError:
        is_plain = False
    return f"{pattern if is_plain else json.dumps(pattern, ensure_ascii=not pattern.isprintable())}: {category}"


def file_state(path: Path) -> tuple[int, int]:
    """Size in bytes and mtime in nanoseconds of a file. Raises: UserError when it can't be read."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(
            f"{display(path)}: can't be read ({error.strerror}). Check the path and its permissions.",
            "无法读取：请检查路径和权限",
        ) from error
    return stat.st_size, stat.st_mtime_ns


# --- the records of a source ----------------------------------------------------------------------


Entry = tuple[int, int, Item, Record | BadRecord]
"""The number of the record in its file (from 0; bad records count too); its line (from 1); the line
or row itself; the record, or the reason why it can't be used."""


def read_source(
    source: Source,
    config: MixConfig,
    on_bytes: Callable[[memoryview], object] | None = None,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[Entry]:
    """The records of a source, checked against its category. Both passes of the mix read with it.

    Args: on_bytes: is called with each block of the file that is read. wanted: says for a record
    number whether to parse this record (default: parse all). Skipping a record is fast.
    """
    fill = _placeholders(source, config)
    for position, (line, item) in enumerate(read_items(source.path, on_bytes)):
        if wanted is not None and not wanted(position):
            continue
        record: Record | BadRecord
        try:
            record = _record_of(item, source, fill)
        except BadRecord as problem:
            record = problem
        yield position, line, item, record


def _placeholders(source: Source, config: MixConfig) -> dict[str, str]:
    """Placeholder -> what replaces it, in identity files and bundled samples only.

    In other files of the user, `{{name}}` may be part of a program, so it is not replaced.
    """
    if source.category == "identity" or source.is_sample:
        return {"{{name}}": config.name, "{{name_lower}}": config.name.lower(), "{{author}}": config.author}
    return {}


def _record_of(item: Item, source: Source, fill: Mapping[str, str]) -> Record:
    """The record of a line. Raises: BadRecord if it is bad or does not fit the category."""
    record = parse_record(decode_item(item, fill))
    if source.category == "preference":
        if not isinstance(record, PreferenceRecord):
            raise BadRecord(RAW_TEXT if isinstance(record, TextRecord) else NO_PAIR)
    elif isinstance(record, PreferenceRecord):
        raise BadRecord(A_PAIR)
    elif source.category != "corpus" and isinstance(record, TextRecord):
        raise BadRecord(RAW_TEXT)
    return record
