"""Content hashes of files. A file whose size and time are as before is not read again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.artifacts import read_json, sha256_file, write_json
from configs.schema import UserError


class Hashes:
    """The hashes that one run knows, kept in a file for the next call."""

    def __init__(self, path: Path, bases: Mapping[str, Path]) -> None:
        """Args: path: where the hashes are kept. bases: name -> folder, so that a moved folder
        stays known."""
        self._path, self._bases = path, bases
        self._known: dict[str, dict[str, Any]] = read_notes(path)
        self._changed = False

    def label(self, path: Path) -> str:
        """A file's name in records: below a base, such as `out/pretrain_192.pth`, else absolute."""
        path = path.absolute()
        for name, base in self._bases.items():
            if path.is_relative_to(base.absolute()):
                return f"{name}/{path.relative_to(base.absolute()).as_posix()}"
        return str(path)

    def locate(self, label: str) -> Path:
        """The file of a label."""
        name, _, rest = label.partition("/")
        return self._bases[name] / rest if name in self._bases else Path(label)

    def content(self, path: Path) -> dict[str, Any] | None:
        """A file's size in bytes, its time and its SHA-256; None if there is no such file."""
        try:
            status = path.stat()
        except OSError:
            return None
        stamp = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        label = self.label(path)
        known = self._known.get(label)
        if known is None or {key: known[key] for key in stamp} != stamp:
            known = {**stamp, "sha256": sha256_file(path)}
            self._known[label] = known
            self._changed = True
        return known

    def sha256(self, path: Path) -> str:
        """The SHA-256 of a file's content; empty if there is no such file."""
        known = self.content(path)
        return known["sha256"] if known else ""

    def save(self) -> None:
        """Keep what was read for the next call."""
        if self._changed:
            write_json(self._path, self._known)


def read_notes(path: Path) -> dict[str, Any]:
    """A JSON object of `OUT_DIR/stages/`; an empty one if the file is missing.

    Raises: UserError if it is damaged.
    """
    if not path.exists():
        return {}
    remedy, chinese = "Delete it, then rerun: the stage is looked at afresh.", "阶段记录损坏：请删除，然后重新运行"
    notes = read_json(path, remedy, chinese)
    if not isinstance(notes, dict):
        raise UserError(f"{path}: can't be read (it is no JSON object). {remedy}", chinese)
    return notes
