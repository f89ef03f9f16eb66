"""A conversation as the model reads it: the system prompt, and as many of the newest turns as fit.

A turn is a question and all that follows up to the next one.
"""

from typing import Any

from configs.schema import UserError
from dataset.tokenizer import RustBPETokenizer
from model.model_minillm import MiniLLM

Message = dict[str, Any]
"""A message in the shape of training records: `role`, `content` ... (dataset/chat.py)."""
READ_SHARE = 0.75
"""Share of the tokens that the model can read which the conversation may fill. The rest is room for
the answer."""


class Conversation:
    """All that was said so far. A prompt leaves out the oldest turns that do not fit."""

    def __init__(
        self,
        tokenizer: RustBPETokenizer,
        room: int,
        completes: bool = False,
        *,
        enable_thinking: bool | None = None,
    ) -> None:
        """Args: room: tokens that the model can read. completes: see `prompt_ids`. enable_thinking:
        whether answers begin with a thought; None: the model decides.

        Raises: UserError if the model knows no turns, and so no thoughts.
        """
        self.tokenizer, self.room, self.completes = tokenizer, room, completes
        self.enable_thinking = enable_thinking
        if enable_thinking is not None:
            self.require_turns()
        self.messages: list[Message] = []
        """The system prompt first, if there is one."""
        self.left_out = 0
        """Turns that the last prompt left out."""

    @property
    def system(self) -> str:
        """The system prompt; "" if there is none."""
        return str(self.messages[0]["content"]) if self._starts_with_system() else ""

    @system.setter
    def system(self, text: str) -> None:
        """Set it for all further prompts; "" removes it. What was said stays.

        Raises: UserError if it fills the model's room alone, or the model knows no turns.
        """
        self.require_turns()
        first: list[Message] = [{"role": "system", "content": text}] if text else []
        if first and (length := self._length(first)) > self._limit:
            raise UserError(
                f"a system prompt of {length} tokens: the model can read {self._limit} and has to read a question too. "
                "Shorten it.",
                "系统提示太长：请缩短",
            )
        self.messages[: 1 if self._starts_with_system() else 0] = first
        self.left_out = 0

    @property
    def num_turns(self) -> int:
        """Questions so far."""
        return len(self._questions())

    @property
    def last_turn(self) -> tuple[str, str]:
        """The last question and its answer. Raises: IndexError if there is none."""
        return self.messages[self._questions()[-1]]["content"], self.messages[-1]["content"] or ""

    def ask(self, question: str) -> list[int]:
        """Token ids of the next prompt."""
        self.messages.append({"role": "user", "content": question})
        if self.completes:
            return self._prompt(self.messages)
        questions = self._questions()
        # A conversation only grows, so what was left out before does not fit now.
        self.left_out = min(self.left_out, len(questions) - 1)
        while self.left_out < len(questions) - 1 and self._length(self._from(questions[self.left_out])) > self._limit:
            self.left_out += 1
        return self._prompt(self._from(questions[self.left_out]))

    def hear(self, answer: str, *, thought: str = "", is_whole: bool = True) -> None:
        """Remember what the model said.

        Args: is_whole: false if it was cut off. In training such an answer would be context alone.
        """
        more: Message = {"reasoning_content": thought} if thought else {}
        more |= {} if is_whole else {"loss": False}
        self.messages.append({"role": "assistant", "content": answer, **more})

    def undo(self) -> list[Message]:
        """Take the last turn back. Returns: its messages, the question first; none if there is
        no turn."""
        questions = self._questions()
        start = questions[-1] if questions else len(self.messages)
        taken = self.messages[start:]
        del self.messages[start:]
        self.left_out = 0
        return taken

    def restart(self) -> None:
        """Forget all turns. The system prompt stays."""
        self.replace(self.messages[:1] if self._starts_with_system() else [])

    def replace(self, messages: list[Message]) -> None:
        """Continue another conversation."""
        self.messages, self.left_out = list(messages), 0

    def require_turns(self) -> None:
        """Raises: UserError if the model was only pretrained."""
        if self.completes:
            raise UserError(
                "this model was only pretrained: it continues a text and knows no conversation. Talk to one after SFT "
                "or DPO: python eval_model.py --model_mode 1.",
                "预训练模型只会续写，没有对话：请用 SFT 或 DPO 之后的模型",
            )

    @property
    def _limit(self) -> int:
        """Tokens that a prompt may have."""
        return int(READ_SHARE * self.room)

    def _starts_with_system(self) -> bool:
        return bool(self.messages) and self.messages[0]["role"] == "system"

    def _questions(self) -> list[int]:
        """Places of the questions in `messages`."""
        return [place for place, message in enumerate(self.messages) if message["role"] == "user"]

    def _from(self, start: int) -> list[Message]:
        """The system prompt, and the messages from this place on."""
        return [*(self.messages[:1] if self._starts_with_system() else []), *self.messages[start:]]

    def _length(self, messages: list[Message]) -> int:
        """Tokens of a prompt."""
        return len(self.tokenizer.render_conversation(messages)[0]) + 1  # the mark behind which the answer begins

    def _prompt(self, messages: list[Message]) -> list[int]:
        return prompt_ids(self.tokenizer, messages, self.completes, enable_thinking=self.enable_thinking)


def prompt_ids(
    tokenizer: RustBPETokenizer, messages: list[Message], completes: bool, *, enable_thinking: bool | None = None
) -> list[int]:
    """Token ids of a conversation up to the assistant's turn.

    Args: completes: the model was only pretrained. It knows no turns, so it continues the text of
    the last message. enable_thinking: as in `render_for_completion`.
    """
    if completes:
        return [tokenizer.get_bos_token_id(), *tokenizer.encode(messages[-1]["content"])]
    return tokenizer.render_for_completion(messages, enable_thinking=enable_thinking)


def context_tokens(model: MiniLLM) -> int:
    """Tokens that the model can read: those of the longest row in training, times YaRN's factor."""
    return int(model.config.original_max_position_embeddings * model.config.rope_scaling_factor)
