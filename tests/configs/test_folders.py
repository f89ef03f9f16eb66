"""A folder of output appears whole or not at all, and never in place of other things."""

from pathlib import Path

import pytest

from configs import folders
from configs.folders import new_folder
from configs.schema import UserError

FILE = "config.json"


def is_ours(name: str) -> bool:
    """The one file that these tests write."""
    return name == FILE


def write(path: Path, text: str) -> None:
    """Make the folder with this text in it."""
    with new_folder(path, is_ours) as folder:
        (folder / FILE).write_text(text)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "export"
    with pytest.raises(KeyError), new_folder(path, is_ours) as folder:
        (folder / FILE).write_text("{}")
        raise KeyError
    assert not list(tmp_path.iterdir())
    for text in ("first", "second"):
        write(path, text)
        assert (path / FILE).read_text() == text
    with pytest.raises(KeyError), new_folder(path, is_ours):
        raise KeyError
    assert (path / FILE).read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_an_older_folder_stays_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "export"
    write(path, "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("no room")
        return rename(self, target)

    monkeypatch.setattr(folders.Path, "rename", failing)
    with pytest.raises(UserError):
        write(path, "new")
    assert (path / FILE).read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_is_not_in_the_new_folder(tmp_path: Path) -> None:
    leftover = tmp_path / ".export.tmp"
    leftover.mkdir()
    (leftover / "half.bin").write_text("x")
    write(tmp_path / "export", "new")
    assert [path.name for path in (tmp_path / "export").iterdir()] == [FILE]
    assert not leftover.exists()


@pytest.mark.parametrize("name", ["", "photo.png"])
def test_other_things_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "photo.png").write_text("x")
    with pytest.raises(UserError, match=r"holds other things \(photo\.png\)"), new_folder(tmp_path / name, is_ours):
        raise AssertionError
    assert (tmp_path / "photo.png").read_text() == "x"
