"""eval_model.py: the answer alone on stdout, the same one that an evaluation judges."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import eval_model
from configs.paths import ROOT, TOKENIZER_DIR
from configs.schema import UserError
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from evaluation.questions import ask
from inference.benchmark import FIELDS
from inference.conversation import READ_SHARE, Conversation, context_tokens
from inference.engine import Answer, Engine
from inference.request import Request
from model.quantize import KINDS
from model.weights import load_model, save_weights
from tests.terminal import Terminal
from tests.tiny_run import TinyRun, lively

Say = Callable[..., str]
PROMPT = "你是谁？"


@pytest.fixture(scope="module")
def talkative(trained: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of three stages that say something different to everything."""
    folder = tmp_path_factory.mktemp("talkative")
    for seed, stage in enumerate(("pretrain", "sft", "dpo"), start=1):
        model, manifest = load_model(trained.path(stage))
        save_weights(folder / trained.path(stage).name, lively(model, seed), manifest)
    return folder


@pytest.fixture
def say(talkative: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """A function that runs the program and returns its stdout."""

    def run(*words: str) -> str:
        capsys.readouterr()
        flags = ["--out_dir", str(talkative), "--tokenizer_dir", str(TOKENIZER_DIR), "--device", "cpu"]
        assert eval_model.main([*flags, "--max_new_tokens", "20", *words]) == 0
        return capsys.readouterr().out

    return run


def test_the_answer_alone_stands_on_stdout_and_is_the_one_that_an_evaluation_judges(
    say: Say, talkative: Path, tokenizer: RustBPETokenizer
) -> None:
    for mode, name in (("1", "full_sft_16.pth"), ("2", "rlhf_16.pth")):
        model, _ = load_model(talkative / name)
        prompts = (PROMPT, "3+4=？")
        questions = [[{"role": "user", "content": prompt}] for prompt in prompts]
        answers = ask(model.eval(), tokenizer, questions, batch_size=2, max_new_tokens=20)
        for prompt, wanted in zip(prompts, answers, strict=True):
            assert say("--model_mode", mode, "--prompt", prompt, "--temperature", "0") == wanted.text + "\n"


def test_all_else_stands_on_stderr(talkative: Path) -> None:
    flags = ["--out_dir", str(talkative), "--tokenizer_dir", str(TOKENIZER_DIR), "--device", "cpu"]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OUT_DIR")}
    shown = subprocess.run(
        [sys.executable, str(ROOT / "eval_model.py"), *flags, "--model_mode", "1", "--prompt", PROMPT],
        cwd=talkative,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "full_sft_16.pth: 104,768 parameters, cpu" in shown.stderr
    model, _ = load_model(talkative / "full_sft_16.pth")
    tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    question = [{"role": "user", "content": PROMPT}]
    (wanted,) = ask(model.eval(), tokenizer, [question], batch_size=1, max_new_tokens=512)
    assert shown.stdout == wanted.text + "\n"


def test_the_thought_of_a_reasoning_model_is_not_part_of_the_answer(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [Answer("<|think_start|>三加四<|think_end|>是七。", True, 9)]
    monkeypatch.setattr(Engine, "answers", lambda *given: said)
    assert say("--prompt", "3+4=？") == "是七。\n"


def test_a_thought_that_the_prompt_opened_and_nobody_closed_gives_no_answer(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    for said, wanted in (("三加四<|think_end|>是七。", "是七。\n"), ("三加四是七", "\n")):
        answers = [Answer(said, True, 9)]
        monkeypatch.setattr(
            Engine, "answers", lambda self, prompts, sampling, said=answers: asked.extend(prompts) or said
        )
        assert say("--prompt", "3+4=？", "--enable_thinking") == wanted
    tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    assert tokenizer.decode(asked[0]).endswith("<|assistant_start|><|think_start|>")
    say("--prompt", "3+4=？", "--enable_thinking", "0")
    assert tokenizer.decode(asked[-1]).endswith("<|assistant_start|><|think_start|><|think_end|>")
    with pytest.raises(UserError, match="only pretrained"):
        say("--model_mode", "0", "--prompt", PROMPT, "--enable_thinking")


def test_a_system_prompt_stands_before_the_question(say: Say, talkative: Path, tokenizer: RustBPETokenizer) -> None:
    messages = [{"role": "system", "content": "说短一点。"}, {"role": "user", "content": PROMPT}]
    model, _ = load_model(talkative / "rlhf_16.pth")
    (wanted,) = ask(model.eval(), tokenizer, [messages], batch_size=1, max_new_tokens=20)
    assert say("--prompt", PROMPT, "--system", "说短一点。") == wanted.text + "\n"
    with pytest.raises(UserError, match="only pretrained"):
        say("--model_mode", "0", "--prompt", PROMPT, "--system", "说短一点。")


def test_a_talk_reads_its_earlier_turns_once(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = iter(["今天天气怎么样？我想出去走一走，" * 8, "二", "/exit"])
    monkeypatch.setattr("builtins.input", lambda shown: next(turns))
    requests: list[Request] = []
    add = Engine.add
    monkeypatch.setattr(Engine, "add", lambda *given: requests.extend(made := add(*given)) or made)
    say("--model_mode", "1", "--rope_scaling_factor", "16")  # else the second turn would leave the first one out
    assert [bool(request.cached_tokens) for request in requests] == [False, True]


def test_the_speed_is_measured_and_written(say: Say, tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    words = ["--prompt_tokens", "5", "--new_tokens", "6", "--batch_size", "2", "--json", str(path)]
    shown = say("--benchmark", "--quantize", "int8", *words)
    values = json.loads(path.read_text(encoding="utf-8"))
    assert set(values) == set(FIELDS) and values["quantize"] == "int8" and values["batch_size"] == 2
    assert [line.split()[0] for line in shown.splitlines()] == list(FIELDS)


@pytest.mark.parametrize("kind", KINDS)
def test_rounded_weights_answer_and_the_first_line_names_their_kind(
    say: Say, talkative: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    flags = ["--out_dir", str(talkative), "--tokenizer_dir", str(TOKENIZER_DIR), "--device", "cpu"]
    asked = [*flags, "--model_mode", "1", "--prompt", PROMPT, "--max_new_tokens", "20", "--quantize", kind]
    assert eval_model.main(asked) == 0
    shown = capsys.readouterr()
    assert f"full_sft_16.pth: 104,768 parameters, cpu, {kind}\n" in shown.err
    assert shown.out.strip()
    if kind == "fp16":
        assert shown.out == say("--model_mode", "1", "--prompt", PROMPT, "--quantize", "none")


def test_temperature_0_is_deterministic_and_a_seed_decides_above_it(say: Say) -> None:
    assert say("--prompt", PROMPT, "--temperature", "0") == say("--prompt", PROMPT, "--temperature", "0", "--seed", "1")
    warm = ["--prompt", PROMPT, "--temperature", "2", "--top_p", "1"]
    assert say(*warm, "--seed", "1") == say(*warm, "--seed", "1") != say(*warm, "--seed", "2")


def test_max_new_tokens_bounds_the_answer(say: Say, tokenizer: RustBPETokenizer) -> None:
    long = say("--prompt", PROMPT, "--temperature", "0", "--max_new_tokens", "10")
    short = say("--prompt", PROMPT, "--temperature", "0", "--max_new_tokens", "2")
    assert 0 < len(short) < len(long)


def test_each_mode_and_a_path_take_their_weights(say: Say, talkative: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = ["--prompt", PROMPT, "--temperature", "0"]
    by_mode = [say("--model_mode", mode, *greedy) for mode in ("0", "1", "2")]
    assert len(set(by_mode)) == 3
    assert say("--weight", str(talkative / "rlhf_16.pth"), *greedy) == by_mode[2]
    with pytest.raises(UserError, match=r"reason_\*\.pth: no such weights"):
        say("--model_mode", "3", *greedy)
    with pytest.raises(UserError, match=r"full_sft_64\.pth: no such weights"):
        say("--model_mode", "1", "--hidden_size", "64", *greedy)
    with pytest.raises(UserError, match=r"pretrain_64\.pth: no such weights"):
        say("--hidden_size", "64", *greedy)
    assert say(*greedy) == by_mode[2]


def test_a_conversation_remembers_its_turns_until_new(
    say: Say, monkeypatch: pytest.MonkeyPatch, talkative: Path, tokenizer: RustBPETokenizer
) -> None:
    turns: Iterator[str] = iter(["一", "", "二", "/new", "二", "/exit"])
    monkeypatch.setattr("builtins.input", lambda shown: next(turns))
    answers = [line.removeprefix("模型: ") for line in say("--model_mode", "1").split("模型: ")[1:]]
    model, _ = load_model(talkative / "full_sft_16.pth")
    first, last = (
        ask(model.eval(), tokenizer, [[{"role": "user", "content": text}]], batch_size=1, max_new_tokens=20)[0].text
        for text in ("一", "二")
    )
    assert answers[0] == first + "\n"
    assert answers[2] == last + "\n"
    assert len(answers) == 3


def test_the_end_of_the_input_ends_the_conversation(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(shown: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nothing)
    assert say() == ""


@pytest.fixture
def terminal(talkative: Path) -> Iterator[Terminal]:
    """A conversation at a terminal with the weights of DPO, up to the first question."""
    flags = ["--out_dir", str(talkative), "--tokenizer_dir", str(TOKENIZER_DIR), "--device", "cpu"]
    terminal = Terminal([str(ROOT / "eval_model.py"), *flags, "--max_new_tokens", "3"])
    terminal.wait_for("你: ")
    yield terminal
    terminal.child.kill()


def answer_to(talkative: Path, question: str) -> str:
    """What the weights of DPO say, in three tokens."""
    model, _ = load_model(talkative / "rlhf_16.pth")
    tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    messages = [{"role": "user", "content": question}]
    (said,) = ask(model.eval(), tokenizer, [messages], batch_size=1, max_new_tokens=3)
    return said.text


def shown_lines(text: str) -> str:
    """Terminal output without carriage returns and escape codes."""
    return re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


def test_the_last_stage_trained_is_talked_to_and_named(terminal: Terminal, talkative: Path) -> None:
    assert "rlhf_16.pth" in terminal.shown
    terminal.type("你是谁？\n")
    terminal.wait_for("模型: ")
    assert shown_lines(terminal.wait_for("你: ")).startswith(answer_to(talkative, "你是谁？"))
    terminal.type("exit\n")
    assert terminal.end() == 0


def test_arrow_keys_edit_the_line_and_bring_back_the_one_before(terminal: Terminal, talkative: Path) -> None:
    terminal.type("b\x1b[Da\n")  # "b", left, "a": the line is "ab"
    terminal.wait_for("模型: ")
    assert shown_lines(terminal.wait_for("你: ")).startswith(answer_to(talkative, "ab"))
    terminal.type("/new\n")
    terminal.wait_for("你: ")
    terminal.type("\x1b[A\x1b[A\n")  # up, up: the question before /new
    terminal.wait_for("模型: ")
    assert shown_lines(terminal.wait_for("你: ")).startswith(answer_to(talkative, "ab"))
    terminal.type("\x04")
    assert terminal.end() == 0


def test_help_lists_the_commands_and_new_forgets(terminal: Terminal, talkative: Path) -> None:
    terminal.type("/help\n")
    listed = terminal.wait_for("你: ")
    assert all(command in listed for command in ("/new", "/help", "/exit"))
    for line in ("一", "/new", "二"):
        terminal.type(f"{line}\n")
        last = terminal.wait_for("你: ")
    assert shown_lines(last).split("模型: ")[1].startswith(answer_to(talkative, "二"))
    terminal.type("quit\n")
    assert terminal.end() == 0


def test_a_long_conversation_continues_with_what_the_model_can_read(
    talkative: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = iter([*["你好，今天天气怎么样？"] * 12, "/exit"])
    monkeypatch.setattr("builtins.input", lambda shown: next(turns))
    lengths: list[int] = []
    ask = Conversation.ask

    def watched(talk: Conversation, question: str) -> list[int]:
        prompt = ask(talk, question)
        lengths.append(len(prompt))
        return prompt

    monkeypatch.setattr(Conversation, "ask", watched)
    flags = ["--out_dir", str(talkative), "--tokenizer_dir", str(TOKENIZER_DIR), "--device", "cpu"]
    assert eval_model.main([*flags, "--model_mode", "1", "--max_new_tokens", "2"]) == 0
    model, _ = load_model(talkative / "full_sft_16.pth")
    assert max(lengths) <= READ_SHARE * context_tokens(model)
    assert len(lengths) == 12
    assert "no longer fit" in capsys.readouterr().err


def lines_typed(terminal: Terminal, *lines: str) -> list[str]:
    """What is shown after each line, up to the next prompt."""
    shown = []
    for line in lines:
        terminal.type(f"{line}\n")
        terminal.wait_for("\n")  # the echo of the line
        shown.append(shown_lines(terminal.wait_for("你: ")).removesuffix("你: "))
    return shown


def test_a_talk_is_saved_taken_back_and_loaded_at_the_terminal(
    terminal: Terminal, talkative: Path, tmp_path: Path
) -> None:
    path = tmp_path / "talk.jsonl"
    saved, _, answered = lines_typed(terminal, "/save " + str(path), "/system 说短一点。", "一")
    assert "nothing was said" in saved and not path.exists()
    model, _ = load_model(talkative / "rlhf_16.pth")
    tokenizer = RustBPETokenizer.from_directory(TOKENIZER_DIR)
    messages = [{"role": "system", "content": "说短一点。"}, {"role": "user", "content": "一"}]
    (wanted,) = ask(model.eval(), tokenizer, [messages], batch_size=1, max_new_tokens=3)
    assert answered.startswith(f"模型: {wanted.text}\n")
    retried, saved, undone, shown, unknown = lines_typed(
        terminal, "/retry", f"/save {path}", "/undo", "/system", "/no_such_command"
    )
    assert retried.startswith(f"模型: {wanted.text}\n") and "1 轮" in saved and "一" in undone
    assert "说短一点。" in shown and "/help" in unknown and "模型: " not in unknown
    record = json.loads(path.read_text(encoding="utf-8"))
    assert [m["content"] for m in record["conversations"]] == ["说短一点。", "一", wanted.text]
    terminal.type(f"/load {path}\n")
    terminal.wait_for(f"模型: {wanted.text}")
    terminal.wait_for("你: ")
    lines_typed(terminal, f"/save {path}", "/temp 0.7", "/temp warm", "/speed")
    assert json.loads(path.read_text(encoding="utf-8")) == record
    (answered,) = lines_typed(terminal, "二")
    assert "/s；" in answered
    terminal.type("exit\n")
    assert terminal.end() == 0


def test_several_lines_are_one_question_typed_with_a_backslash_or_pasted(terminal: Terminal, talkative: Path) -> None:
    wanted = answer_to(talkative, "甲\n乙")
    terminal.type("甲\\\n")
    terminal.wait_for("... ")
    terminal.type("乙\n")
    terminal.wait_for("模型: ")
    assert shown_lines(terminal.wait_for("你: ")).startswith(wanted)
    terminal.type("/new\n")
    terminal.wait_for("你: ")
    terminal.type("\x1b[200~甲\n乙\x1b[201~\n")  # how a terminal marks what is pasted
    terminal.wait_for("模型: ")
    assert shown_lines(terminal.wait_for("你: ")).startswith(wanted)
    terminal.type("\x04")
    assert terminal.end() == 0


def press_ctrl_c(terminal: Terminal) -> None:
    """As a person does, some time after the prompt has come.

    Python sees a signal between the prompt and its wait for keys only at the next key.
    """
    time.sleep(0.5)
    terminal.type("\x03")


def test_ctrl_c_drops_the_line_and_leaves_when_pressed_again(terminal: Terminal, talkative: Path) -> None:
    terminal.type("甲")
    terminal.wait_for("甲")
    press_ctrl_c(terminal)
    terminal.wait_for("press Ctrl-C again to leave")
    terminal.wait_for("你: ")
    (answered,) = lines_typed(terminal, "乙")
    assert answered.startswith(f"模型: {answer_to(talkative, '乙')}")
    press_ctrl_c(terminal)
    terminal.wait_for("press Ctrl-C again to leave")
    terminal.wait_for("你: ")
    press_ctrl_c(terminal)
    assert terminal.end() == 130


def test_ctrl_c_stops_a_long_answer_and_the_talk_goes_on(talkative: Path) -> None:
    flags = ["--out_dir", str(talkative), "--tokenizer_dir", str(TOKENIZER_DIR), "--device", "cpu"]
    endless = ["--model_mode", "0", "--max_new_tokens", "1000000", "--temperature", "3", "--top_p", "1"]
    terminal = Terminal([str(ROOT / "eval_model.py"), *flags, *endless])
    terminal.wait_for("你: ")
    terminal.type("春天\n")
    terminal.wait_for("模型: ")
    terminal.type("\x03")
    terminal.wait_for("已停止 stopped")
    terminal.wait_for("你: ")
    terminal.type("exit\n")
    assert terminal.end() == 0


def test_another_tokenizer_is_refused(say: Say, tmp_path: Path) -> None:
    RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(NUM_BYTES)}).save(tmp_path / "bytes")
    with pytest.raises(UserError, match=r"rlhf_16\.pth: made with another tokenizer"):
        say("--prompt", PROMPT, "--tokenizer_dir", str(tmp_path / "bytes"))


@pytest.mark.parametrize("words", [["--temperature", "-1"], ["--top_p", "0"], ["--max_new_tokens", "0"]])
def test_flags_out_of_range_are_refused(say: Say, words: list[str]) -> None:
    with pytest.raises(UserError, match=words[0].removeprefix("--")):
        say("--prompt", PROMPT, *words)


def test_a_token_that_the_vocabulary_has_not_is_refused_before_the_first_question(say: Say) -> None:
    with pytest.raises(UserError, match="from 0 to 6399"):
        say("--stop_token_ids", "6400")


def test_help_speaks_both_languages_and_an_unknown_flag_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in ((["--help"], 0), (["--no_such_flag"], 2), (["--model_mode", "9"], 2)):
        with pytest.raises(SystemExit) as stop:
            eval_model.main(words)
        assert stop.value.code == code
    with pytest.raises(SystemExit):
        eval_model.main(["--help"])
    assert re.search("[一-鿿]", capsys.readouterr().out)
