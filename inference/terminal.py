"""A conversation in the terminal: what a person types, the commands, and answers as they come.

Answers go to stdout, all else to stderr.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from configs.paths import display
from configs.schema import LARGEST_SEED, UserError
from inference.conversation import Conversation
from inference.engine import Engine
from inference.replies import Reply
from inference.request import Request
from inference.sampling import Sampling
from inference.talk_files import load_talk, save_talk

with contextlib.suppress(ImportError):  # Windows has none
    import readline  # noqa: F401  # gives `input` its line editing and the arrow keys

LEAVING = {"exit", "quit", "/exit", "/quit"}
CHINESE_SLASHES = ("／", "、")
"""What the slash key types while a Chinese input method is on."""
THINKING = {"auto": None, "on": True, "off": False}
"""What /think takes -> `enable_thinking`."""
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
"""What a terminal shows dimmed stands between these two (ECMA-48)."""


@dataclass(frozen=True)
class Command:
    """A command of the chat."""

    run: Callable[..., str]
    """Takes the chat, and the words behind the name if there may be any. Returns: what to show.
    Raises: UserError."""
    help: str
    takes: str = ""
    """What stands behind the name. In brackets: it may be left out. Empty: nothing."""


class Chat:
    """One person and one model at a terminal."""

    def __init__(
        self,
        engine: Engine,
        talk: Conversation,
        sampling: Sampling,
        *,
        name: str = "",
        shows_speed: bool = False,
    ) -> None:
        """Args: talk: what was said so far. name: of the weights."""
        self.engine, self.talk, self.sampling, self.name = engine, talk, sampling, name
        self.shows_speed = shows_speed
        self.num_asked = 0
        """Answers that were begun. Each has a seed of its own, so that asking again can give
        another."""
        self.was_interrupted = False
        """The last key at the prompt was Ctrl-C."""

    def run(self) -> None:
        """Talk until the user leaves."""
        note("输入问题后回车，/help 查看命令。 Type and press Enter; /help lists the commands.")
        while (line := self._read()) is not None:
            line = with_plain_slash(line)
            question = line.strip()
            if question.lower() in LEAVING:
                return
            if line.startswith("/") and "/" not in (name := line.split()[0])[1:]:  # a path is no command
                note(self._obey(name.lower(), line[len(name) :].strip()))
            elif question:
                self._ask(question)

    # --- what the user types ---

    def _read(self) -> str | None:
        """What the user types next; None at the end. A line that ends with a backslash goes on."""
        lines: list[str] = []
        while True:
            try:
                line = input("... " if lines else "你: ")
            except EOFError:
                print(file=sys.stderr)
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                if self.was_interrupted or not sys.stdin.isatty():
                    raise
                self.was_interrupted, lines = True, []
                note("\n（再按一次 Ctrl-C 退出 press Ctrl-C again to leave）")
                continue
            self.was_interrupted = False
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _obey(self, name: str, words: str) -> str:
        """Run a command. Returns: the line to show."""
        command = COMMANDS.get(name)
        if command is None:
            return f"没有 {name} 这个命令，/help 查看命令；要发给模型就在前面加空格。 No such command: see /help."
        if (words and not command.takes) or (not words and command.takes and not command.takes.startswith("[")):
            return f"用法 usage: {name} {command.takes}".rstrip()
        try:
            return command.run(self, words) if command.takes else command.run(self)
        except UserError as error:
            return error.line

    # --- questions and answers ---

    def _ask(self, question: str) -> bool:
        """Ask, and show the answer. Returns: whether there was one; else the question is taken
        back."""
        with CtrlC() as ctrl_c:
            return self._answer(question, ctrl_c)

    def _answer(self, question: str, ctrl_c: "CtrlC") -> bool:
        """`_ask`, with the key that stops it."""
        left_out, prompt = self.talk.left_out, self.talk.ask(question)
        if self.talk.left_out and not left_out:
            note("（对话已超出模型能读的长度，最早的轮次不再给模型看 the oldest turns no longer fit and are left out）")
        if len(prompt) >= self.talk.room:
            note(
                f"（这段话有 {len(prompt)} 个 token，模型训练时只读过 {self.talk.room} 个，回答可能不可靠 longer than the "
                "rows it was trained on）"
            )
        seed = (self.sampling.seed + self.num_asked) % (LARGEST_SEED + 1)
        self.num_asked += 1
        reply = Reply(self.engine, prompt, replace(self.sampling, seed=seed))
        was_stopped = self._show(reply, ctrl_c)
        # A pretrained model never says that a text is whole.
        is_whole = reply.ended or self.talk.completes
        if was_stopped:
            note("（已停止 stopped）")
        elif reply.loops:
            note("（回答在重复，已停止 stopped: it goes in circles）")
        elif not is_whole:
            note(f"（已到 {self.sampling.max_new_tokens} 个 token 的上限 cut off: see --max_new_tokens）")
        thought, answer = reply.thought_and_answer
        if not answer.strip():
            self.talk.undo()
            note("（没有回答，这一问不计入对话 no answer: the question is taken back）")
            return False
        self.talk.hear(answer, thought=thought, is_whole=is_whole and not was_stopped)
        return True

    def _show(self, reply: Reply, ctrl_c: "CtrlC") -> bool:
        """Print an answer as it comes. Returns: whether the user stopped it."""
        clock = Clock()
        dim, plain = (DIM, PLAIN) if shows_colours() else ("", "")
        is_thought = False
        print("模型: ", end="", flush=True)
        try:
            for parts in reply.parts():
                clock.tick(len(reply.request.ids))
                for part in parts:
                    if (part.kind == "thought") != is_thought:
                        is_thought = not is_thought
                        print(f"{dim}（思考：" if is_thought else f"）{plain}\n", end="")
                    print(part.text, end="", flush=True)
                if ctrl_c.was_pressed:
                    reply.stop()
        finally:  # also if a second Ctrl-C ends the program: the terminal must not stay dim
            print(f"）{plain}" if is_thought else "", flush=True)
        if self.shows_speed:
            note(clock.line(reply.request))
        return ctrl_c.was_pressed

    # --- commands ---

    def _help(self) -> str:
        width = max(len(f"{name} {command.takes}") for name, command in COMMANDS.items())
        lines = [f"{f'{name} {command.takes}':{width}}  {command.help}" for name, command in COMMANDS.items()]
        return "\n".join([*lines, *KEYS])

    def _new(self) -> str:
        self.talk.restart()
        kept = "，系统提示保留 the system prompt stays" if self.talk.system else ""
        return f"新对话 a new conversation{kept}。"

    def _system(self, words: str) -> str:
        if words:
            self.talk.system = "" if words == "-" else words
        return f"系统提示 system: {self.talk.system or '无 none'}"

    def _temperature(self, words: str) -> str:
        if words:
            try:
                self.sampling = replace(self.sampling, temperature=float(words))
            except ValueError:
                raise UserError(f"temperature {words}: is not a number.", "温度应是数字") from None
        return f"温度 temperature: {self.sampling.temperature:g}"

    def _think(self, words: str) -> str:
        if words:
            self.talk.require_turns()
            if words not in THINKING:
                raise UserError(f"/think {words}: must be on, off or auto.", "只能是 on、off 或 auto")
            self.talk.enable_thinking = THINKING[words]
        now = next(name for name, value in THINKING.items() if value is self.talk.enable_thinking)
        return f"思考 thinking: {now}"

    def _speed(self) -> str:
        self.shows_speed = not self.shows_speed
        return f"速度 speed: {'显示 shown' if self.shows_speed else '不显示 hidden'}"

    def _save(self, words: str) -> str:
        self.talk.require_turns()
        if not self.talk.num_turns:
            return "还没有对话 nothing was said yet。"
        path = file_of(words)
        save_talk(path, self.talk.messages, self.name)
        return f"已保存 saved: {display(path)} ({self.talk.num_turns} 轮 turns)"

    def _load(self, words: str) -> str:
        self.talk.require_turns()
        path = file_of(words)
        self.talk.replace(load_talk(path))
        question, answer = self.talk.last_turn
        loaded = f"已载入 loaded: {display(path)} ({self.talk.num_turns} 轮 turns)"
        return f"{loaded}\n你: {question}\n模型: {answer}"

    def _undo(self) -> str:
        taken = self.talk.undo()
        return f"已撤回 taken back: {taken[0]['content']}" if taken else "没有可撤回的 nothing to take back。"

    def _retry(self) -> str:
        taken = self.talk.undo()
        if not taken:
            return "还没有提问 nothing was asked yet。"
        if not self._ask(taken[0]["content"]):
            self.talk.messages += taken
            return "原来的回答保留 the answer before stays。"
        if self.talk.messages[-1]["content"] == taken[-1]["content"] and self.sampling.temperature == 0:
            return "（温度为 0，回答不变 temperature 0 gives the same answer; try /temp 0.8）"
        return ""


COMMANDS = {
    "/new": Command(Chat._new, "start over 开始新对话"),
    "/undo": Command(Chat._undo, "take the last question and its answer back 撤回上一轮"),
    "/retry": Command(Chat._retry, "ask the last question again 重新回答"),
    "/system": Command(Chat._system, "show or set the system prompt, - removes it 查看或设置系统提示", "[TEXT]"),
    "/temp": Command(Chat._temperature, "show or set the temperature, 0: no chance 查看或设置温度", "[T]"),
    "/think": Command(
        Chat._think, "think before answers: on, off, auto 先思考再回答：开、关、由模型决定", "[on|off|auto]"
    ),
    "/save": Command(Chat._save, "save this conversation (JSON lines, SFT can read it) 保存对话", "FILE"),
    "/load": Command(Chat._load, "go on with a saved one 载入对话", "FILE"),
    "/speed": Command(Chat._speed, "show tokens a second, or hide them 显示或隐藏速度"),
    "/help": Command(Chat._help, "this list 显示本帮助"),
}
"""Name -> command, in the order of /help. The words for leaving are in LEAVING."""
KEYS = (
    "/exit  leave (also exit, quit, Ctrl-D) 退出",
    "Ctrl-C stops an answer 停止当前回答; arrow keys edit and bring back lines 方向键可编辑、翻看历史",
    "a line that ends with \\ goes on in the next one 行末加 \\ 可换行继续输入",
)
"""What else /help says."""


def with_plain_slash(line: str) -> str:
    """The line. A command that begins with the slash of a Chinese keyboard gets the plain one."""
    name = f"/{line[1:].split()[0].lower()}" if line[1:].split() else ""
    return f"/{line[1:]}" if line[:1] in CHINESE_SLASHES and name in {*COMMANDS, *LEAVING} else line


def note(line: str) -> None:
    """Print a line beside the conversation."""
    if line:
        print(line, file=sys.stderr, flush=True)


def file_of(words: str) -> Path:
    """The file that the user names, with or without quotes around it."""
    return Path(words.strip("\"'")).expanduser()


def shows_colours() -> bool:
    """Whether stdout is a terminal that can dim a text (https://no-color.org)."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


class Clock:
    """The time that an answer takes."""

    def __init__(self) -> None:
        self.start = self.first = self.last = time.monotonic()
        self.num_tokens = 0

    def tick(self, num_tokens: int) -> None:
        """So many tokens have come by now."""
        if num_tokens > self.num_tokens:
            self.last = time.monotonic()
            self.first = self.first if self.num_tokens else self.last
            self.num_tokens = num_tokens

    def line(self, request: Request) -> str:
        """The line that shows the speed. The first token is counted alone: before it the model
        reads the prompt, except for what it has read before."""
        seconds = self.last - self.first
        rate = f"{(self.num_tokens - 1) / seconds:.0f}" if seconds > 0 else "-"
        return (
            f"（{self.num_tokens} tokens，{rate}/s；提示 prompt {len(request.prompt)}，"
            f"缓存 cached {request.cached_tokens}，首个 first {self.first - self.start:.2f} s）"
        )


class CtrlC:
    """Between enter and exit, Ctrl-C is only noted, so it can't leave the model in mid-step.

    A second Ctrl-C ends the program as usual.
    """

    def __init__(self) -> None:
        self.was_pressed = False

    def __enter__(self) -> "CtrlC":
        self.before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.was_pressed:
            raise KeyboardInterrupt
        self.was_pressed = True
