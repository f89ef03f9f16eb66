"""Conversations of known questions: how they are drawn, asked as chat asks, and counted."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import conversation
from benchmarks.conversation import ALL_THAT_FITS, Known, draw, measure, parts, shares, spoilt, talker
from configs.paths import TOKENIZER_DIR
from configs.schema import UserError
from dataset.records.keys import normalised_question
from dataset.tokenizer import RustBPETokenizer
from inference.conversation import Conversation, context_tokens
from inference.engine import Answer, Engine
from inference.sampling import Sampling
from inference.terminal import Chat
from model.weights import load_model, save_weights
from tests.tiny_run import TinyRun, lively, write_jsonl


def known(text: str, kind: str = "facts") -> Known:
    """A question whose right answer is itself."""
    return Known(text, kind, lambda said: "" if said.text == text else "is something else")


POOLS = [[known(f"甲{n}", "core") for n in range(30)], [known(f"乙{n}") for n in range(12)]]


def test_a_conversation_takes_turns_between_the_pools_and_asks_nothing_twice() -> None:
    drawn = draw(POOLS, conversations=5, length=20, seed=1)
    for questions in drawn:
        assert len({normalised_question(one.text) for one in questions}) == 20
        assert sum(one.kind == "core" for one in questions) == 10
    assert len({tuple(one.text for one in questions) for questions in drawn}) == 5
    assert drawn == draw(POOLS, conversations=5, length=20, seed=1) != draw(POOLS, conversations=5, length=20, seed=2)
    with pytest.raises(UserError, match="too few questions for conversations of 26"):
        draw(POOLS, conversations=1, length=26, seed=1)


def test_figures_say_where_in_a_conversation_answers_turn_wrong() -> None:
    def forgetful(questions: Sequence[str], turns: int) -> list[Answer]:
        """Never knows 甲0; right to five questions, or as long as few turns are kept."""
        right = [text != "甲0" and (place < 5 or turns == 2) for place, text in enumerate(questions)]
        return [Answer(text if good else "?", True, 1) for text, good in zip(questions, right, strict=True)]

    drawn = [[known("甲0"), *(known(f"乙{n}") for n in range(19))]]
    found = measure(drawn, forgetful, [ALL_THAT_FITS, 2])
    figures = {name: shares(part) for name, part in parts(found[ALL_THAT_FITS], 20)}
    assert list(figures) == ["all", "1-5", "6-10", "11-15", "16-20", "facts"]
    assert figures["all"]["alone"]["value"] == 19 / 20 and figures["all"]["within"]["value"] == 4 / 20
    assert figures["all"]["ratio"] == pytest.approx(4 / 19)
    assert [figures[name]["ratio"] for name in ("1-5", "6-10", "16-20")] == [1, 0, 0]
    assert shares(found[2])["ratio"] == 1
    assert len(spoilt(found[ALL_THAT_FITS], 99)) == 15 and "1.6 facts: 乙4" in spoilt(found[ALL_THAT_FITS], 1)[0]


def test_the_answers_are_those_of_chat(
    tiny: TinyRun, tokenizer: RustBPETokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = lively(load_model(tiny.path("sft"))[0])
    questions = [f"你好，今天是{n}号，天气怎么样？" for n in range(9)]
    answers = talker(model, tokenizer, 3)(questions, ALL_THAT_FITS)
    turns = iter([*questions, "/exit"])
    monkeypatch.setattr("builtins.input", lambda shown: next(turns))
    with torch.no_grad():
        talk = Conversation(tokenizer, context_tokens(model))
        Chat(Engine(model, tokenizer), talk, Sampling(max_new_tokens=3)).run()
    assert capsys.readouterr().out == "".join(f"模型: {said.text}\n" for said in answers)


def test_with_no_turns_kept_a_question_is_as_alone(tiny: TinyRun, tokenizer: RustBPETokenizer) -> None:
    talk = talker(lively(load_model(tiny.path("sft"))[0]), tokenizer, 3)
    questions = ["你好", "3+4=？", "再见"]
    assert talk(questions, 0) == [talk([question], ALL_THAT_FITS)[0] for question in questions]


def test_weights_become_a_table_and_a_json_file(tiny: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    model, manifest = load_model(tiny.path("sft"))
    save_weights(tiny.path("sft"), lively(model), manifest)
    facts = [
        {
            "conversations": [{"role": "user", "content": f"问{n}"}, {"role": "assistant", "content": f"答{n}"}],
            "category": "knowledge",
            "split": split,
        }
        for n in range(6)
        for split in ("test", "validation")
    ]
    for name in (conversation.TRAINED, conversation.HELDOUT):
        write_jsonl(tiny.data / name, [{k: v for k, v in fact.items() if k != "split"} for fact in facts])
    result = tiny.out / "talk.json"
    flags = ["--weight", str(tiny.path("sft")), "--tokenizer_dir", str(TOKENIZER_DIR), "--data_dir", str(tiny.data)]
    counts = ["--conversations", "2", "--questions", "4", "--turns", "1", "0", "--max_new_tokens", "4"]
    assert conversation.main([*flags, *counts, "--show_spoilt", "1", "--json", str(result)]) == 0
    figures = json.loads(result.read_text(encoding="utf-8"))
    assert figures["parts"]["all"]["n"] == 8
    assert set(figures["turns"]) == {"what chat keeps", "0 turns", "1 turns"}
    assert "2 conversations of 4 known questions" in capsys.readouterr().out


def test_pretrained_weights_are_refused(tiny: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pretrained weights don't answer"):
        conversation.main(["--weight", str(tiny.path("pretrain")), "--tokenizer_dir", str(TOKENIZER_DIR)])
