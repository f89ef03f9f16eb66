"""A conversation as the model reads it: its turns as token ids, as many of the newest as fit."""

from dataset.tokenizer import RustBPETokenizer
from model.model_minillm import MiniLLM

READ_SHARE = 0.75
"""Share of the tokens that the model can read which the conversation may fill. The rest is room for
the answer."""


class Conversation:
    """What was said so far, as much of it as the model is shown."""

    def __init__(self, tokenizer: RustBPETokenizer, room: int, completes: bool = False) -> None:
        """Args: room: tokens that the model can read. completes: see `prompt_ids`."""
        self.tokenizer, self.room, self.completes = tokenizer, room, completes
        self.messages: list[dict[str, str]] = []
        self.dropped = 0
        """Turns that were left out before the last question."""

    def ask(self, question: str) -> list[int]:
        """Token ids of the next prompt; the oldest turns are left out if it would be too long."""
        self.messages.append({"role": "user", "content": question})
        self.dropped = 0 if self.completes else forget(self.tokenizer, self.messages, int(READ_SHARE * self.room))
        return prompt_ids(self.tokenizer, self.messages, self.completes)

    def hear(self, answer: str) -> None:
        """Remember what the model said."""
        self.messages.append({"role": "assistant", "content": answer})


def prompt_ids(tokenizer: RustBPETokenizer, messages: list[dict[str, str]], completes: bool) -> list[int]:
    """Token ids of a conversation up to the assistant's turn.

    Args: completes: the model was only pretrained. It knows no turns, so it continues the text of
    the last message.
    """
    if completes:
        return [tokenizer.get_bos_token_id(), *tokenizer.encode(messages[-1]["content"])]
    return tokenizer.render_for_completion(messages)


def context_tokens(model: MiniLLM) -> int:
    """Tokens that the model can read: those of the longest row in training, times YaRN's factor."""
    return int(model.config.original_max_position_embeddings * model.config.rope_scaling_factor)


def forget(tokenizer: RustBPETokenizer, messages: list[dict[str, str]], room: int) -> int:
    """Drop the oldest turns, question and answer together, until the rest fits in `room` tokens.

    The last question stays. Returns: how many turns were dropped.
    """
    dropped = 0
    while len(messages) > 2 and len(tokenizer.render_for_completion(messages)) > room:
        del messages[:2]
        dropped += 1
    return dropped
