"""eval_model.py: the answer alone on stdout, the same one that an evaluation judges."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import eval_model
from configs.paths import ROOT, TOKENIZER_DIR
from configs.schema import UserError
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from evaluation.questions import ask
from inference.conversation import READ_SHARE, context_tokens
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


@pytest.mark.parametrize("word", ["exit", "quit", "/exit", "/quit", "EXIT"])
def test_each_word_for_leaving_leaves(terminal: Terminal, word: str) -> None:
    terminal.type(f"{word}\n")
    assert terminal.end() == 0
    assert "模型: " not in terminal.shown


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
    stream = eval_model.stream

    def watched(engine: object, prompt: list[int], sampling: object) -> str:
        lengths.append(len(prompt))
        return stream(engine, prompt, sampling)  # type: ignore[arg-type]

    monkeypatch.setattr(eval_model, "stream", watched)
    flags = ["--out_dir", str(talkative), "--tokenizer_dir", str(TOKENIZER_DIR), "--device", "cpu"]
    assert eval_model.main([*flags, "--model_mode", "1", "--max_new_tokens", "2"]) == 0
    model, _ = load_model(talkative / "full_sft_16.pth")
    assert max(lengths) <= READ_SHARE * context_tokens(model)
    assert len(lengths) == 12
    assert "no longer fit" in capsys.readouterr().err


def test_another_tokenizer_is_refused(say: Say, tmp_path: Path) -> None:
    RustBPETokenizer(QWEN2_PATTERN, {bytes([byte]): byte for byte in range(NUM_BYTES)}).save(tmp_path / "bytes")
    with pytest.raises(UserError, match=r"rlhf_16\.pth: made with another tokenizer"):
        say("--prompt", PROMPT, "--tokenizer_dir", str(tmp_path / "bytes"))


@pytest.mark.parametrize("words", [["--temperature", "-1"], ["--top_p", "0"], ["--max_new_tokens", "0"]])
def test_flags_out_of_range_are_refused(say: Say, words: list[str]) -> None:
    with pytest.raises(UserError, match=words[0].removeprefix("--")):
        say("--prompt", PROMPT, *words)


def test_help_speaks_both_languages_and_an_unknown_flag_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in ((["--help"], 0), (["--no_such_flag"], 2), (["--model_mode", "9"], 2)):
        with pytest.raises(SystemExit) as stop:
            eval_model.main(words)
        assert stop.value.code == code
    with pytest.raises(SystemExit):
        eval_model.main(["--help"])
    assert re.search("[一-鿿]", capsys.readouterr().out)
