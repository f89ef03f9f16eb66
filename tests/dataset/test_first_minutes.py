"""The exam of the first minutes: what a person types first, written by hand.

A line of `dataset/first_minutes.jsonl` has `list` (core, unseen), `half` (of unseen: choose,
report), `kind`, a `prompt` or `turns` (what the user types; the model's own answers stand between),
`cluster` (the fact, pair or clause that it is about), and its rule. The rule: where `honest` is
true, an honest line ("I don't know") is right. Else all conditions that stand in the line must
hold: one of `accept` is contained, all of `all` are, none of `forbid` is (letters and digits
compared alone), the last number is `number`, the whole is one of `accept` (`exact`), it has at most
`max_chars` characters.
"""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from dataset.records.keys import normalised, normalised_question

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"identity", "chat", "feelings", "facts", "sums", "beyond", "unknown", "turns"}
CONDITIONS = {"accept", "all", "number", "exact"}
FIELDS = {"list", "half", "kind", "prompt", "turns", "cluster", "forbid", "honest", "max_chars"} | CONDITIONS
HALVES = ("choose", "report")
HONEST = re.compile("不知道|不清楚|没学过|不会算|算不准")

IDENTITY = "我是{{name}}，由{{author}}开发的中文语言模型。"
HONEST_LINE = "这个我不知道，我只学过一点常识。"
COMFORT = "别难过，慢慢说给我听。"
SMALL_TALK = "好的，我们聊聊吧，有什么想问的？"
DENIAL = "不是，我是{{name}}，由{{author}}开发。"
# The most that a constant answer may score: in one kind, and in all kinds together but beyond and
# unknown, which accept the honest line.
BOUND_OF_ALL = 0.15
BOUND_OF_A_KIND = 0.15
BOUNDS = {
    (IDENTITY, "identity"): 1 / 3,
    (DENIAL, "identity"): 1 / 3,
    (COMFORT, "feelings"): 1 / 3,
    (SMALL_TALK, "feelings"): 1 / 3,
    (SMALL_TALK, "chat"): 0.35,  # it answers most of the short turns (好的, 嗯)
}


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


ROWS = rows_of("dataset/first_minutes.jsonl")
UNSEEN = [row for row in ROWS if row["list"] == "unseen"]


def filled(text: str) -> str:
    return text.replace("{{name}}", "MiniLLM").replace("{{author}}", "MiniLLM团队")


def asked(row: dict[str, Any]) -> str:
    """All turns of the user as one text, normalised."""
    return normalised_question(filled("\n".join(row.get("turns") or [row["prompt"]])))


def trigrams(text: str) -> set[str]:
    return {text[start : start + 3] for start in range(len(text) - 2)} or {text}


def is_right(row: dict[str, Any], answer: str) -> bool:
    """The rule of a line, as far as constant answers need it. The evaluation has the whole rule."""
    answer = filled(answer)
    if row.get("honest") and HONEST.search(answer):
        return True
    bare = normalised(answer)
    contained = [normalised(filled(text)) in bare for text in row.get("accept", [])]
    numbers = re.findall(r"-?\d+(?:\.\d+)?", answer)
    return (
        CONDITIONS & row.keys() != set()
        and ("accept" not in row or any(contained))
        and all(normalised(filled(text)) in bare for text in row.get("all", []))
        and ("number" not in row or (bool(numbers) and numbers[-1] == row["number"]))
        and not any(normalised(filled(text)) in bare for text in row.get("forbid", []))
        and len(answer) <= row.get("max_chars", len(answer))
    )


def test_every_kind_has_prompts_enough_in_each_half() -> None:
    core = [row for row in ROWS if row["list"] == "core"]
    assert len(core) >= 60 and {row["kind"] for row in core} == KINDS
    assert len(UNSEEN) >= 440
    counts = Counter((row["half"], row["kind"]) for row in UNSEEN)
    assert counts.keys() == {(half, kind) for half in HALVES for kind in KINDS}
    assert min(counts.values()) >= 24
    assert all(counts["choose", kind] == counts["report", kind] for kind in KINDS)


def test_lines_are_well_formed() -> None:
    for row in ROWS:
        assert row.keys() <= FIELDS and row["kind"] in KINDS and row["cluster"], row
        assert ("half" in row) == (row["list"] == "unseen") and row.get("half", "choose") in HALVES, row
        assert ("prompt" in row) != ("turns" in row) and ("turns" in row) == (row["kind"] == "turns"), row
        assert row["kind"] != "turns" or (len(row["turns"]) >= 2 and all(row["turns"])), row
        assert (CONDITIONS & row.keys()) or row.get("honest"), row
        for field in ("accept", "all", "forbid"):
            texts = row.get(field, ["one"])
            assert texts and all(normalised(filled(text)) for text in texts), row
            assert len(set(map(normalised, texts))) == len(texts), row
        assert re.fullmatch(r"-?\d+(\.\d+)?", row.get("number", "0")), row


def test_a_wrong_sum_is_never_right_and_honesty_only_helps_where_it_should() -> None:
    for row in ROWS:
        assert bool(row.get("honest")) == (row["kind"] in {"beyond", "unknown"}) or row["kind"] == "identity", row
        assert row["kind"] not in {"sums", "beyond"} or "number" in row, row
        if row["kind"] in {"sums", "beyond"}:
            assert is_right(row, f"等于{row['number']}。") and not is_right(row, f"等于{row['number']}7。"), row


def test_sums_name_their_result() -> None:
    """The cluster of a sum is its two numbers: sorted for plus and times, else in order."""
    for row in (row for row in ROWS if row["kind"] == "sums"):
        first, sign, second = re.fullmatch(r"(\d+)([-+*/])(\d+)", row["cluster"]).groups()
        a, b = int(first), int(second)
        assert sign in "-/" or a <= b, row
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a / max(b, 1)}[sign]
        assert int(row["number"]) == result and -100 <= result <= 200, row
        assert (a <= 9 and b <= 9) if sign == "*" else (a <= 100 and b <= 100), row


def test_prompts_are_distinct() -> None:
    counts = Counter(map(asked, ROWS))
    assert [text for text, count in counts.items() if count > 1] == []


def test_the_halves_and_core_share_no_wording() -> None:
    sides = defaultdict(list)
    for row in ROWS:
        sides[row.get("half", "core")].append((asked(row), trigrams(asked(row))))
    close = [
        (one, other)
        for side, against in (("choose", "report"), ("core", "choose"), ("core", "report"))
        for one, a in sides[side]
        for other, b in sides[against]
        if len(a & b) > 0.8 * len(a | b)
    ]
    assert close == []


def test_the_halves_share_no_fact_pair_or_clause() -> None:
    def key(cluster: str) -> str:
        """Both orders of a pair of operands."""
        pair = re.fullmatch(r"(\d+)([-/])(\d+)", cluster)
        return f"{pair[2]} {sorted([int(pair[1]), int(pair[3])])}" if pair else cluster

    choose, report = ({key(row["cluster"]) for row in UNSEEN if row["half"] == half} for half in HALVES)
    assert choose & report == set()


def test_a_constant_answer_does_not_get_rich() -> None:
    for constant in (IDENTITY, HONEST_LINE, COMFORT, SMALL_TALK, DENIAL):
        for half in HALVES:
            right = defaultdict(list)
            for row in UNSEEN:
                if row["half"] == half and row["kind"] not in {"beyond", "unknown"}:
                    right[row["kind"]].append(is_right(row, constant))
            for kind, marks in right.items():
                assert sum(marks) <= BOUNDS.get((constant, kind), BOUND_OF_A_KIND) * len(marks), (constant, half, kind)
            everything = [mark for marks in right.values() for mark in marks]
            assert sum(everything) <= BOUND_OF_ALL * len(everything), (constant, half)


def test_no_comfort_for_good_news_and_no_congratulation_for_bad() -> None:
    for constant in (COMFORT, "恭喜你，太好了，真替你高兴！"):
        marks = [is_right(row, constant) for row in UNSEEN if row["kind"] == "feelings"]
        assert 0.2 <= sum(marks) / len(marks) <= 0.45, constant
    for row in (row for row in UNSEEN if row["kind"] == "feelings"):
        assert not (is_right(row, COMFORT) and is_right(row, "恭喜你，太好了，真替你高兴！")), row
