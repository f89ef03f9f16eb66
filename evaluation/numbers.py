"""What a text gives as its result, as numbers: 1,234 = 1234, 0.50 = 0.5, 十二 = 12, 3/4 as a
fraction, 3~5 as a range.

Two texts agree where their results are equal, however they are written. What stands before an
equals sign is working, a unit's exponent (m2) is no number, and a sum that nobody worked out (3+4)
is no result.
"""

import re
import unicodedata
from fractions import Fraction

Result = tuple[object, ...]
"""A kind of result and its numbers: ("number", 7), ("range", 3, 5), ("several", (("x", 5), ("y",
3))) ..."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")

_DIGITS = {"零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_TENS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "亿": 10**8}
_HAN = f"[{''.join((*_DIGITS, *_TENS, *_MYRIADS))}]"
_HAN_DIGIT = f"[{''.join(_DIGITS)}]"
_HAN_NUMBER = re.compile(f"{_HAN}+(?:点{_HAN_DIGIT}+)?")
_HAN_FRACTION = re.compile(f"({_HAN}+)分之({_HAN}+(?:点{_HAN_DIGIT}+)?)")
# Words in which a numeral counts nothing.
_NO_NUMERALS = re.compile(
    "一样|一共|一起|一定|一点儿?(?![零〇一二两三四五六七八九])|一些|一下|一直|一般|一边|一种|一切|一旦|一向|一番|一会儿?|"
    "统一|第一|唯一|十分|万一|千万(?=别|不|要)|百姓|三角|四周|星期[一二三四五六]|周[一二三四五六]|礼拜[一二三四五六]"
)
_AFTER_EQUALS = re.compile(rf"(?:=|等于|得)\s*(负?)({_HAN}+(?:点{_HAN_DIGIT}+)?)")

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_NUMBER = re.compile(
    rf"(?<![A-Za-z^\d])(?<!\d\.)(?P<minus>-)?(?P<whole>{_PLAIN})"
    r"(?:\s*[*×]\s*10\^(?P<exponent>-?\d{1,3})(?!\d)|\^(?P<power>\d{1,2})(?!\d)|/(?P<below>\d+(?:\.\d+)?)(?![\d/])|(?P<percent>\s*%))?"
    r"(?P<scale>[十百千万亿]+(?![克米瓦卡帕伏赫兆分]))?"
)
_WORKING = re.compile(r"\s*(?:=|等于)")
_OPERATORS = re.compile(r"\s*(?:[+\-−×÷*/x]|加上?|减去?|乘以?|除以?)\s*$")
_RANGE_MARK = re.compile(r"\s*(?:-|~|—|–|至|到)\s*$")
_REMAINDER_MARK = re.compile(r"\s*(?:,?\s*余数?\s*(?:是|为|=)?|\.{3,})\s*$")
_ASSIGNED = re.compile(r"(?<![A-Za-z+\-×÷*/])([A-Za-z]|[甲乙丙丁])\s*(?:=|是|为)\s*$")
_UNITS = "小时|分钟|个月|公里|千米|分米|厘米|毫米|千克|公斤|年|月|日|天|周|岁|时|点|分|秒|元|块|角|毛|米|斤|克|两|吨"
_UNIT_MARK = re.compile(rf"\s*(?:{_UNITS}|:)零?\s*$")


def folded(text: str) -> str:
    """Widths and superscripts made plain, `m²` to `m^2`; a Chinese minus before a number becomes
    `-`."""
    text = re.sub(r"(?<=\d)(?=[¼½¾⅐-⅞])", "又", text)
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^" + run[0].translate(_SUPERSCRIPTS), text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/")
    text = text.replace("−", "-").replace("～", "~").replace("〜", "~")
    text = re.sub(r"(\d+)又(\d+)/(\d+)", lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", text)
    return re.sub(r"(?:负|零下)\s*(?=\d)", "-", text)


def result_of(text: str) -> Result | None:
    """What a text ends up with, or None where it gives no number: the values of several variables
    (x=5，y=3) where it assigns them, else its last number."""
    text = folded(text)
    parts = _parts(text)
    several = _assignments(text, parts)
    return ("several", several) if several else _last(text, parts)


def results_of(text: str) -> frozenset[Result]:
    """All that may be meant as the result of an answer: its variables, and its last number."""
    plain = folded(text)
    found = (result_of(text), _last(plain, _parts(plain)))
    return frozenset(result for result in found if result is not None)


def _last(text: str, parts: "list[tuple[int, int, Fraction | None]]") -> Result | None:
    """The last number, with the one before where the two are a range (3~5), a quotient and its
    remainder (3余1), or parts of one quantity (3小时20分)."""
    if not parts:
        return None
    start, end, value = parts[-1]
    if _WORKING.match(text, end):
        return None  # 3+4= is a sum that nobody worked out, and so is 3+4
    before = parts[-2] if len(parts) > 1 else None
    between = text[before[1] : start] if before else ""
    if before is not None:
        if _RANGE_MARK.fullmatch(between):
            return ("range", before[2], value)
        if _REMAINDER_MARK.fullmatch(between):
            return ("remainder", before[2], value)
        if _OPERATORS.fullmatch(between):
            return None
        if _UNIT_MARK.fullmatch(between):
            return ("parts", *_quantity(text, parts))
    return None if value is None else ("number", value)


def _quantity(text: str, parts: "list[tuple[int, int, Fraction | None]]") -> "tuple[Fraction | None, ...]":
    """The numbers of the last quantity: all that are tied to the next by a unit alone."""
    first = len(parts) - 1
    while first > 0 and _UNIT_MARK.fullmatch(text[parts[first - 1][1] : parts[first][0]]):
        first -= 1
    return tuple(value for _, _, value in parts[first:])


def _assignments(text: str, parts: "list[tuple[int, int, Fraction | None]]") -> tuple[tuple[str, object], ...]:
    """Each variable's values, where there are two or more variables or values; a later line of the
    same is a repeat."""
    found: dict[str, set[Fraction | None]] = {}
    for start, _, value in parts:
        if named := _ASSIGNED.search(text[:start]):
            found.setdefault(named[1].casefold(), set()).add(value)
    if len(found) < 2 and not any(len(values) > 1 for values in found.values()):
        return ()
    return tuple(sorted((name, frozenset(values)) for name, values in found.items()))


def _parts(text: str) -> "list[tuple[int, int, Fraction | None]]":
    """Start, end and value of each number; None for a division that nobody worked out (12/3).

    Chinese numerals count where the text has no digits, or right after an equals sign.
    """
    spans: list[tuple[int, int, Fraction | None]] = []
    if re.search(r"\d", text):
        for match in _NUMBER.finditer(text):
            start, minus = match.start(), match["minus"]
            if minus and re.search(r"[\d)%]\s*$", text[:start]):
                start, minus = start + 1, None  # 8-3: the mark stands between two numbers
            spans.append((start, match.end(), _value(match, negative=minus is not None)))
        spans += [
            (match.start(2), match.end(2), _signed(chinese_number(match[2]), match[1]))
            for match in _AFTER_EQUALS.finditer(text)
            if not text[match.end() :].startswith("分之") and not _NO_NUMERALS.match(text, match.start(2))
        ]
        return sorted(spans, key=lambda span: span[0])
    text = _NO_NUMERALS.sub(lambda word: "\0" * len(word[0]), text)
    fractions = list(_HAN_FRACTION.finditer(text))
    for match in fractions:
        below, above = (chinese_number(part) for part in match.groups())
        if below:
            spans.append((match.start(), match.end(), _signed(above / below, text[match.start() - 1 : match.start()])))
    for match in _HAN_NUMBER.finditer(text):
        if not any(start <= match.start() < end for start, end, _ in spans):
            sign = re.search(r"(?:负|零下)$", text[: match.start()])
            spans.append((match.start(), match.end(), _signed(chinese_number(match[0]), sign[0] if sign else "")))
    return sorted(spans, key=lambda span: span[0])


def _signed(value: Fraction, mark: str) -> Fraction:
    return -value if mark in {"负", "零下"} else value


def _value(match: "re.Match[str]", *, negative: bool) -> Fraction | None:
    value = Fraction(match["whole"].replace(",", ""))
    if match["exponent"]:
        value *= Fraction(10) ** int(match["exponent"])
    elif match["power"]:
        if value.numerator > 10**6:
            return None
        value **= int(match["power"])
    elif match["below"]:
        below = Fraction(match["below"])
        if below == 0 or (below != 1 and (value / below).denominator == 1):
            return None
        value /= below
    elif match["percent"]:
        value /= 100
    for unit in match["scale"] or "":
        value *= _TENS.get(unit) or _MYRIADS[unit]
    return -value if negative else value


def chinese_number(text: str) -> Fraction:
    """The value of a Chinese numeral: 一百零五 105, 二〇二六 2026, 三万五 35000, 一点五 1.5."""
    whole, _, digits = text.partition("点")
    tail = Fraction(int("".join(str(_DIGITS[digit]) for digit in digits)), 10 ** len(digits)) if digits else Fraction(0)
    if all(char in _DIGITS for char in whole):
        return int("".join(str(_DIGITS[char]) for char in whole)) + tail
    total = section = digit = 0
    unit = 1  # the unit spoken last: 一百二 is 120, the digit after it counts tens
    zero = False
    for char in whole:
        if char in _DIGITS:
            digit = digit * 10 + _DIGITS[char] if digit and not zero else _DIGITS[char]
            zero = char in "零〇"
        elif char in _TENS:
            unit, zero = _TENS[char], False
            section += (digit or 1) * unit
            digit = 0
        else:
            unit, zero = _MYRIADS[char], False
            total = (
                (total + section + digit or 1) * unit if unit > 10**4 or not total else total + (section + digit) * unit
            )
            section = digit = 0
    spoken_short = digit and unit >= 100 and whole[-2:-1] in {*_TENS, *_MYRIADS}
    return total + section + digit * (unit // 10 if spoken_short else 1) + tail


def same_result(expected: str, said: str) -> bool:
    """Whether an answer ends up with the expected numbers; False where either gives none."""
    return result_of(expected) in results_of(said)
