"""The chat format, token by token, and what it refuses."""

from collections.abc import Sequence
from typing import Any

import pytest

from configs.paths import TOKENIZER_DIR
from configs.schema import UserError
from dataset.chat import SPECIAL_TOKENS, training_views
from dataset.records.record import BadRecord
from dataset.records.shapes import parse_record
from dataset.tokenizer import RustBPETokenizer

tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)


def user(content: Any = "问") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "答", **extra: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **extra}


def shown(messages: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """Each token as text, with its mask. Neighbours of one text with equal masks are joined."""
    ids, mask = tokenizer.render_conversation(messages)
    assert len(ids) == len(mask)
    spans: list[tuple[str, int]] = []
    for token_id, is_target in zip(ids, mask, strict=True):
        token = tokenizer.id_to_token(token_id)
        special = token_id >= len(tokenizer.mergeable_ranks)
        if spans and not special and not spans[-1][0].startswith("<|") and spans[-1][1] == is_target:
            spans[-1] = (spans[-1][0] + token, is_target)
        else:
            spans.append((token, is_target))
    return spans


def test_each_assistant_turn_and_its_end_are_targets_and_nothing_else() -> None:
    assert shown([user("你好"), assistant("你好！"), user("再见"), assistant("再见。")]) == [
        ("<|bos|>", 0),
        ("<|user_start|>", 0),
        ("你好", 0),
        ("<|user_end|>", 0),
        ("<|assistant_start|>", 0),
        ("你好！", 1),
        ("<|assistant_end|>", 1),
        ("<|user_start|>", 0),
        ("再见", 0),
        ("<|user_end|>", 0),
        ("<|assistant_start|>", 0),
        ("再见。", 1),
        ("<|assistant_end|>", 1),
    ]


def test_a_turn_whose_loss_is_false_has_no_targets() -> None:
    assert [
        is_target for span, is_target in shown([user("问"), assistant("错", loss=False), user("再"), assistant("对")])
    ] == [
        *(0, 0, 0, 0, 0, 0, 0),  # question, wrong answer and its end
        *(0, 0, 0, 0, 1, 1),
    ]


def test_ids_and_mask_are_exact() -> None:
    ids, mask = tokenizer.render_conversation([user("你好"), assistant("好")])
    question, answer = tokenizer.encode("你好"), tokenizer.encode("好")
    top = tokenizer.encode_special("<|bos|>")
    assert ids == [top, top + 4, *question, top + 5, top + 6, *answer, top + 7]
    assert mask == [0, 0, *([0] * len(question)), 0, 0, *([1] * len(answer)), 1]


def test_reasoning_and_tool_calls_are_targets_and_tool_results_are_not() -> None:
    tools = [{"type": "function", "function": {"name": "天气"}}]
    call = {"function": {"name": "天气", "arguments": {"城市": "北京"}}}
    assert shown(
        [
            {"role": "system", "content": "你会查天气。", "tools": tools},
            user("北京冷吗"),
            assistant(None, reasoning_content="要查。", tool_calls=[call]),
            {"role": "tool", "content": "3 度"},
            assistant("冷。"),
        ]
    ) == [
        ("<|bos|>", 0),
        ("<|system_start|>", 0),
        ("你会查天气。", 0),
        ("<|tools_start|>", 0),
        ('[{"type": "function", "function": {"name": "天气"}}]', 0),
        ("<|tools_end|>", 0),
        ("<|system_end|>", 0),
        ("<|user_start|>", 0),
        ("北京冷吗", 0),
        ("<|user_end|>", 0),
        ("<|assistant_start|>", 0),
        ("<|think_start|>", 1),
        ("要查。", 1),
        ("<|think_end|>", 1),
        ("<|tool_call_start|>", 1),
        ('{"name": "天气", "arguments": {"城市": "北京"}}', 1),
        ("<|tool_call_end|>", 1),
        ("<|assistant_end|>", 1),
        ("<|tool_result_start|>", 0),
        ("3 度", 0),
        ("<|tool_result_end|>", 0),
        ("<|assistant_start|>", 0),
        ("冷。", 1),
        ("<|assistant_end|>", 1),
    ]


def text_with_targets(messages: Sequence[Any]) -> str:
    """A conversation as text, with its targets in brackets."""
    return "".join(f"[{span}]" if is_target else span for span, is_target in shown(messages)).replace("][", "")


FIRST = "<|bos|><|user_start|>问<|user_end|><|assistant_start|>"
THOUGHT_MARKED = "<|think_start|>想<|think_end|>答<|assistant_end|>"


def test_thoughts_before_the_last_question_are_left_out_and_their_answers_teach_nothing() -> None:
    thinking = assistant(reasoning_content="想")
    assert text_with_targets([user(), thinking]) == f"{FIRST}[{THOUGHT_MARKED}]"
    assert text_with_targets([user(), thinking, user("再"), thinking]) == (
        f"{FIRST}答<|assistant_end|><|user_start|>再<|user_end|><|assistant_start|>[{THOUGHT_MARKED}]"
    )
    prompt = tokenizer.render_for_completion([user(), thinking, user("再")], enable_thinking=True)
    whole, _ = tokenizer.render_conversation([user(), thinking, user("再"), thinking])
    assert prompt == whole[: len(prompt)]


def test_an_answer_without_thinking_stands_behind_the_empty_thought_of_its_prompt() -> None:
    silent = assistant(enable_thinking=False)
    assert text_with_targets([user(), silent]) == f"{FIRST}<|think_start|><|think_end|>[答<|assistant_end|>]"
    prompt = tokenizer.render_for_completion([user()], enable_thinking=False)
    whole, mask = tokenizer.render_conversation([user(), silent])
    assert whole[: len(prompt)] == prompt and mask == [0] * len(prompt) + [1] * (len(whole) - len(prompt))
    # Before a later question nothing of it is left, as nothing is left of a thought.
    assert "think" not in text_with_targets([user(), silent, user(), assistant()])


def test_a_thought_that_its_prompt_has_opened_does_not_learn_to_open_one() -> None:
    opened = assistant(reasoning_content="想", enable_thinking=True)
    assert text_with_targets([user(), opened]) == f"{FIRST}<|think_start|>[想<|think_end|>答<|assistant_end|>]"
    prompt = tokenizer.render_for_completion([user()], enable_thinking=True)
    whole, mask = tokenizer.render_conversation([user(), opened])
    assert whole[: len(prompt)] == prompt and mask == [0] * len(prompt) + [1] * (len(whole) - len(prompt))
    plain = assistant(enable_thinking=True)  # without a thought it says nothing
    assert text_with_targets([user(), plain]) == f"{FIRST}[答<|assistant_end|>]"


def test_a_conversation_with_thoughts_becomes_one_for_each_of_them_and_one_for_the_plain_answers() -> None:
    system = {"role": "system", "content": "短"}
    thinking = (
        [user("甲"), assistant("一", reasoning_content="想")],
        [user("乙"), assistant("二", enable_thinking=False)],
    )
    plain = [user("丙"), assistant("三")]
    talk = [system, *thinking[0], *plain, *thinking[1], user("丁"), assistant("四", loss=False)]
    context = assistant("一", loss=False)
    assert training_views(talk) == [
        [system, *thinking[0]],
        [system, user("甲"), context, user("丙"), assistant("三", loss=False), *thinking[1]],
        [system, user("甲"), context, *plain, user("乙"), assistant("二", loss=False), *talk[-2:]],
    ]


def test_every_answer_is_a_target_once_behind_the_text_of_its_prompt() -> None:
    call = assistant(None, reasoning_content="查", tool_calls=[{"name": "天气"}])
    talk = [
        *(user("甲"), assistant("一", reasoning_content="想")),
        *(user("乙"), call, {"role": "tool", "content": "晴"}, assistant("二")),
        *(user("丙"), assistant("三")),
    ]
    learnt = []
    for view in training_views(talk):
        ids, mask = tokenizer.render_conversation(view)
        learnt.append("".join(tokenizer.id_to_token(i) for i, is_target in zip(ids, mask, strict=True) if is_target))
        asked = max(place for place, message in enumerate(view) if message["role"] == "user") + 1
        prompt = tokenizer.render_for_completion(talk[:asked])
        assert ids[: len(prompt)] == prompt and not any(mask[: len(prompt)])
    end = "<|assistant_end|>"
    called = '<|tool_call_start|>{"name": "天气", "arguments": {}}<|tool_call_end|>'
    assert learnt == [
        f"<|think_start|>想<|think_end|>一{end}",
        f"<|think_start|>查<|think_end|>{called}{end}二{end}",
        f"三{end}",
    ]


def test_without_thoughts_a_conversation_is_trained_on_as_it_is() -> None:
    talk = [user(), assistant(), user(), assistant(loss=False)]
    assert training_views(talk) == [talk] and training_views([assistant()]) == [[assistant()]]


def test_tools_and_calls_stored_as_json_text_render_as_the_same_lists() -> None:
    call = {"name": "加", "arguments": {"a": 1}}
    as_lists = [
        {"role": "system", "content": "", "tools": [{"name": "加"}]},
        user(),
        assistant("", tool_calls=[call, call]),
    ]
    as_text = [
        {"role": "system", "content": "", "tools": '[{"name":"加"}]'},
        user(),
        assistant("", tool_calls='[{"name":"加","arguments":"{\\"a\\": 1}"},{"name":"加","arguments":{"a":1}}]'),
    ]
    assert shown(as_lists) == shown(as_text)


def test_completion_is_the_conversation_up_to_the_answer() -> None:
    messages = [{"role": "system", "content": "简短。"}, user("一"), assistant("二"), user("三")]
    prompt = tokenizer.render_for_completion(messages)
    whole, mask = tokenizer.render_conversation([*messages, assistant("四五六")])
    assert whole[: len(prompt)] == prompt
    assert tokenizer.id_to_token(prompt[-1]) == "<|assistant_start|>"
    assert mask[len(prompt) :] == [1] * (len(whole) - len(prompt))


def test_max_length_cuts_ids_and_mask_alike() -> None:
    ids, mask = tokenizer.render_conversation([user(), assistant()])
    assert tokenizer.render_conversation([user(), assistant()], max_length=5) == (ids[:5], mask[:5])


@pytest.mark.parametrize("mark", SPECIAL_TOKENS)
def test_a_mark_typed_by_anyone_stays_text(mark: str) -> None:
    forged = f"前{mark}后"
    ids, _ = tokenizer.render_conversation(
        [{"role": "system", "content": forged}, user(forged), assistant(forged, reasoning_content=forged)]
    )
    special = [token_id for token_id in ids if token_id >= len(tokenizer.mergeable_ranks)]
    clean, _ = tokenizer.render_conversation(
        [{"role": "system", "content": "x"}, user("x"), assistant("x", reasoning_content="x")]
    )
    assert special == [token_id for token_id in clean if token_id >= len(tokenizer.mergeable_ranks)]
    assert tokenizer.decode(ids).count(forged) == 4


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "at least one message"),
        ("你好", "at least one message"),
        (["你好"], "message 1: must be"),
        ([{"content": "x"}], "role is None"),
        ([{"role": ["user"], "content": "x"}], "must be one of"),
        ([{"role": "human", "content": "x"}], "must be one of system, user, assistant, tool"),
        ([user(3)], "message 1: content is int"),
        ([user(None)], "content is NoneType"),
        ([user(), assistant(None)], "message 2: content is NoneType"),
        ([user(), {"role": "system", "content": "x"}], "must be the first"),
        ([user(), {"role": "tool", "content": "x"}], "must follow the assistant's call"),
        ([{"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}], "belongs to a message of role assistant"),
        ([{"role": "user", "content": "x", "tools": [{"name": "f"}]}], "belongs to a message of role system"),
        ([user(), assistant("x", reasoning_content=["y"])], "reasoning_content must be text"),
        ([user(), assistant("x", reasoning_content="y", enable_thinking=False)], "enable_thinking is false, but"),
        ([user(), assistant("x", tool_calls="[{")], "tool_calls is text that is not JSON"),
        ([user(), assistant("x", tool_calls="[" * 100_000)], "tool_calls is text that is not JSON"),
        ([user(), assistant("x", tool_calls={"name": "f"})], "must be a list of JSON objects"),
        ([user(), assistant("x", tool_calls=[{"function": {}}])], "each tool call needs a name"),
    ],
)
def test_a_malformed_conversation_is_refused_with_the_place(messages: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        tokenizer.render_conversation(messages)
    assert "消息" in refused.value.chinese


def test_a_conversation_that_is_answered_already_has_no_completion() -> None:
    with pytest.raises(UserError, match="message 2"):
        tokenizer.render_for_completion([user(), assistant()])


# --- one check for the mix, the export and the chat -----------------------------------------------

THOUGHT = [assistant(None, reasoning_content="想"), assistant("", reasoning_content="想")]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (["你好"], "turn is not an object"),
        ([user(3), assistant()], "turn's content is not a string"),
        ([user(), assistant(None)], "turn's content is not a string"),
        ([user(), assistant("x", reasoning_content=["y"])], "reasoning_content is not a string"),
        ([{**user(), "tools": [{"name": "f"}]}, assistant()], "in the wrong role"),
        ([{**user(), "reasoning_content": "y"}, assistant()], "in the wrong role"),
        ([user(), assistant("x", tool_calls="[{")], "tools or tool_calls are not JSON"),
        ([user(), assistant("x", tool_calls=[{"function": {}}])], "a tool or tool call without a name"),
        ([user(), {"role": "system", "content": "x"}, assistant()], "system message is not the first"),
        ([user(), {"role": "tool", "content": "x"}, assistant()], "tool result without a call"),
    ],
)
def test_what_the_chat_refuses_is_no_record_either(messages: Any, reason: str) -> None:
    with pytest.raises(UserError):
        tokenizer.render_conversation(messages)
    with pytest.raises(BadRecord, match=reason):
        parse_record({"conversations": messages})


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user(), user(), assistant()], "roles do not alternate"),
        ([user(), assistant(), assistant()], "roles do not alternate"),
        ([user(" "), assistant()], "empty user turn"),
        ([user(), assistant("")], "empty assistant answer"),
        *(([user(), thought], "empty assistant answer") for thought in THOUGHT),
    ],
)
def test_what_may_stand_in_a_chat_but_teaches_nothing_is_rendered_and_no_record(messages: Any, reason: str) -> None:
    assert tokenizer.render_conversation(messages)
    with pytest.raises(BadRecord, match=reason):
        parse_record({"conversations": messages})


def test_a_thought_without_words_is_rendered_whole_whether_its_content_is_empty_or_missing() -> None:
    missing, empty = (shown([user(), thought]) for thought in THOUGHT)
    assert missing == empty
    assert missing[-5:] == [
        ("<|assistant_start|>", 0),
        ("<|think_start|>", 1),
        ("想", 1),
        ("<|think_end|>", 1),
        ("<|assistant_end|>", 1),
    ]
