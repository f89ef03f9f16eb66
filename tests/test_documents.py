"""The documents: narrow lines, README.md and README.zh-CN.md say the same, and named files
exist."""

import re
import subprocess
import unicodedata
from fnmatch import fnmatch
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

from configs.paths import ROOT

COLUMNS = 100
"""Widest line of prose; a Chinese character counts two."""


def files_of_the_repository() -> list[str]:
    """All files that git tracks or would track, as paths from the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git here that could list the files", allow_module_level=True)
    return [name for name in listed.splitlines() if (ROOT / name).exists()]


FILES = files_of_the_repository()
FOLDERS = {parent.as_posix() for name in FILES for parent in Path(name).parents}
DOCUMENTS = sorted(name for name in FILES if name.endswith(".md"))
READMES = ("README.md", "README.zh-CN.md")

LINK = re.compile(r"!?\[[^\]]*\]\([^)]*\)|<?https?://[^\s>]+>?")
CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
TREE = re.compile(r"<!-- tree -->.*<!-- end of the tree -->", re.DOTALL)
HEADING = re.compile(r"^(#+) .+$", re.MULTILINE)

FILE_ENDINGS = (".py", ".sh", ".md", ".yaml", ".json", ".jsonl", ".rs", ".pkl", ".svg", ".toml", ".pth", ".pt", ".npy")
MADE_AT_RUN_TIME = (
    ".venv", "data/chinese", "data/processed", "data/samples", "out", "tf_dir", "gpu_report", "*_tokens", "validation",
    "*_chinese*.jsonl", "rejects.jsonl", "mix_manifest.json", "manifest.json", ".checked.json", "eval_results.jsonl",
    "*.pth", "identity_conversations.jsonl", "my.jsonl", "results.json", "report.md", "state.pt",
    "config.json", "generation_config.json", "minillm.json", "verify.json", "post_training.jsonl",
)  # fmt: skip
"""Folders and files that a run makes; all below such a folder is also made by it."""
FOREIGN = ("pretrain_hq.jsonl", "/mnt/c", "~/minillm")
"""Files of other projects, and places outside the repository."""
PLANNED = ("trainer/train_lora.py", "train_lora.py")
"""Names in examples of how to add something."""


def read(name: str) -> str:
    """The text of a document."""
    return (ROOT / name).read_text(encoding="utf-8")


def width(line: str) -> int:
    """Columns of a line on a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def blank(found: "re.Match[str]") -> str:
    """As many empty lines as were found, so that the numbers of all other lines stay."""
    return "\n" * found[0].count("\n")


def prose_of(text: str) -> list[str]:
    """The lines of a document. Code blocks, HTML comments and tables are left empty."""
    without_code = COMMENT.sub(blank, FENCE.sub(blank, text))
    return ["" if line.lstrip().startswith("|") else line for line in without_code.split("\n")]


def has_link_that_is_too_long(line: str) -> bool:
    """Whether a link of this line needs more columns than there are. It can't be broken."""
    return any(width(link[0]) > COLUMNS - 2 for link in LINK.finditer(line))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_prose_has_at_most_100_columns(name: str) -> None:
    for number, line in enumerate(prose_of(read(name)), start=1):
        assert width(line) <= COLUMNS or has_link_that_is_too_long(line), f"{name}:{number}: {width(line)} columns"


# --- both READMEs --------------------------------------------------------------------------------


class Section(NamedTuple):
    """What a section of a README holds apart from its words."""

    level: int
    """Number of `#` before its heading."""
    code: list[str]
    tables: list[tuple[int, int]]
    """Rows and columns of each table."""
    names: set[str]
    """Flags, variables and paths in backticks."""
    figures: list[str]
    """All percentages, in order."""


def sections(text: str) -> list[Section]:
    """The sections of a document in order."""
    headings = list(HEADING.finditer(FENCE.sub(lambda block: " " * len(block[0]), text)))
    ends = [found.start() for found in headings[1:]] + [len(text)]
    return [section(text[found.end() : end], len(found[1])) for found, end in zip(headings, ends, strict=True)]


def section(text: str, level: int) -> Section:
    """What the text under one heading holds."""
    prose = FENCE.sub("", text)
    return Section(
        level=level,
        code=[without_comments(block[0]) for block in FENCE.finditer(text)],
        tables=table_shapes(prose),
        names={found[2] for found in CODE.finditer(prose) if found[2].isascii() and "ADDRESS" not in found[2]},
        figures=re.findall(r"\d[\d.,]*%", prose),
    )


def without_comments(block: str) -> str:
    """A code block without what is written in the reader's language."""
    block = block.replace("本项目的地址", "ADDRESS_OF_THIS_REPOSITORY")
    return "\n".join(re.sub(r"\s+#.*$", "", line) for line in block.split("\n"))


def table_shapes(prose: str) -> list[tuple[int, int]]:
    """Rows and columns of each table."""
    tables: list[list[int]] = [[]]
    for line in prose.split("\n"):
        if line.startswith("|"):
            tables[-1].append(line.count("|") - 1)
        elif tables[-1]:
            tables.append([])
    for columns in tables:
        assert len(set(columns)) <= 1, f"a table whose rows have {set(columns)} columns"
    return [(len(columns), columns[0]) for columns in tables if columns]


def test_both_readmes_have_the_same_sections_commands_tables_names_and_figures() -> None:
    english, chinese = (sections(read(name)) for name in READMES)
    for number, (ours, theirs) in enumerate(zip_longest(english, chinese)):
        assert ours == theirs, f"section {number} of the READMEs, counted from 0"


# --- files that documents name --------------------------------------------------------------------


def named_files(text: str) -> set[str]:
    """Paths in backticks and in code blocks, as far as they look like files or folders of ours."""
    text = TREE.sub("", text)
    spans = [found[2] for found in CODE.finditer(FENCE.sub("", text))]
    blocks = [without_comments(block[0]) for block in FENCE.finditer(text)]
    words = {word.rstrip(",.;:)|\"'").lstrip("(|\"'") for part in (*spans, *blocks) for word in part.split()}
    return {word for word in words if looks_like_a_path(word)}


def looks_like_a_path(word: str) -> bool:
    """Whether a word has the form of a path. Names in capitals stand for anything."""
    if word in FILE_ENDINGS or not re.fullmatch(r"[\w./*~-]+", word) or re.search(r"(^|/)[A-Z_]+(/|$)|NAME", word):
        return False
    return word.endswith(FILE_ENDINGS) or ("/" in word and word.split("/")[0] in FOLDERS)


def is_excused(word: str) -> bool:
    """Whether a path need not exist in a fresh clone."""
    path = Path(word)
    places = [part.as_posix() for part in (path, *path.parents)] + [path.name]
    return word in (*FOREIGN, *PLANNED) or any(fnmatch(place, made) for place in places for made in MADE_AT_RUN_TIME)


def exists(word: str) -> bool:
    """Whether a path is in the tree, from its root or as the end of a longer path.

    `*` stands for anything.
    """
    word = word.rstrip("/")
    return any(fnmatch(place, word) or fnmatch(place, f"*/{word}") for place in (*FILES, *FOLDERS))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_a_document_names_exists(name: str) -> None:
    missing = sorted(word for word in named_files(read(name)) if not is_excused(word) and not exists(word))
    assert not missing, f"{name}: {missing}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_to_a_file_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", FENCE.sub("", read(name))):
        assert "://" in target or (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"
