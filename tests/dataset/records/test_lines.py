"""One line: what its record is, or the reason why it can't be read."""

import pytest

from dataset.records.lines import decode_item
from dataset.records.record import BadRecord


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a"', "malformed JSON"),
        (b"{'text': 'a'}", "a Python dict"),
        (b'{"text": "a",}', r"malformed JSON \(a comma before the end\)"),
        ("一段文字".encode(), "plain text, not JSON"),
        (b"a,b,c", "a line of CSV or of plain text"),
        (b"a\tb", "a line of TSV"),
        (b'"a"', "not a JSON object but a string"),
        (b"null", "not a JSON object but null"),
        ('{"text": "请介绍公园的门"}'.encode("gbk"), "GB18030"),
        (b"[" * 100_000, "malformed JSON"),
        (b'["a"]', "not a JSON object"),
        (b'{"text": "\xff"}', "invalid UTF-8"),
        (b'{"text": "\\ud83d"}', "broken Unicode escape"),
    ],
)
def test_a_bad_line_is_refused_with_its_reason(line: bytes, expected: str) -> None:
    with pytest.raises(BadRecord, match=expected):
        decode_item(line, {})


def test_placeholders_are_filled_so_that_the_line_stays_json() -> None:
    fill = {"{{name}}": '小"灵', "{{author}}": "a\\b"}
    assert decode_item('{"text": "我叫{{name}}，{{author}}造。"}'.encode(), fill) == {"text": '我叫小"灵，a\\b造。'}
    assert decode_item({"Question": "{{name}}？"}, fill) == {"Question": '小"灵？'}


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "一", "text": "二"}',
        '{"conversations": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}',
        '{"id": %s, "text": "一", "text": "二"}' % ("9" * 5000),
        '{"text": "一", "meta": {"a": 1, "a": NaN}}',
    ],
)
def test_a_key_that_stands_twice_loses_no_value_in_silence(line: str) -> None:
    with pytest.raises(BadRecord, match="a key twice in one JSON object"):
        decode_item(line.encode(), {})
