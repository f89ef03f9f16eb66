"""A conversation as the model reads it: what is left out, and what a pretrained model sees."""

import pytest

from configs.schema import UserError
from dataset.tokenizer import RustBPETokenizer
from inference.conversation import READ_SHARE, Conversation, prompt_ids

SYSTEM = {"role": "system", "content": "说短一点。"}


def turn(number: int) -> list[dict[str, str]]:
    """A question and its answer."""
    return [{"role": role, "content": f"{role}{number}"} for role in ("user", "assistant")]


def talk_of(tokenizer: RustBPETokenizer, num_turns: int, room: int = 10_000, system: str = "") -> Conversation:
    """A conversation of so many turns."""
    talk = Conversation(tokenizer, room)
    talk.system = system
    for number in range(num_turns):
        talk.ask(f"user{number}")
        talk.hear(f"assistant{number}")
    return talk


def test_a_pretrained_model_continues_the_text(tokenizer: RustBPETokenizer) -> None:
    messages = [{"role": "user", "content": "春天"}]
    bos = tokenizer.get_bos_token_id()
    assert prompt_ids(tokenizer, messages, completes=True) == [bos, *tokenizer.encode("春天")]
    assert prompt_ids(tokenizer, messages, completes=False) == tokenizer.render_for_completion(messages)
    talk = Conversation(tokenizer, 100, completes=True)
    assert talk.ask("春天") == [bos, *tokenizer.encode("春天")]
    talk.hear("来了。")
    assert talk.ask("夏天") == [bos, *tokenizer.encode("夏天")]
    with pytest.raises(UserError, match="only pretrained"):
        talk.system = "说短一点。"


@pytest.mark.parametrize("system", [[], [SYSTEM]])
def test_the_oldest_turns_are_left_out_whole_and_the_system_prompt_stays(
    tokenizer: RustBPETokenizer, system: list[dict[str, str]]
) -> None:
    question = {"role": "user", "content": "问"}
    wanted = tokenizer.render_for_completion([*system, *turn(4), *turn(5), question])
    room = -int(-len(wanted) // READ_SHARE)  # the smallest in which these tokens fit
    talk = talk_of(tokenizer, 6, system=SYSTEM["content"] if system else "")
    talk.room = room
    assert talk.ask("问") == wanted
    assert talk.left_out == 4
    assert [m for m in talk.messages if m["role"] != "system"] == [m for n in range(6) for m in turn(n)] + [question]
    talk.undo()
    talk.room = 1
    assert talk.ask("问") == tokenizer.render_for_completion([*system, question])
    assert talk.left_out == 6


def test_what_is_left_out_grows_with_the_conversation(tokenizer: RustBPETokenizer) -> None:
    talk = talk_of(tokenizer, 0, room=100, system="说短一点。")
    left_out = []
    for number in range(20):
        assert len(talk.ask(f"user{number}")) <= READ_SHARE * 100
        talk.hear(f"assistant{number}")
        left_out.append(talk.left_out)
    assert left_out == sorted(left_out) and left_out[0] == 0 < left_out[-1] < 19


def test_the_last_turn_is_taken_back_whole(tokenizer: RustBPETokenizer) -> None:
    talk = talk_of(tokenizer, 2, system="说短一点。")
    assert talk.num_turns == 2 and talk.last_turn == ("user1", "assistant1")
    assert talk.undo() == turn(1)
    assert talk.messages == [SYSTEM, *turn(0)]
    assert talk.undo() == turn(0)
    assert talk.undo() == []
    assert talk.messages == [SYSTEM]


def test_a_new_conversation_keeps_the_system_prompt(tokenizer: RustBPETokenizer) -> None:
    talk = talk_of(tokenizer, 2, system="说短一点。")
    talk.restart()
    assert talk.messages == [SYSTEM] and talk.system == SYSTEM["content"]
    talk.system = "说长一点。"
    assert talk.messages == [{"role": "system", "content": "说长一点。"}]
    talk.system = ""
    assert talk.messages == [] and talk.system == ""


def test_a_system_prompt_that_leaves_no_room_is_refused_and_changes_nothing(tokenizer: RustBPETokenizer) -> None:
    talk = talk_of(tokenizer, 1, room=40, system="短。")
    before = list(talk.messages)
    with pytest.raises(UserError, match="can read 30"):
        talk.system = "很长" * 40
    assert talk.messages == before


def test_an_answer_keeps_its_thought_and_whether_it_is_whole(tokenizer: RustBPETokenizer) -> None:
    talk = talk_of(tokenizer, 0)
    talk.ask("1+1=？")
    talk.hear("2", thought="一加一", is_whole=False)
    said = {"role": "assistant", "content": "2", "reasoning_content": "一加一", "loss": False}
    assert talk.messages[-1] == said
    assert talk.ask("再说") == tokenizer.render_for_completion([*talk.messages])
