"""The bundled prose: enough, varied, always the same, and correct wherever parts are joined."""

from __future__ import annotations

import lzma
import random
import re
from collections import Counter

import pytest

from dataset.samples.prose import stories as prose

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


def told(scene: str, runs: int = 60) -> list[str]:
    """Stories of one scene, each from its own seed."""
    wanted = next(s for s in GRAMMAR.scenes if s.name == scene)
    stories = [prose.Story(GRAMMAR, random.Random(seed)).tell(wanted, lambda _: True) for seed in range(runs)]
    return [story for story in stories if story is not None]


def cells(table: str, column: str) -> list[str]:
    return [cell for row in GRAMMAR.tables[table].rows for cell in row[column]]


def test_several_conditions_choose_the_row_that_meets_all_of_them() -> None:
    source = "table f: name season bed\n荷花 | 夏天 | 否\n石榴花 | 夏天/秋天 | 是\n梅花 | 冬天 | 是\nscene s\n"
    grammar = prose.parse_grammar(source + "@x f season=夏天 bed=是\n- {x}开了。")
    stories = {prose.Story(grammar, random.Random(seed)).tell(grammar.scenes[0], lambda _: True) for seed in range(20)}
    assert stories == {"石榴花开了。"}


def test_no_dish_names_its_ingredient_twice(texts: list[str]) -> None:
    vegetables = "|".join(cells("vegetable", "name"))
    for row in GRAMMAR.tables["vegetable"].rows:
        assert all(dish.count(row["name"][0]) <= 1 for dish in row["dish"]), row
    twice = re.compile(rf"({vegetables})(?:炒|炖|煮|做|烧|蒸)\w?\1|用({vegetables})(?:炒|炖|煮|做)\2")
    assert [match[0] for text in texts if (match := twice.search(text))] == []


def test_no_story_has_school_on_saturday_or_sunday(texts: list[str]) -> None:
    school = re.compile(
        r"(?:周末|星期[六天])(?:的)?[^。！？]{0,12}(?:第一节|上午有三节课|下课|课间|在教室里|在学校的走廊里|带大家去图书馆)"
    )
    assert [match[0] for text in texts if (match := school.search(text))] == []
    assert [text for text in told("school_day", 200) if "星期五" in text and "明天有" in text] == []


def test_the_week_of_the_weather_diary_lies_in_the_holidays() -> None:
    assert all("暑假" in story for story in told("list_week"))


def test_flowers_of_a_tree_are_not_counted(texts: list[str]) -> None:
    counted = re.compile(r"(?:桂花|桃花|梅花|迎春花|油菜花)[^。！？]*开了[一二两三四五六七八九十]+朵")
    assert [match[0] for text in texts if (match := counted.search(text))] == []


def test_a_garden_bed_grows_neither_lotus_nor_rape() -> None:
    assert [story for story in told("list_flowerbed", 100) if re.search("荷花|油菜花|水仙", story)] == []


def test_one_train_ride_sees_the_fields_of_one_season() -> None:
    seasons = {row["name"][0]: set(row["season"]) for row in GRAMMAR.tables["window"].rows}
    for story in told("list_train", 100):
        seen = [seasons[name] for name in seasons if name in story]
        assert set.intersection(*seen), story


def test_the_nostrils_of_a_whale_are_on_its_head(texts: list[str]) -> None:
    assert [text for text in texts if re.search(r"背上[^。，]*鼻孔", text)] == []
    whale = next(row for row in GRAMMAR.tables["beast"].rows if row["name"] == ("鲸鱼",))
    assert any("鼻孔长在头顶上" in look for look in whale["look"])


def test_only_a_white_rabbit_has_red_eyes() -> None:
    rabbits = {row["name"][0]: row for row in GRAMMAR.tables["pet"].rows if "兔" in row["name"][0]}
    for name, row in rabbits.items():
        assert all(("红" in eyes) == (name == "小白兔") for eyes in row["eyes"])
        assert all(("灰" in look) <= (name == "小灰兔") for look in row["look"])


def test_what_was_put_on_the_shopping_list_is_what_is_taken() -> None:
    for story in told("list_supermarket"):
        items = re.search(r"(?:：)([^：。]*、[^。]*)。", story)
        taken = re.findall(r"又拿了([^。，]+?)和([^。，]+?)[，。]", story)
        assert items is not None and taken
        assert all(item in items[1] for pair in taken for item in pair), story


def test_luggage_holds_nothing_for_the_kitchen() -> None:
    kitchen = re.compile("酱油|大米|面粉|一瓶醋|一袋盐|一桶油|土豆|洋葱|脸盆|手套|毛衣")
    assert [story for story in told("list_packing", 100) if kitchen.search(story)] == []


def test_help_answers_the_need_and_fits_the_time() -> None:
    for row in GRAMMAR.tables["kind"].rows:
        at_school = row["where"][0] in ("教室里", "学校的走廊里")
        assert all(not re.search("周末|星期[六天]|晚饭|放假", time) for time in row["time"]) or not at_school
    for story in told("kindness", 200):
        assert not ("没有带课本" in story and "游戏" in story), story
        assert not ("腾不出手来开门" in story and "捡起来" in story), story


def test_dinner_has_dishes_and_a_staple_but_no_sandwich_or_soy_milk() -> None:
    assert [story for story in told("list_table", 100) if re.search("三明治|豆浆|水果沙拉|绿豆汤", story)] == []


def test_drinks_are_drunk() -> None:
    for row in GRAMMAR.tables["dish"].rows:
        drink = row["name"][0].endswith(("汤", "粥", "浆"))
        assert row["verb"] == (("喝",) if drink else ("吃",)), row["name"]


def test_winter_walks_have_no_sunbathing_while_it_snows() -> None:
    winter = next(row for row in GRAMMAR.tables["season"].rows if row["name"] == ("冬天",))
    assert not any("晒太阳" in cell for cell in winter["people"])
    assert not any("飘下来" in cell for cell in winter["sky"])


def test_names_of_one_story_share_no_character_but_xiao() -> None:
    grammar = prose.parse_grammar(
        "table surname\n王/李\ntable boy_given\n小军/大壮/家豪\ntable girl_given\n小军/家怡/雨晴\n"
        "table boy_short\n小军/大壮/壮壮\ntable girl_short\n小雨/晴晴/怡怡\n"
        "scene s\n@a child\n@b child\n- {a}-{b}。"
    )
    for seed in range(200):
        text = prose.Story(grammar, random.Random(seed)).tell(grammar.scenes[0], lambda _: True)
        assert text is not None
        first, second = text.removesuffix("。").split("-")
        assert not (set(first) & set(second)) - {"小"}


def test_synonyms_leave_no_broken_words(texts: list[str]) -> None:
    broken = re.compile("高开心兴|这儿面|那儿面|从小看见大|会[^。，]{0,8}跑了过来|都有做错时|美丽的射门|忍不住对|我我")
    assert [match[0] for text in texts if (match := broken.search(text))] == []


def test_a_table_is_never_laid_with_the_same_food_twice() -> None:
    for story in told("list_table", 150):
        laid = story.split("。")[1]
        assert all(laid.count(name) <= 1 for name in cells("dish", "name")), story
