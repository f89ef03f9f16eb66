"""What a record becomes, token by token."""

import json
import pickle
from typing import Any

import numpy as np

from dataset.tensors import IGNORE
from dataset.tokenizer import NUM_BYTES, QWEN2_PATTERN, RustBPETokenizer
from dataset.tokens.encoding import Encoded, token_dtype
from tests.dataset.tokens.byte_tokens import encoder, tokenizer


def encode(stage: str, *records: Any, **settings: Any) -> Encoded:
    batch = [(number, json.dumps(record).encode()) for number, record in enumerate(records, start=1)]
    return encoder(stage, **settings).encode(batch)


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_labels_are_the_next_token_and_never_of_another_sequence() -> None:
    sequences = encode("pretrain", {"text": "ab"}, {"text": "c"}).sequences
    bos, eos = tokenizer.get_bos_token_id(), tokenizer.end_of_text_id
    assert sequences.ids.tolist() == [bos, *b"ab", eos, bos, *b"c", eos]
    assert sequences.labels.tolist() == [*b"ab", eos, IGNORE, *b"c", eos, IGNORE]
    assert sequences.lengths.tolist() == [4, 3]
    assert sequences.starts.tolist() == [0, 4]


def test_targets_and_their_bytes_are_counted() -> None:
    counts = encode("sft", {"conversations": chat("你好", "好的")}).counts
    assert counts["num_bytes"] == len("好的".encode())
    assert counts["num_targets"] == counts["num_bytes"] + 1  # the end of the turn is a target, and has no bytes


def test_both_sides_of_a_pair_follow_each_other() -> None:
    encoded = encode("dpo", {"chosen": chat("q", "yes"), "rejected": chat("q", "no")})
    assert encoded.sequences.lengths.tolist() == [6 + 3, 6 + 2]
    assert encoded.counts["num_targets"] == 3 + 1 + 2 + 1


def test_sides_that_answer_different_questions_are_an_error_that_names_the_line() -> None:
    good, bad = ({"chosen": chat("q", "a"), "rejected": chat(question, "b")} for question in "qr")
    error = encode("dpo", good, bad).error
    assert error is not None and error.line == (
        "a.jsonl:2: chosen and rejected answer different questions. Fix or remove that line. "
        "| 这条记录不可用，请修改或删除该行"
    )


def test_records_of_another_split_are_passed_over() -> None:
    records = [{"text": "a", "split": "test"}, {"text": "b", "split": "validation"}, {"text": "c"}]
    encoded = encode("pretrain", *records, split="validation")
    assert encoded.counts["records"] == 1
    assert encoded.sequences.ids.tolist()[1] == ord("b")


def test_marks_of_other_formats_are_no_tokens_and_records_with_them_are_counted() -> None:
    encoded = encode(
        "pretrain", {"text": "<|im_start|>问？答。<|im_end|> <|im_start|>又问<|im_end|>"}, {"text": "一段话。"}
    )
    assert encoded.counts["marked"] == 1
    plain = encode("pretrain", {"text": "问？答。\n又问"}, {"text": "一段话。"})
    assert encoded.sequences.ids.tolist() == plain.sequences.ids.tolist()


def test_a_bad_answer_is_left_out_and_a_turn_without_targets_has_no_labels() -> None:
    wrong = {"role": "assistant", "content": "错", "loss": False}
    messages = [chat("问", "")[0], wrong, *chat("再想", "对")]
    encoded = encode("sft", {"messages": messages}, {"messages": chat("问", "滚开"), "label": False})
    assert dict(encoded.dropped) == {"label is false: an answer marked as bad": 1}
    assert encoded.counts["num_targets"] == len(tokenizer.encode("对")) + 1


def test_a_batch_without_records_has_no_tokens() -> None:
    sequences = encode("pretrain").sequences
    assert (len(sequences.ids), len(sequences.labels), len(sequences.lengths)) == (0, 0, 0)


def test_an_encoder_is_the_same_in_another_process() -> None:
    batch = [(1, '{"text": "你好"}'.encode())]
    mine = encoder("pretrain")
    before = mine.encode(batch)
    copy = pickle.loads(pickle.dumps(mine))
    assert np.array_equal(copy.encode(batch).sequences.ids, before.sequences.ids)


def test_large_vocabularies_get_wider_integers() -> None:
    ranks = {bytes([byte]): byte for byte in range(NUM_BYTES)}
    ranks |= {number.to_bytes(3, "big"): NUM_BYTES + number for number in range(33_000)}
    assert token_dtype(RustBPETokenizer(QWEN2_PATTERN, ranks)) == np.int32
    assert token_dtype(tokenizer) == np.int16
