"""The bundled prose: enough of it, varied, deterministic, and clean at every seam of its grammar."""

from __future__ import annotations

import lzma
import random
import re
from collections import Counter

import pytest

from dataset.samples import prose

GRAMMAR = prose.load_grammar()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [record["text"] for record in prose.records()]


def test_prose_holds_between_3_1_and_3_6_megabytes(texts: list[str]) -> None:
    assert 3_100_000 <= len("\n".join(texts).encode("utf-8")) <= 3_600_000


def test_xz_leaves_more_than_a_tenth_of_the_prose(texts: list[str]) -> None:
    whole = "\n".join(texts).encode("utf-8")
    assert len(lzma.compress(whole, preset=6)) >= 0.115 * len(whole)


def test_no_sentence_of_ten_characters_stands_in_the_prose_more_than_twelve_times(texts: list[str]) -> None:
    parts = re.split(r"[。！？\n]", "\n".join(texts))
    assert max(Counter(part for part in parts if len(part) >= 10).values()) <= 12


def test_prose_is_the_same_on_every_call(texts: list[str]) -> None:
    assert [record["text"] for record in prose.records()] == texts


def test_no_text_comes_twice(texts: list[str]) -> None:
    assert len(set(texts)) == len(texts)


def test_texts_have_80_to_600_characters(texts: list[str]) -> None:
    assert all(80 <= len(text) <= 600 for text in texts)


def test_no_slot_or_markup_is_left_in_the_prose(texts: list[str]) -> None:
    assert [text for text in texts if re.search(r"[{}\[\]/|@~¶]|None", text)] == []


def test_punctuation_is_full_width_and_never_doubled(texts: list[str]) -> None:
    doubled = re.compile(r"[，。！？；：、][，。！？；：、]|[。！？]”[，。；]|[,!?;:\"()]|“”|  ")
    assert [match[0] for text in texts if (match := doubled.search(text))] == []


def test_every_text_ends_with_a_finished_sentence(texts: list[str]) -> None:
    assert [text for text in texts if not re.search(r"[。！？]”?$", text)] == []


def test_quotation_marks_open_and_close_in_turn(texts: list[str]) -> None:
    for text in texts:
        assert re.sub(r"[^“”]", "", text).replace("“”", "") == "", text


def test_every_sentence_slot_of_the_grammar_ends_with_a_finished_sentence() -> None:
    rng = random.Random(0)
    for scene in GRAMMAR.scenes:
        for step in scene.steps:
            for phrasing in step.phrasings:
                for _ in range(8):
                    single = prose.Scene(scene.name, scene.picks, (prose.Step((phrasing,), False),))
                    text = prose.Story(GRAMMAR, rng).tell(single, lambda _: True)
                    assert text is not None and re.search(r"[。！？]”?$", text), f"{scene.name}: {text}"


def test_prose_has_at_least_forty_scenes() -> None:
    assert len(GRAMMAR.scenes) >= 40


def test_a_row_that_does_not_fit_its_table_is_named() -> None:
    with pytest.raises(ValueError, match="line 2"):
        prose.parse_grammar("table fruit: name look\n苹果 | 红红的 | 甜")


def test_a_synonym_stands_in_for_its_word_but_a_marked_one_is_never_replaced() -> None:
    grammar = prose.parse_grammar("same 高兴/~开心\nscene s\n- 他很高兴，也很开心。")
    stories = {prose.Story(grammar, random.Random(seed)).tell(grammar.scenes[0], lambda _: True) for seed in range(20)}
    assert stories == {"他很高兴，也很开心。", "他很开心，也很开心。"}


def test_pronouns_replace_only_a_name_that_was_told_and_is_unambiguous() -> None:
    source = "table kin: name ta\n妈妈 | 她\ntable surname\n王\ntable boy_given\n小军\ntable girl_given\n小雨\n"
    source += "table boy_short\n小明\ntable girl_short\n小红\n"
    source += "scene s\n@a child\n@k kin\n- {a}来了。\n- {k}问：“{a}呢？”\n- {a}笑了。"
    grammar = prose.parse_grammar(source)
    for seed in range(200):
        text = prose.Story(grammar, random.Random(seed)).tell(grammar.scenes[0], lambda _: True)
        assert text is not None
        name = text.split("来了")[0]
        assert name in {"小明", "小红", "王小军", "王小雨"}
        assert f"“{name}呢" in text
        assert "她笑了" not in text  # 她 could be mother as well
