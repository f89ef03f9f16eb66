"""Simple Chinese prose for pretraining, made from the grammars in the `.txt` files here.

A grammar file holds word tables and scenes:

    table fruit: name look taste      columns, then one row a line, cells divided by " | "
    苹果 | 圆圆的/红红的 | 又脆又甜     "/" divides phrasings of a cell
    scene orchard                      a story type
    @f fruit                           f becomes a row: {f} is its first cell, {f.taste} another
    @g fruit season={f.season}         ... a row with the value among the phrasings of that column;
                                       several conditions in a row: "season=春天 bed=是"
    @day = [周末/放学后]               a phrase that is drawn once and then stays the same
    - 一句话，{f}[很/真]甜。            the next sentence of the story
    | 另一种说法。                      ... another phrasing of it
    ? 可有可无的一句。                   ... a sentence that half of the stories leave out

A line "same 赶紧/连忙" lists words of one meaning. Each time one of them comes up, one of the list
is drawn in its place. A word after "~" can be drawn, but is never replaced. "{joy}" names a table
of one column; "¶" is a line break. Within a story the phrasings of a cell are dealt like cards:
none comes twice before all have come once. `child` is a made-up name with its pronoun
({a}, {a.ta}). `someone` is such a child or 我. {they} means all people of the story. A name that
has just come often becomes a pronoun, but not inside quotation marks, and only if no other person
of the story has the same pronoun.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SEED = 20_240
TARGET_BYTES = 3_150_000
"""UTF-8 bytes of all stories together."""
MIN_CHARS, MAX_CHARS = 80, 600
"""Characters of a story."""
MAX_REPEATS = 6
"""How often a long sentence may come in all stories together."""
LONG_SENTENCE = 8
"""Characters of a long sentence, without quotation marks around it."""
REDRAWS = 12
"""Attempts at a sentence, and at a story. After that a scene is used up."""
OPTIONAL_SHARE = 0.5
"""How often an optional sentence is told."""
PRONOUN_SHARE = 0.4
"""How often a child that was named just before becomes a pronoun; half as often for adults."""

_SENTENCE_END = re.compile(r"[。！？\n]")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([^{}]+)\}")

Row = dict[str, tuple[str, ...]]  # column -> phrasings


@dataclass(frozen=True)
class Table:
    """Rows of words of one kind. A bare {slot} shows the first column."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Step:
    """One part of a story, mostly a sentence: its phrasings, one of which is drawn."""

    phrasings: tuple[str, ...]
    optional: bool


@dataclass(frozen=True)
class Scene:
    """A story type: what to draw first (name, recipe), then the sentences in order."""

    name: str
    picks: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Grammar:
    """All tables, scenes and groups of synonyms of the grammar files."""

    tables: dict[str, Table]
    scenes: tuple[Scene, ...]
    synonyms: dict[str, tuple[str, ...]]  # word -> the words that may stand in its place
    synonym_pattern: re.Pattern[str]


def split_phrasings(cell: str) -> tuple[str, ...]:
    """The parts between each "/" outside of brackets: "a/[b/c]d" -> ("a", "[b/c]d")."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(cell):
        depth += (char == "[") - (char == "]")
        if char == "/" and depth == 0:
            parts.append(cell[start:position].strip())
            start = position + 1
    return (*parts, cell[start:].strip())


def sentences(text: str) -> list[str]:
    """The sentences of a text that have at least LONG_SENTENCE characters."""
    return [part for part in (p.strip("“”") for p in _SENTENCE_END.split(text)) if len(part) >= LONG_SENTENCE]


def parse_grammar(source: str) -> Grammar:
    """Read tables, scenes and synonyms. Raises: ValueError that names the line with an error."""
    columns: dict[str, tuple[str, ...]] = {}
    rows: dict[str, list[Row]] = {}
    picks: dict[str, list[tuple[str, str]]] = {}
    steps: dict[str, list[tuple[list[str], bool]]] = {}  # phrasings, optional
    synonyms: dict[str, tuple[str, ...]] = {}
    table, scene = "", ""
    for number, line in enumerate(source.splitlines(), start=1):
        mark, _, rest = line.partition(" ")
        if not line.strip() or line.startswith("#"):
            continue
        if mark == "table":
            name, _, header = rest.partition(":")
            table, scene = name.strip(), ""
            columns[table] = tuple(header.split()) or ("name",)
            rows[table] = []
        elif mark == "scene":
            table, scene = "", rest.strip()
            if scene in steps:
                raise ValueError(f"grammar line {number}: scene {scene} is defined twice")
            picks[scene], steps[scene] = [], []
        elif mark == "same":
            words = split_phrasings(rest)
            group = tuple(word.removeprefix("~") for word in words)
            synonyms.update((word, group) for word in words if not word.startswith("~"))
        elif table and len(columns[table]) == 1:  # a plain list of words: each phrasing is a row of its own
            rows[table].extend({columns[table][0]: (word,)} for word in split_phrasings(line))
        elif table:
            cells = [split_phrasings(cell) for cell in line.split(" | ")]
            if len(cells) != len(columns[table]):
                raise ValueError(f"grammar line {number}: {len(cells)} cells in table {table}: {line}")
            rows[table].append(dict(zip(columns[table], cells, strict=True)))
        elif scene and mark.startswith("@"):
            picks[scene].append((mark[1:], rest))
        elif scene and mark in ("-", "?"):
            steps[scene].append(([rest], mark == "?"))
        elif scene and mark == "|" and steps[scene]:
            steps[scene][-1][0].append(rest)
        else:
            raise ValueError(f"grammar line {number}: fits no rule here: {line}")
    return Grammar(
        {name: Table(columns[name], tuple(rows[name])) for name in columns},
        tuple(
            Scene(name, tuple(picks[name]), tuple(Step(tuple(texts), optional) for texts, optional in steps[name]))
            for name in steps
        ),
        synonyms,
        # The longest word first, so that 不由得 is found before a shorter word that it begins with.
        # Without synonyms "(?!)" matches nothing.
        re.compile("|".join(map(re.escape, sorted(synonyms, key=len, reverse=True))) or "(?!)"),
    )


def load_grammar(folder: Path = Path(__file__).parent) -> Grammar:
    """The grammar of all `.txt` files in the folder, in the order of their names."""
    return parse_grammar("\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))))


class Story:
    """One story while it is told: what is drawn for it, and the phrasings that are left."""

    def __init__(self, grammar: Grammar, rng: random.Random) -> None:
        self._grammar = grammar
        self._rng = rng
        self._bound: dict[str, tuple[str, Row]] = {}  # slot name -> (first column, row)
        self._decks: dict[str, list[str]] = {}
        self._named_before: set[str] = set()  # the people in the previous stretch of the story ...
        self._named_here: set[str] = set()  # ... and in this one

    def tell(self, scene: Scene, accepts: Callable[[str], bool]) -> str | None:
        """The whole story; None if `accepts` refuses all attempts at one of its sentences."""
        for name, recipe in scene.picks:
            self._bind(name, recipe)
        parts: list[str] = []
        for step in scene.steps:
            if step.optional and self._rng.random() >= OPTIONAL_SHARE:
                continue
            for _ in range(REDRAWS):
                self._named_here = set()
                text = self._vary(self.expand(self._rng.choice(step.phrasings))).replace("¶", "\n")
                if accepts(text):
                    break
            else:
                return None
            parts.append(text)
            self._named_before = self._named_here
        return "".join(parts)

    def expand(self, template: str) -> str:
        """Fill choices and slots until none is left."""
        # Choices come first. Otherwise a slot in a phrase that is not chosen would use up a word.
        while "[" in template or "{" in template:
            template = _CHOICE.sub(lambda match: self._rng.choice(match[1].split("/")), template)
            if "[" not in template:
                template = _SLOT.sub(self._fill, template)
        return template

    def _bind(self, name: str, recipe: str) -> None:
        """Draw a row for a slot, as its line in the scene says (see the top of this file)."""
        if recipe.startswith("= "):
            self._bound[name] = ("text", {"text": (self.expand(recipe[2:]),)})
            return
        table, *conditions = recipe.split()
        if table in ("child", "someone"):
            self._bound[name] = ("name", self._person(table == "someone"))
            return
        wanted = [(column, self.expand(value)) for column, _, value in (c.partition("=") for c in conditions)]
        taken = [row for _, row in self._bound.values()]
        rows = [
            row
            for row in self._grammar.tables[table].rows
            if row not in taken and all(value in row[column] for column, value in wanted)
        ]
        self._bound[name] = (self._grammar.tables[table].columns[0], self._rng.choice(rows))

    def _person(self, may_be_me: bool) -> Row:
        """A child. Its name shares no character but 小 with another name: no 壮壮 beside 大壮."""
        if may_be_me and self._rng.random() < 0.5:
            return {"name": ("我",), "ta": ("我",)}
        taken = {char for _, row in self._bound.values() if "ta" in row for char in row["name"][0]} - {"小"}
        while True:
            gender, ta = self._rng.choice((("boy", "他"), ("girl", "她")))
            if self._rng.random() < 0.45:
                name = self._word(f"{gender}_short")
            else:
                name = self._word("surname") + self._word(f"{gender}_given")
            if not taken & set(name):
                return {"name": (name,), "ta": (ta,)}

    def _pronoun_of_all(self) -> str:
        """The pronoun for all people of the story."""
        pronouns = {row["ta"][0] for _, row in self._bound.values() if "ta" in row}
        if "我" in pronouns:
            return "我们"
        return "她们" if pronouns == {"她"} else "他们"

    def _word(self, table: str) -> str:
        """A drawn word of a table."""
        listed = self._grammar.tables[table]
        return self._rng.choice(listed.rows)[listed.columns[0]][0]

    def _vary(self, text: str) -> str:
        """Replace words by drawn ones of the same meaning."""
        synonyms = self._grammar.synonyms
        return self._grammar.synonym_pattern.sub(lambda match: self._rng.choice(synonyms[match[0]]), text)

    def _mention(self, slot: str, row: Row, quoted: bool) -> str:
        """A person's name, or the pronoun if the reader knows who is meant."""
        ta = row["ta"][0]
        alone = sum(other.get("ta") == row["ta"] for _, other in self._bound.values()) == 1
        share = PRONOUN_SHARE if slot in ("a", "b") else PRONOUN_SHARE / 2
        known = slot in self._named_before or slot in self._named_here
        self._named_here.add(slot)
        return ta if known and alone and not quoted and self._rng.random() < share else row["name"][0]

    def _fill(self, match: re.Match[str]) -> str:
        """The text for a slot. It may hold choices and slots itself."""
        slot = match[1]
        if slot == "they":
            return self._pronoun_of_all()
        name, _, column = slot.partition(".")
        if name in self._bound:
            first, row = self._bound[name]
            if "ta" in row and not column:
                before = match.string[: match.start()]
                return self._mention(name, row, quoted=before.count("“") > before.count("”"))
            phrasings = row[column or first]
        else:
            phrasings = tuple(row[self._grammar.tables[name].columns[0]][0] for row in self._grammar.tables[name].rows)
        deck = self._decks.get(slot)
        if not deck:
            deck = self._decks[slot] = self._rng.sample(phrasings, len(phrasings))
        return deck.pop()


def records() -> Iterator[dict[str, str]]:
    """Prose records {"text": ...}, the same in every call, of TARGET_BYTES together.

    Raises: RuntimeError if the grammar has too few stories for that.
    """
    grammar = load_grammar()
    rng = random.Random(SEED)
    counts: Counter[str] = Counter()

    def accepts(text: str) -> bool:
        return all(counts[sentence] < MAX_REPEATS for sentence in sentences(text))

    live = list(grammar.scenes)
    size = 0
    while size < TARGET_BYTES:
        if not live:
            raise RuntimeError(f"the prose grammar ran dry at {size} of {TARGET_BYTES} bytes: add scenes or phrasings")
        rng.shuffle(live)  # a round tells one story of each scene
        for scene in tuple(live):
            tries = (Story(grammar, rng).tell(scene, accepts) for _ in range(REDRAWS))
            text = next((t for t in tries if t is not None and MIN_CHARS <= len(t) <= MAX_CHARS), None)
            if text is None:
                live.remove(scene)
                continue
            counts.update(sentences(text))
            size += len(text.encode("utf-8")) + 1
            yield {"text": text}
            if size >= TARGET_BYTES:
                return
