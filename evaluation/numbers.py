"""The result that a text ends with, as numbers: 1,234 = 1234, 十二 = 12, 3/4, 3~5, 3小时20分, x=5.

Two texts agree if their results are equal, however they are written. What stands before an equals
sign is the working, not the result. A unit's exponent (m2) is no number. A sum that is not worked
out (3+4) is no result.
"""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

Result = tuple[object, ...]
"""A kind of result and its numbers: ("number", 7), ("range", 3, 5), ("remainder", 3, 1),
("parts", 3, 20) for 3小时20分, ("several", (("x", {5}), ("y", {3}))). The numbers are Fractions."""
Span = tuple[int, int, Fraction | None]
"""Start and end of a number in a text, and its value. None: a division that is not worked out."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")

_DIGITS = {"零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_TENS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "亿": 10**8}
_HAN = f"[{''.join((*_DIGITS, *_TENS, *_MYRIADS))}]"
_HAN_DIGIT = f"[{''.join(_DIGITS)}]"
_HAN_NUMBER = re.compile(f"{_HAN}+(?:点{_HAN_DIGIT}+)?")
_HAN_FRACTION = re.compile(f"({_HAN}+)分之({_HAN}+(?:点{_HAN_DIGIT}+)?)")
# Words with a numeral in them that is no number.
_NO_NUMERALS = re.compile(
    "一样|一共|一起|一定|一点儿?(?![零〇一二两三四五六七八九])|一些|一下|一直|一般|一边|一种|一切|一旦|一向|一番|一会儿?|"
    "统一|第一|唯一|十分|万一|千万(?=别|不|要)|百姓|三角|四周|星期[一二三四五六]|周[一二三四五六]|礼拜[一二三四五六]"
)
_AFTER_EQUALS = re.compile(rf"(?:=|等于|得)\s*(负?)({_HAN}+(?:点{_HAN_DIGIT}+)?)")

# A number: sign, digits (1,234.5), what may follow (×10^3, ^2, /4, %), and a Chinese scale (3万).
# No letter stands before it (m2). A 千 that belongs to a unit (5千米) is no scale.
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_NUMBER = re.compile(
    rf"(?<![A-Za-z^\d])(?<!\d\.)(?P<minus>-)?(?P<whole>{_PLAIN})"
    r"(?:\s*[*×]\s*10\^(?P<exponent>-?\d{1,3})(?!\d)|\^(?P<power>\d{1,2})(?!\d)|/(?P<below>\d+(?:\.\d+)?)(?![\d/])|(?P<percent>\s*%))?"
    r"(?P<scale>[十百千万亿]+(?![克米瓦卡帕伏赫兆分]))?"
)
# What stands between two numbers, or before or after one, and says how they belong together.
_WORKING = re.compile(r"\s*(?:=|等于)")
_OPERATORS = re.compile(r"\s*(?:[+\-−×÷*/x]|加上?|减去?|乘以?|除以?)\s*$")
_RANGE_MARK = re.compile(r"\s*(?:-|~|—|–|至|到)\s*$")
_REMAINDER_MARK = re.compile(r"\s*(?:,?\s*余数?\s*(?:是|为|=)?|\.{3,})\s*$")
_ASSIGNED = re.compile(r"(?<![A-Za-z+\-×÷*/])([A-Za-z]|[甲乙丙丁])\s*(?:=|是|为)\s*$")
_UNITS = "小时|分钟|个月|公里|千米|分米|厘米|毫米|千克|公斤|年|月|日|天|周|岁|时|点|分|秒|元|块|角|毛|米|斤|克|两|吨"
_UNIT_MARK = re.compile(rf"\s*(?:{_UNITS}|:)零?\s*$")


def folded(text: str) -> str:
    """A text with plain signs: half width, `m²` as `m^2`, 1又1/2 as 3/2, 负3 as `-3`."""
    # NFKC makes ½ to 1⁄2, and so 1½ to 11⁄2. A 又 between them keeps the whole number apart.
    text = re.sub(r"(?<=\d)(?=[¼½¾⅐-⅞])", "又", text)
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^" + run[0].translate(_SUPERSCRIPTS), text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/")
    text = text.replace("−", "-").replace("～", "~").replace("〜", "~")
    text = re.sub(r"(\d+)又(\d+)/(\d+)", lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", text)
    return re.sub(r"(?:负|零下)\s*(?=\d)", "-", text)


def result_of(text: str) -> Result | None:
    """The values of several variables if a text assigns them (x=5，y=3), else its last number.

    None if the text gives no number.
    """
    text = folded(text)
    spans = _spans(text)
    several = _assignments(text, spans)
    return ("several", several) if several else _last(text, spans)


def results_of(text: str) -> frozenset[Result]:
    """All that may be meant as the result of an answer: its variables, and its last number."""
    plain = folded(text)
    found = (result_of(text), _last(plain, _spans(plain)))
    return frozenset(result for result in found if result is not None)


def _last(text: str, spans: Sequence[Span]) -> Result | None:
    """The last number of a text; with the one before it if the two are a range (3~5), a quotient
    and its remainder (3余1), or parts of one quantity (3小时20分).

    None without a number, and for a sum that is not worked out: 3+4= or 3+4.
    """
    if not spans:
        return None
    start, end, value = spans[-1]
    if _WORKING.match(text, end):
        return None
    before = spans[-2] if len(spans) > 1 else None
    between = text[before[1] : start] if before else ""
    if before is not None:
        if _RANGE_MARK.fullmatch(between):
            return ("range", before[2], value)
        if _REMAINDER_MARK.fullmatch(between):
            return ("remainder", before[2], value)
        if _OPERATORS.fullmatch(between):
            return None
        if _UNIT_MARK.fullmatch(between):
            return ("parts", *_quantity(text, spans))
    return None if value is None else ("number", value)


def _quantity(text: str, spans: Sequence[Span]) -> tuple[Fraction | None, ...]:
    """The numbers of the last quantity: 1天3小时20分 has three, with nothing but a unit between."""
    first = len(spans) - 1
    while first > 0 and _UNIT_MARK.fullmatch(text[spans[first - 1][1] : spans[first][0]]):
        first -= 1
    return tuple(value for _, _, value in spans[first:])


def _assignments(text: str, spans: Sequence[Span]) -> tuple[tuple[str, object], ...]:
    """Variable and its values, sorted by name; empty if there is one variable with one value.

    A value that is given twice counts once.
    """
    found: dict[str, set[Fraction | None]] = {}
    for start, _, value in spans:
        if named := _ASSIGNED.search(text[:start]):
            found.setdefault(named[1].casefold(), set()).add(value)
    if len(found) < 2 and not any(len(values) > 1 for values in found.values()):
        return ()
    return tuple(sorted((name, frozenset(values)) for name, values in found.items()))


def _spans(text: str) -> list[Span]:
    """All numbers of a text, in their order.

    Chinese numerals count if the text has no digits, or right after an equals sign: beside digits
    they are mostly words (第一步).
    """
    spans: list[Span] = []
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
    # Such words are blanked out, so that the places of the others stay.
    text = _NO_NUMERALS.sub(lambda word: "\0" * len(word[0]), text)
    for match in _HAN_FRACTION.finditer(text):
        below, above = (chinese_number(part) for part in match.groups())
        if below:
            spans.append((match.start(), match.end(), _signed(above / below, text[match.start() - 1 : match.start()])))
    for match in _HAN_NUMBER.finditer(text):
        # The numerals of a fraction (四分之三) are no numbers of their own.
        if not any(start <= match.start() < end for start, end, _ in spans):
            sign = re.search(r"(?:负|零下)$", text[: match.start()])
            spans.append((match.start(), match.end(), _signed(chinese_number(match[0]), sign[0] if sign else "")))
    return sorted(spans, key=lambda span: span[0])


def _signed(value: Fraction, mark: str) -> Fraction:
    """The value, negative after 负 or 零下."""
    return -value if mark in {"负", "零下"} else value


def _value(match: re.Match[str], *, negative: bool) -> Fraction | None:
    """The value of a match of `_NUMBER`.

    None for a division that is not worked out (12/3, but 3/4 is a fraction), for one by 0, and for
    a power too large to compute.
    """
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
    tail = Fraction(0)
    if digits:
        tail = Fraction(int("".join(str(_DIGITS[digit]) for digit in digits)), 10 ** len(digits))
    # Digits alone are read one by one: 二〇二六.
    if all(char in _DIGITS for char in whole):
        return int("".join(str(_DIGITS[char]) for char in whole)) + tail
    # total: the value up to the last 万 or 亿. section: from there to the last 十, 百 or 千. digit:
    # what follows that.
    total = section = digit = 0
    unit = 1  # the unit that was spoken last
    zero = False  # whether the last character is 零: the digit after it starts anew
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
            # 亿 multiplies all before it (三万亿), and so does the first 万; a bare 万 is 10000.
            # A 万 after an 亿 multiplies only what stands between them (一亿三万).
            if unit > 10**4 or not total:
                total = (total + section + digit or 1) * unit
            else:
                total += (section + digit) * unit
            section = digit = 0
    # In short speech the last digit is one unit lower: 一百二 is 120, 三万五 is 35000.
    spoken_short = digit and unit >= 100 and whole[-2:-1] in {*_TENS, *_MYRIADS}
    return total + section + digit * (unit // 10 if spoken_short else 1) + tail


def same_result(expected: str, said: str) -> bool:
    """Whether an answer ends with the expected numbers; False if either text has none."""
    return result_of(expected) in results_of(said)
