"""A conversation for the tests of records, and a function that shows the turns of a record."""

from typing import Any

from dataset.records.record import ChatRecord

USER = {"role": "user", "content": "你好"}
ASSISTANT = {"role": "assistant", "content": "你好！"}
LONG = [("system", "礼貌"), ("user", "早"), ("assistant", "早！"), ("user", "你好"), ("assistant", "你好！")]
"""As `turns` shows it."""


def turns(record: Any) -> list[tuple[str, str]]:
    """Role and content of each turn."""
    assert isinstance(record, ChatRecord)
    assert record.fields["conversations"] == record.messages
    return [(message["role"], message["content"]) for message in record.messages]
