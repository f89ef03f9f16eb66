"""What must be true of the bundled arithmetic: right answers, sides that share nothing."""

import random
import re
import unicodedata
from collections import Counter, defaultdict
from fractions import Fraction
from typing import Any

import pytest

from dataset.records.keys import heldout_key, normalised_question
from dataset.records.shapes import parse_record
from dataset.samples.arithmetic import beyond, problems, stories
from dataset.samples.arithmetic import questions as arithmetic
from dataset.samples.arithmetic import wordings as arithmetic_wordings

Record = dict[str, Any]
RECORDS = list(arithmetic.records())
HONEST = {arithmetic.TOO_LARGE, arithmetic.NOT_YET}
SIDES = ("train", "validation", "test")
CHINESE_DIGITS = {"零": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
CHINESE_UNITS = {"十": 10, "百": 100, "千": 1000}
CHINESE_NUMBER = "[零一二两三四五六七八九十百千]+"
NO_NUMBERS = re.compile("一(?=下|共|份|块儿|起)|两(?=人)")


def side_of(record: Record) -> str:
    return str(record.get("split", "train"))


def of_kind(kind: str, side: str | None = None) -> list[Record]:
    """Records of one kind ("" for plain sums), of one side or of all."""
    return [r for r in RECORDS if r.get("kind", "") == kind and side in (None, side_of(r))]


def questions(record: Record) -> list[str]:
    return [turn["content"] for turn in record["conversations"] if turn["role"] == "user"]


def answers(record: Record) -> list[str]:
    return [turn["content"] for turn in record["conversations"] if turn["role"] == "assistant"]


def value_of_chinese(text: str) -> int:
    """The value of a Chinese numeral: each digit times the unit after it."""
    value, digit = 0, None
    for char in text:
        if char in CHINESE_UNITS:
            value += (1 if digit is None else digit) * CHINESE_UNITS[char]
            digit = None
        else:
            digit = CHINESE_DIGITS[char]
    return value + (digit or 0)


def plain(text: str) -> str:
    """A question in one form: normal width, no spaces, one way to write signs and numbers."""
    text = unicodedata.normalize("NFKC", text).replace(" ", "").replace("−", "-").replace("—", "-").replace("/", "÷")
    text = re.sub(CHINESE_NUMBER, lambda found: str(value_of_chinese(found[0])), NO_NUMBERS.sub("", text))
    return re.sub(r"(?<=\d)[*xX](?=\d)", "×", text)


def numbers_in(text: str) -> list[int]:
    """All whole numbers of a question, in digits of any width or in Chinese."""
    return [int(number) for number in re.findall(r"\d+", plain(text))]


def evaluated(expression: str) -> Fraction:
    """The value of an expression of + - × ÷ by the usual precedence, from its text alone."""
    terms: list[Fraction] = []
    for sign, product in re.findall(r"(^|[+-])([\d×÷]+)", expression):
        value = Fraction(1)
        for operation, number in re.findall(r"(^|[×÷])(\d+)", product):
            value = value / int(number) if operation == "÷" else value * int(number)
        terms.append(-value if sign == "-" else value)
    assert "".join(sign + product for sign, product in re.findall(r"(^|[+-])([\d×÷]+)", expression)) == expression
    return sum(terms, Fraction(0))


def equation_in(answer: str) -> list[str]:
    """The parts between the = of an answer: 1+2+3, 3+3, 6."""
    found = re.match(r"[\d+×÷=-]+", answer)
    assert found, answer
    return found[0].split("=")


def pairs_in(answer: str) -> set[tuple[int, int]]:
    """The unordered operands of the sums and differences of two numbers in an answer."""
    pairs = set()
    for part in equation_in(answer)[:-1]:
        for a, b in re.findall(r"^(\d+)[+-](\d+)$", part):
            pairs.add((min(int(a), int(b)), max(int(a), int(b))))
    return pairs


# Answers


def test_two_runs_give_the_same_records() -> None:
    assert list(arithmetic.records()) == RECORDS


def test_every_answer_is_an_equation_that_is_right_or_an_honest_line() -> None:
    for record in RECORDS:
        for answer in answers(record):
            if answer not in HONEST:
                *parts, result = equation_in(answer)
                assert parts and {evaluated(part) for part in parts} == {Fraction(int(result))}, answer
                assert re.fullmatch(r"[\d+×÷=-]+(，所以[^，。？]+)?。", answer), answer


def test_every_accepted_answer_is_right() -> None:
    for record in RECORDS:
        for answer in record.get("accepted", []):
            *parts, result = re.split("=", answer.split("，")[0].rstrip("。"))
            if "." in answer:
                a, sign, b = re.fullmatch(r"([\d.]+)([+×-])([\d.]+)", parts[0]).groups()  # type: ignore[union-attr]
                values = {"+": Fraction(a) + Fraction(b), "-": Fraction(a) - Fraction(b)}
                assert Fraction(result) == values.get(sign, Fraction(a) * Fraction(b))
            else:
                assert {evaluated(part) for part in parts} == {Fraction(int(result))}


def test_sums_and_differences_are_computed_from_0_to_100_and_nothing_else() -> None:
    for record in of_kind("") + of_kind("basic"):
        (answer,) = answers(record)
        a, b, result = map(int, re.fullmatch(r"(\d+)[+-](\d+)=(-?\d+)。", answer).groups())  # type: ignore[union-attr]
        assert 0 <= min(a, b) <= max(a, b) <= 100 and -100 <= result <= 200


def test_problems_are_all_sums_and_differences_and_the_whole_table() -> None:
    assert len(set(arithmetic.problems())) == len(arithmetic.problems()) == 2 * 101 * 101
    results = [problem.result for problem in arithmetic.problems()]
    assert (min(results), max(results)) == (-100, 200)
    table = arithmetic.table_problems()
    assert len(set(table)) == len(table) == 100 + 90
    assert all(evaluated(problem.expression) == problem.result <= 81 for problem in table)


def test_the_question_holds_the_numbers_of_its_answer() -> None:
    for record in of_kind("") + of_kind("basic") + of_kind("times"):
        (question,), (answer,) = questions(record), answers(record)
        operands = [int(number) for number in re.findall(r"\d+", equation_in(answer)[0])]
        assert sorted(numbers_in(question)) == sorted(operands), question  # 5比12少几 has them the other way round


def test_a_multiplication_or_a_quotient_is_computed_within_the_table_alone() -> None:
    table = {problem.equation for problem in arithmetic.table_problems()}
    for record in RECORDS:
        for answer in answers(record):
            for part in [] if answer in HONEST else equation_in(answer)[:-1]:
                for a, sign, b in re.findall(r"(\d+)([×÷])(\d+)", part):
                    assert arithmetic.Problem(int(a), sign, int(b)).equation in table


@pytest.mark.parametrize("number", [*range(101), 105, 110, 200, 222, 1000, 1005, 1050, 2002, 9999])
def test_chinese_numbers_read_back(number: int) -> None:
    assert value_of_chinese(problems.chinese_number(number)) == number


def test_chinese_numbers_are_as_they_are_said() -> None:
    said = {0: "零", 10: "十", 12: "十二", 20: "二十", 35: "三十五", 100: "一百", 101: "一百零一", 200: "两百"}
    said |= {110: "一百一十", 1005: "一千零五", 1050: "一千零五十"}
    assert {number: problems.chinese_number(number) for number in said} == said
    assert problems.counted_number(2) == "两"
    with pytest.raises(ValueError):
        problems.chinese_number(10_000)


def test_every_number_from_0_to_100_is_asked_in_chinese() -> None:
    in_chinese = {
        n for r in of_kind("") + of_kind("basic") for q in questions(r) for n in numbers_in(re.sub(r"\d", "", q))
    }
    assert set(range(101)) <= in_chinese


# Sides


def test_no_question_stands_twice() -> None:
    asked = Counter("\n".join(questions(record)) for record in RECORDS)
    assert max(asked.values()) == 1


def test_the_mix_keeps_every_record_on_its_side() -> None:
    """By the keys of the mix, and by its rule that no training turn is a held-out question."""
    sides = defaultdict(set)
    for record in RECORDS:
        sides[heldout_key(parse_record(record))].add(side_of(record))
    assert all(len(found) == 1 for found in sides.values())
    # The mix holds out 5% of the keys. The marked ones are enough, so it takes no training record.
    assert sum(found != {"train"} for found in sides.values()) >= 0.05 * len(sides)
    opened = {side: {normalised_question(questions(r)[0]) for r in RECORDS if side_of(r) == side} for side in SIDES}
    assert not opened["validation"] & opened["test"]
    trained = {normalised_question(q) for r in RECORDS if side_of(r) == "train" for q in questions(r)}
    assert not trained & (opened["validation"] | opened["test"])


def test_pairs_of_operands_stay_on_one_side_unless_they_are_single_digits() -> None:
    seen: dict[str, set[tuple[int, int]]] = {side: set() for side in SIDES}
    for record in RECORDS:
        for answer in set(answers(record)) - HONEST:
            seen[side_of(record)] |= {pair for pair in pairs_in(answer) if max(pair) > 9}
    assert not seen["train"] & arithmetic.heldout_pairs()
    assert not seen["validation"] & arithmetic.heldout_pairs("test")
    assert not seen["test"] & arithmetic.heldout_pairs("validation")
    assert not arithmetic.heldout_pairs("validation") & arithmetic.heldout_pairs("test")
    for side in ("validation", "test"):
        for record in [r for kind in ("", "word", "turns") for r in of_kind(kind, side)]:
            pairs = pairs_in(answers(record)[-1])
            assert all(max(pair) <= 9 or pair in arithmetic.heldout_pairs(side) for pair in pairs), record


def test_single_digits_are_never_held_out() -> None:
    assert all(max(pair) > 9 for pair in arithmetic.heldout_pairs())


def core(wording: str) -> str:
    """The letters of a wording without its slots, marks and signs."""
    return re.sub(r"[\W_]+", "", re.sub(r"\{\w+\}", "", wording))


def test_wordings_stay_on_one_side() -> None:
    for sign in "+-×÷":
        by_side = {side: {core(w.text) for w in arithmetic_wordings.wordings(sign, side)} for side in SIDES}
        assert not by_side["train"] & by_side["validation"]
        assert not by_side["train"] & by_side["test"]
        assert not by_side["validation"] & by_side["test"]
    for sides in beyond.listed().values():
        wordings = Counter(core(wording) for side in SIDES for wording in {core(text) for text in sides[side]})
        assert max(wordings.values()) == 1
    turns = arithmetic_wordings.table()["turns"]
    for move in turns["train"]:
        assert max(Counter(core(text) for side in SIDES for text in turns[side][move]).values()) == 1


def test_there_are_many_wordings_to_train_on() -> None:
    least = {"+": 40, "-": 40, "×": 25, "÷": 25}
    for sign, count in least.items():
        wordings = arithmetic_wordings.wordings(sign, "train")
        assert len({wording.text for wording in wordings}) >= count


def test_held_out_scenes_and_things_are_in_no_training_record() -> None:
    scenes = stories.scenes()
    assert len(scenes) >= 110
    assert Counter(s.side for s in scenes if s.side != "train") == {"validation": 12, "test": 12}
    assert len({scene.question for scene in scenes}) == len(scenes)
    names = {side: {t.name for t in stories.things() if t.side == side} for side in SIDES}
    assert len(names["train"]) >= 60
    assert not names["train"] & (names["validation"] | names["test"]) and not names["validation"] & names["test"]
    for side in ("validation", "test"):
        others = "".join(q for r in of_kind("word") + of_kind("beyond") if side_of(r) != side for q in questions(r))
        assert not [name for name in names[side] if name in others]
        clusters = {record["cluster"] for record in of_kind("word", side)}
        assert clusters == {scene.question for scene in scenes if scene.side == side}


def test_three_terms_that_are_held_out_are_trained_in_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "TRAIN_STEPS", True)
    seen: dict[tuple[list[str], ...] | str, set[str]] = defaultdict(set)
    for record in (record for record in arithmetic.records() if record.get("kind") == "steps"):
        expression = equation_in(answers(record)[0])[0]
        key = f"{sorted(re.findall('[-+×÷]', expression))} {sorted(map(int, re.findall(r'[0-9]+', expression)))}"
        seen[key].add(side_of(record))
    assert all(len(sides) == 1 for sides in seen.values())


# Amounts


def test_basics_are_complete_and_held_out_in_three_wordings() -> None:
    basics = {problem.equation for problem in arithmetic.problems() if problem.is_basic}
    assert len(basics) == 200 and "5-9=-4" in basics
    for side, times in (("train", 12 + arithmetic.NUM_OTHER_WORDINGS), ("validation", 1), ("test", 3)):
        asked = Counter(answers(record)[0].rstrip("。") for record in of_kind("basic", side))
        assert asked == dict.fromkeys(basics, times)
        assert all(record["cluster"] in answers(record)[0] for record in of_kind("basic", side) if side != "train")


def test_basics_are_trained_in_every_common_wording() -> None:
    trained = defaultdict(list)
    for record in of_kind("basic", "train"):
        trained[answers(record)[0]].append(plain(questions(record)[0]))
    for problem in (problem for problem in arithmetic.problems() if problem.is_basic):
        for wording in arithmetic_wordings.common_wordings(problem.sign):
            asked = wording.text.format(a=problem.a, b=problem.b).rstrip("？")
            assert any(asked in question for question in trained[f"{problem.equation}。"]), asked


def test_the_table_is_trained_whole_and_held_out_in_wordings() -> None:
    table = {problem.equation for problem in arithmetic.table_problems()}
    for side, times in arithmetic.NUM_TABLE_WORDINGS.items():
        asked = Counter(answers(record)[0].rstrip("。") for record in of_kind("times", side))
        assert asked == dict.fromkeys(table, times)


def test_every_training_pair_is_asked_as_a_sum_and_as_a_difference_in_both_orders() -> None:
    equations = {answers(record)[0] for record in of_kind("", "train")}
    assert {"37+45=82。", "45+37=82。", "45-37=8。", "37-45=-8。"} <= equations or (
        37,
        45,
    ) in arithmetic.heldout_pairs()
    asked = {
        (sign, pair)
        for r in of_kind("", "train")
        for pair in pairs_in(answers(r)[0])
        for sign in "+-"
        if sign in answers(r)[0].split("=")[0]
    }
    pairs = {(a, b) for a in range(101) for b in range(a, 101) if b > 9} - arithmetic.heldout_pairs()
    assert asked == {(sign, pair) for sign in "+-" for pair in pairs}


@pytest.mark.parametrize("side", ["validation", "test"])
def test_held_out_records_reach_their_counts(side: str) -> None:
    counts = Counter(record.get("kind", "") for record in RECORDS if side_of(record) == side)
    assert counts[""] == 350 and len({record["cluster"] for record in of_kind("", side)}) == 350
    assert all(counts[kind] >= 60 for kind in ("times", "word", "turns", "beyond"))
    assert all(record["cluster"] for record in RECORDS if side_of(record) == side)


def test_training_records_are_enough_and_hold_text_alone() -> None:
    trained = [record for record in RECORDS if side_of(record) == "train"]
    assert 40_000 <= len(trained) <= 60_000
    assert all(set(record) <= {"conversations", "kind"} for record in trained)


def test_roles_alternate_and_texts_are_clean() -> None:
    for record in RECORDS:
        roles = [turn["role"] for turn in record["conversations"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        for turn in record["conversations"]:
            text = turn["content"]
            assert text == text.strip() != ""
            assert not re.search(r"[{}]|[？?]{2}|请问请|  |，，|。。|[？?]。|请请", text), text


# Honest lines


def test_an_honest_line_is_given_beyond_the_border_alone() -> None:
    for record in RECORDS:
        honest = [answer in HONEST for answer in answers(record)]
        assert not any(honest) or record["kind"] in ("beyond", "turns")
        assert all(honest) or record.get("kind") != "beyond"
        assert record.get("honest", False) == (record.get("kind") == "beyond" and side_of(record) != "train")


def test_large_numbers_get_one_line_and_other_questions_the_other() -> None:
    too_large = {kind for kind in beyond.SHARES if kind.startswith("large ")}
    for side in SIDES:
        for asked in beyond.beyond(side, 400, random.Random(1)):
            assert asked.answer == (arithmetic.TOO_LARGE if asked.kind in too_large else arithmetic.NOT_YET)
            if asked.kind in too_large:
                assert max(numbers_in(asked.question)) > 100
            if asked.kind in ("product", "quotient", "chain"):
                assert max(numbers_in(asked.question)) <= 100


def test_no_problem_that_is_to_be_computed_gets_an_honest_line() -> None:
    table = {(problem.a, problem.b) for problem in arithmetic.table_problems() if problem.sign == "÷"}
    for side in SIDES:
        for asked in beyond.beyond(side, 2_000, random.Random(2)):
            numbers = numbers_in(asked.question)
            if asked.kind == "product":
                assert max(numbers) > 9, asked.question
            elif asked.kind == "quotient":
                operands = tuple(reversed(numbers) if "乘几" in asked.question else numbers)
                assert len(operands) == 2 and operands not in table, asked.question
            elif asked.kind == "chain":
                assert len(numbers) > 3 or (len(numbers) == 3 and max(numbers) > 20), asked.question


def test_sums_that_models_miss_most_are_asked_twice() -> None:
    asked = Counter(answers(record)[0] for record in of_kind("", "train"))
    for equation in ("52+8=60。", "27-47=-20。", "97-100=-3。", "9+99=108。"):
        a, b = map(int, re.findall(r"\d+", equation)[:2])
        if (min(a, b), max(a, b)) not in arithmetic.heldout_pairs():
            assert asked[equation] >= 2, equation
    assert all(n >= 2 for equation, n in asked.items() if equation.endswith("0。") or "100-" in equation)


def test_products_of_two_digits_and_one_are_often_refused() -> None:
    asked = [plain(questions(record)[0]) for record in of_kind("beyond", "train")]
    assert sum(bool(re.search(r"(?<!\d)(\d\d×\d|\d×\d\d)(?!\d)", question)) for question in asked) >= 200


def test_the_border_is_trained_on_both_sides() -> None:
    large = [
        max(numbers_in(question))
        for record in of_kind("beyond", "train")
        for question in questions(record)[:1]
        if answers(record)[0] == arithmetic.TOO_LARGE
    ]
    assert sum(number <= 150 for number in large) > 150
    hundred = [record for record in of_kind("", "train") if (re.search(r"\b100[+-]|[+-]100=", answers(record)[0]))]
    assert len(hundred) > 150


# Stories and conversations


def test_the_thing_counted_stands_in_question_and_answer() -> None:
    for record in of_kind("word"):
        if "counted" in record:
            assert record["counted"] in answers(record)[0].split("，", 1)[1]
    for side in ("validation", "test"):
        assert sum("counted" in record for record in of_kind("word", side)) >= 100


def test_the_last_number_of_a_story_is_its_result() -> None:
    for record in of_kind("word"):
        (answer,) = answers(record)
        assert re.findall(r"-?\d+", answer)[-1] == equation_in(answer)[-1]


def test_stories_ask_with_numbers_that_fit_their_scene() -> None:
    rng = random.Random(3)
    for side in SIDES:
        for scene, problem, story in stories.stories(side, 300, rng):
            assert scene.fits(problem) and problem.result > 0
            assert {problem.a, problem.b} <= set(numbers_in(story.question))
            assert str(problem.result) in story.conclusion
            assert problem.result <= 20 or "几" not in story.question


def test_small_numbers_are_told_often() -> None:
    words = of_kind("word", "train")
    small = sum(max(map(int, re.findall(r"\d+", equation_in(answers(r)[0])[0]))) <= 10 for r in words)
    assert small >= 0.4 * len(words)


def test_follow_ups_compute_with_the_result_or_the_numbers_before() -> None:
    moves = Counter()
    for record in of_kind("turns"):
        given = answers(record)
        assert len(given) in (2, 3)
        for question, before, after in zip(questions(record)[1:], given, given[1:], strict=False):
            if after in HONEST:
                assert max(numbers_in(question)) > 100
                continue
            (expression, _), result = equation_in(after), equation_in(before)[-1]
            operands = set(re.findall(r"\d+", expression))
            asked = {str(number) for number in numbers_in(question)}
            if operands <= asked:
                moves["new"] += 1
            elif expression.startswith((f"{result}+", f"{result}-")) or "×" in expression:
                moves["on"] += 1
                assert asked <= operands
            else:
                moves["again"] += 1
                assert operands == set(re.findall(r"\d+", equation_in(before)[0])) and not asked
    assert min(moves[name] for name in ("new", "on", "again")) > 100


def test_follow_up_is_the_same_for_the_same_draw() -> None:
    assert arithmetic.follow_up(random.Random(7)) == arithmetic.follow_up(random.Random(7))


def test_three_terms_are_honest_lines_until_they_are_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "TRAIN_STEPS", True)
    kinds = Counter(record.get("kind", "") for record in arithmetic.records())
    assert kinds["steps"] == sum(arithmetic.NUM_STEPS.values()) and not of_kind("steps")
    assert len(of_kind("beyond")) == kinds["beyond"] + kinds["steps"]


def test_people_meet_signs_of_all_kinds() -> None:
    trained = "".join(question for r in RECORDS if side_of(r) == "train" for question in questions(r))
    assert set("+＋-－×*xX÷/=＝？?，。０１") <= set(trained)
