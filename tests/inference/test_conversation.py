"""A conversation as the model reads it: what is dropped, and what a pretrained model sees."""

from dataset.tokenizer import RustBPETokenizer
from inference.conversation import forget, prompt_ids


def test_a_pretrained_model_continues_the_text(tokenizer: RustBPETokenizer) -> None:
    messages = [{"role": "user", "content": "春天"}]
    bos = tokenizer.get_bos_token_id()
    assert prompt_ids(tokenizer, messages, completes=True) == [bos, *tokenizer.encode("春天")]
    assert prompt_ids(tokenizer, messages, completes=False) == tokenizer.render_for_completion(messages)


def test_the_oldest_turns_are_forgotten_whole(tokenizer: RustBPETokenizer) -> None:
    turns = [{"role": role, "content": f"{role}{n}"} for n in range(6) for role in ("user", "assistant")]
    messages = [*turns, {"role": "user", "content": "问"}]
    room = len(tokenizer.render_for_completion(messages[4:]))
    assert forget(tokenizer, messages, room) == 2
    assert messages == [*turns[4:], {"role": "user", "content": "问"}]
    assert forget(tokenizer, messages, room) == 0
    assert forget(tokenizer, messages, 1) == 4
    assert messages == [{"role": "user", "content": "问"}]
