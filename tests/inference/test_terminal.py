"""A conversation at the terminal: what each command does to it, and how answers are shown."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dataset.chat import THOUGHT
from dataset.tokenizer import RustBPETokenizer
from inference import terminal
from inference.conversation import Conversation
from inference.engine import Engine
from inference.replies import Reply
from inference.request import Request
from inference.sampling import Sampling
from inference.terminal import DIM, PLAIN, Chat

SYSTEM = {"role": "system", "content": "说短一点。"}


class Scripted(Reply):
    """An answer that is known before: the next one of `script`."""

    script: Iterator[str | Callable[[], str]]
    asked: list[tuple[list[int], Sampling]]
    ends = True

    def __init__(self, engine: Engine, prompt: Sequence[int], sampling: Sampling) -> None:
        self.request = Request(engine.tokenizer, prompt, sampling, frozenset())
        self.engine, self.loops = engine, False
        self.asked.append((list(prompt), sampling))

    def __iter__(self) -> Iterator[str]:
        said = next(self.script)
        for token in self.engine.tokenizer.encode(said if isinstance(said, str) else said()):
            self.request.append(token, None)
            yield self.request.new_text()
            if self.request.finished:
                return
        self.request.finish("stop" if self.ends else "length")

    def stop(self) -> None:
        self.request.finish("abort")


class Hall:
    """A chat with a scripted model, and what it shows."""

    def __init__(self, tokenizer: RustBPETokenizer, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.talk = Conversation(tokenizer, 2000)
        engine = cast(Engine, SimpleNamespace(tokenizer=tokenizer))
        self.chat = Chat(engine, self.talk, Sampling(seed=7), name="rlhf_16.pth")
        self.monkeypatch, self.capsys = monkeypatch, capsys
        Scripted.asked, Scripted.ends = [], True
        monkeypatch.setattr(terminal, "Reply", Scripted)

    def type(self, *lines: str, said: Sequence[str | Callable[[], str]] = ()) -> tuple[str, str]:
        """Type lines to a model that answers so. Returns: stdout, stderr (not the greeting)."""
        typed = iter(lines)

        def read(shown: str) -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        self.monkeypatch.setattr("builtins.input", read)
        Scripted.script = iter(said)
        self.capsys.readouterr()
        self.chat.run()
        shown = self.capsys.readouterr()
        return shown.out, shown.err.partition("\n")[2].rstrip("\n")

    @property
    def said(self) -> list[str]:
        """What stands in the conversation."""
        return [message["content"] for message in self.talk.messages]


@pytest.fixture
def hall(tokenizer: RustBPETokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hall:
    return Hall(tokenizer, monkeypatch, capsys)


def test_questions_and_answers_make_a_conversation(hall: Hall, tokenizer: RustBPETokenizer) -> None:
    out, err = hall.type("你好", "", "再见 ", said=["你好！", "再见！"])
    assert (out, err) == ("模型: 你好！\n模型: 再见！\n", "")
    assert hall.said == ["你好", "你好！", "再见", "再见！"]
    assert Scripted.asked[1][0] == tokenizer.render_for_completion(hall.talk.messages[:3])


def test_an_unknown_command_is_not_sent_to_the_model(hall: Hall) -> None:
    out, err = hall.type("/foo bar", "/?")
    assert out == "" and hall.said == []
    assert "/foo" in err and "/help" in err and len(err.splitlines()) == 2


@pytest.mark.parametrize("word", ["exit", "quit", "/exit", "/quit", "EXIT", " exit "])
def test_each_word_for_leaving_leaves(hall: Hall, word: str) -> None:
    assert hall.type(word, "你好") == ("", "")
    assert hall.said == []


@pytest.mark.parametrize("slash", ["／", "、"])
def test_the_slash_of_a_chinese_keyboard_begins_a_command_too(hall: Hall, slash: str) -> None:
    hall.type("你好", f"{slash}temp 0.5", f"{slash}undo", slash, f"{slash}春天", said=["你好！", "甲", "乙"])
    assert hall.chat.sampling.temperature == 0.5
    assert hall.said == [slash, "甲", f"{slash}春天", "乙"]
    assert hall.type(f"{slash}exit", "再见") == ("", "")


@pytest.mark.parametrize("line", [" /foo", "/etc/passwd 是什么", "// 注释"])
def test_what_is_no_command_is_sent(hall: Hall, line: str) -> None:
    hall.type(line, said=["是。"])
    assert hall.said == [line.strip(), "是。"]


@pytest.mark.parametrize("line", ["/new 你好", "/undo 2", "/save", "/load", "/retry x", "/help me"])
def test_a_command_with_too_much_or_too_little_behind_it_shows_its_form(hall: Hall, line: str) -> None:
    hall.type("你好", said=["你好！"])
    _, err = hall.type(line)
    assert err.startswith(f"用法 usage: {line.split()[0]}") and "\n" not in err
    assert hall.said == ["你好", "你好！"]


def test_help_names_every_command(hall: Hall) -> None:
    _, err = hall.type("/HELP")
    assert all(f"{name} " in err for name in (*terminal.COMMANDS, "/exit"))


def test_undo_takes_the_last_turn_back_and_retry_asks_it_again(hall: Hall) -> None:
    hall.type("一", "二", said=["甲", "乙"])
    out, _ = hall.type("/retry", said=["丙"])
    assert out == "模型: 丙\n" and hall.said == ["一", "甲", "二", "丙"]
    _, err = hall.type("/undo")
    assert "二" in err and hall.said == ["一", "甲"]
    hall.type("/undo")
    assert hall.said == []
    _, err = hall.type("/undo", "/retry")
    assert err.splitlines() == ["没有可撤回的 nothing to take back。", "还没有提问 nothing was asked yet。"]


def test_each_answer_has_a_seed_of_its_own_the_first_that_of_the_flag(hall: Hall) -> None:
    hall.type("一", "/retry", said=["甲", "甲"])
    assert [sampling.seed for _, sampling in Scripted.asked] == [7, 8]
    _, err = hall.type("/retry", said=["甲"])
    assert "/temp" in err  # greedy: why it is the same
    _, err = hall.type("/temp 1", "/retry", said=["甲"])
    assert "temperature 0 " not in err


def test_a_retry_without_an_answer_keeps_the_answer_before(hall: Hall) -> None:
    hall.type("一", "/retry", said=["甲", ""])
    assert hall.said == ["一", "甲"]


@pytest.mark.parametrize("bad", ["nan", "-1", "inf", "热", "1e-9", "0.5 0.6"])
def test_a_bad_temperature_is_one_line_and_changes_nothing(hall: Hall, bad: str) -> None:
    hall.type("/temp 0.5")
    _, err = hall.type(f"/temp {bad}")
    assert "temperature" in err and "\n" not in err
    assert hall.chat.sampling.temperature == 0.5
    assert hall.type("/temp")[1] == "温度 temperature: 0.5"


def test_the_system_prompt_is_set_shown_kept_by_new_and_removed(hall: Hall) -> None:
    assert hall.type("/system")[1] == "系统提示 system: 无 none"
    hall.type("/system 说短一点。", "你好", said=["好。"])
    assert hall.talk.messages[0] == SYSTEM
    assert hall.type("/system")[1] == "系统提示 system: 说短一点。"
    assert "stays" in hall.type("/new")[1] and hall.talk.messages == [SYSTEM]
    _, err = hall.type("/system " + "很长" * 2000)
    assert "system prompt of" in err and "\n" not in err and hall.talk.messages == [SYSTEM]
    hall.type("/system -")
    assert hall.talk.messages == []


def test_a_conversation_is_saved_and_loaded(hall: Hall, tmp_path: Path) -> None:
    path = tmp_path / "my talk.jsonl"
    assert hall.type(f"/save {path}")[1] == "还没有对话 nothing was said yet。"
    hall.type("/system 说短一点。", "你好", f'/save "{path}"', said=["你好！"])
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["model"] == "rlhf_16.pth" and [m["content"] for m in record["conversations"]] == hall.said
    before = hall.said
    _, err = hall.type("/system -", "/new", f"/load {path}")
    assert hall.said == before
    assert err.endswith("(1 轮 turns)\n你: 你好\n模型: 你好！")
    hall.type("再见", said=["再见！"])
    assert hall.said == [*before, "再见", "再见！"]


def test_a_file_that_can_not_be_loaded_or_saved_changes_nothing(hall: Hall, tmp_path: Path) -> None:
    hall.type("你好", said=["你好！"])
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for line in (f"/load {tmp_path / 'none'}", f"/load {notes}", f"/save {notes}", f"/save {notes}/x"):
        _, err = hall.type(line)
        assert " | " in err and "\n" not in err, line
    assert hall.said == ["你好", "你好！"] and notes.read_text() == "mine"


def test_a_thought_stands_before_the_answer_and_is_dimmed_on_a_terminal_alone(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"{THOUGHT[0]}三加四{THOUGHT[1]}是七。"
    assert hall.type("3+4=？", said=[said])[0] == "模型: （思考：三加四）\n是七。\n"
    assert hall.talk.messages[-1] == {"role": "assistant", "content": "是七。", "reasoning_content": "三加四"}
    assert hall.type("3+4=？", said=[f"{THOUGHT[0]}{THOUGHT[1]}是七。"])[0] == "模型: 是七。\n"
    assert hall.talk.undo()[-1] == {"role": "assistant", "content": "是七。"}
    monkeypatch.setattr(terminal, "shows_colours", lambda: True)
    assert hall.type("3+4=？", said=[said])[0] == f"模型: {DIM}（思考：三加四）{PLAIN}\n是七。\n"
    out, err = hall.type("3+4=？", said=[f"{THOUGHT[0]}三加"])
    assert out == f"模型: {DIM}（思考：三加）{PLAIN}\n"
    assert "taken back" in err and hall.talk.num_turns == 2


def test_thinking_can_be_switched_on_and_off(hall: Hall) -> None:
    tokenizer = hall.talk.tokenizer
    ends = {"on": THOUGHT[0], "off": "".join(THOUGHT), "auto": "<|assistant_start|>"}
    for word, end in ends.items():
        assert hall.type(f"/think {word}")[1] == f"思考 thinking: {word}"
        hall.type("3+4=？", said=["三加四" + THOUGHT[1] + "是七。" if word == "on" else "是七。"])
        assert tokenizer.decode(Scripted.asked[-1][0]).endswith(end)
        assert hall.talk.messages[-1]["content"] == "是七。"
    assert hall.talk.messages[1]["reasoning_content"] == "三加四"
    assert "must be on, off or auto" in hall.type("/think maybe")[1]
    # A thought that the prompt has opened is shown as one, and is no answer while it has no end.
    hall.type("/think on")
    out, err = hall.type("3+4=？", said=["三加四"])
    assert out == "模型: （思考：三加四）\n" and "taken back" in err


def test_a_terminal_is_dimmed_unless_it_can_not_or_the_user_does_not_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for name, value, wanted in (("TERM", "xterm", True), ("TERM", "dumb", False), ("NO_COLOR", "1", False)):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv(name, value)
        assert terminal.shows_colours() is wanted
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert not terminal.shows_colours()


def test_speed_is_shown_on_request(hall: Hall) -> None:
    assert "tokens" not in hall.type("一", said=["甲"])[1]
    _, err = hall.type("/speed", "二", "/speed", "三", said=["乙", "丙"])
    assert err.count("/s；") == 1


def test_an_answer_that_is_cut_off_is_told_and_is_no_target_in_training(hall: Hall) -> None:
    Scripted.ends = False
    _, err = hall.type("一", said=["甲"])
    assert "--max_new_tokens" in err and hall.talk.messages[-1]["loss"] is False


def test_ctrl_c_stops_the_answer_alone(hall: Hall) -> None:
    before = signal.getsignal(signal.SIGINT)

    def pressed() -> str:
        signal.raise_signal(signal.SIGINT)
        return "从前有座山"

    out, err = hall.type("讲个故事", "再见", said=[pressed, "再见！"])
    assert err == "（已停止 stopped）"
    assert out.startswith("模型: ") and out.endswith("\n模型: 再见！\n")
    assert hall.talk.messages[1]["loss"] is False
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_leaves(hall: Hall) -> None:
    def pressed_twice() -> str:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return ""

    with pytest.raises(KeyboardInterrupt):
        hall.type("讲个故事", said=[pressed_twice])


def test_a_line_that_ends_with_a_backslash_goes_on(hall: Hall) -> None:
    hall.type("一\\", "", "二\\", "三", said=["甲", "乙"])
    assert hall.said == ["一", "甲", "二\n三", "乙"]


def test_turns_that_no_longer_fit_are_told_once(hall: Hall) -> None:
    hall.talk.room = 60
    errors = [hall.type(f"今天是{n}号，天气怎么样？", said=["很好。"])[1] for n in range(6)]
    assert errors[0] == "" and ["no longer fit" in err for err in errors].count(True) == 1
    _, err = hall.type("这一问比模型能读的还要长：" + "很长" * 60, said=["哦。"])
    assert "longer than the rows" in err


def test_a_pretrained_model_has_no_conversation_to_save_or_system_prompt(hall: Hall, tmp_path: Path) -> None:
    hall.talk.completes, Scripted.ends = True, False
    out, err = hall.type("春天", said=["来了"])
    assert (out, err) == ("模型: 来了\n", "")  # no note that it was cut off: it never ends
    for line in (f"/save {tmp_path / 'x'}", f"/load {tmp_path / 'x'}", "/system 短。"):
        assert "only pretrained" in hall.type(line)[1]
