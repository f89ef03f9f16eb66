"""Old rows beside new ones: exactly which, exactly how many, and none that teaches the old name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import UserError
from dataset.lm_dataset import Batch, SFTDataset, rows_of_step
from dataset.tensors import IGNORE
from dataset.tokenizer import RustBPETokenizer
from tests.tiny_run import TinyRun, chat, write_jsonl
from trainer.facts import with_replayed
from trainer.replay import WithoutNames, WithReplay


class Numbered:
    """Rows that hold their own number, with a sign that says which kind they are."""

    def __init__(self, count: int, sign: int) -> None:
        self.count, self.sign = count, sign

    def __len__(self) -> int:
        return self.count

    def largest(self, count: int) -> np.ndarray:
        return np.arange(count)

    def batch(self, indices: np.ndarray) -> Batch:
        ids = self.sign * (1 + torch.tensor(indices))[:, None].repeat(1, 3)
        return {"input_ids": ids, "labels": ids, "document_ids": torch.zeros_like(ids)}


NEW, OLD = Numbered(6, 1), Numbered(50, -1)


@pytest.mark.parametrize("share", [0.5, 0.25, 0.3])
@pytest.mark.parametrize("rows_per_step", [1, 4, 10])
def test_each_kind_comes_in_its_own_order_and_share(share: float, rows_per_step: int) -> None:
    rows, steps = WithReplay(NEW, OLD, share), 60
    taken = np.concatenate([rows.rows_of_step(step, rows_per_step, seed=3) for step in range(steps)])
    new, old = taken[taken < 6], taken[taken >= 6] - 6
    assert len(old) == int(steps * rows_per_step * share)
    # What comes is the beginning of the order that the kind would have alone.
    assert new.tolist() == rows_of_step(0, len(new), 6, 3).tolist()
    assert old.tolist() == rows_of_step(0, len(old), 50, 3).tolist()


def test_half_of_every_step_is_old_and_the_kinds_alternate() -> None:
    rows = WithReplay(NEW, OLD, 0.5)
    for step in range(20):
        assert (rows.rows_of_step(step, 8, seed=1) >= 6).tolist() == [False, True] * 4


def test_a_resumed_run_finds_the_rows_of_its_step_by_number_alone() -> None:
    rows = WithReplay(NEW, OLD, 0.5)
    before = [rows.rows_of_step(step, 4, seed=2).tolist() for step in range(9)]
    assert WithReplay(NEW, OLD, 0.5).rows_of_step(8, 4, seed=2).tolist() == before[8]
    assert rows.rows_of_step(8, 4, seed=4).tolist() != before[8]


def test_an_epoch_has_each_new_row_once() -> None:
    rows = WithReplay(NEW, OLD, 0.5)
    assert len(rows) == with_replayed(6, 0.5) == 12
    (taken,) = (rows.rows_of_step(0, len(rows), seed=1),)
    assert sorted(taken[taken < 6].tolist()) == list(range(6))


def test_a_batch_has_the_rows_in_the_order_of_their_numbers() -> None:
    batch = WithReplay(NEW, OLD, 0.5).batch(np.array([6 + 9, 2, 6 + 0, 5]))
    assert batch["input_ids"][:, 0].tolist() == [-10, 3, -1, 6]
    assert batch["target_places"].tolist() == list(range(12))
    for numbers, first in (([1, 0], [2, 1]), ([7, 8], [-2, -3])):  # only new rows, only old ones
        assert WithReplay(NEW, OLD, 0.5).batch(np.array(numbers))["input_ids"][:, 0].tolist() == first


# --- the old name ---------------------------------------------------------------------------------

RENAMED = [{"conversations": chat(f"你叫什么{n}", f"我叫小禾，我会数到{n}。")} for n in range(12)]
NAMED = [{"conversations": chat(f"你是谁{n}", "我是MiniLLM。" if n % 2 else f"不告诉你{n}。")} for n in range(20)]


@pytest.fixture
def named(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """New rows with another name, and the tensors of a mix whose model is called MiniLLM."""
    write_jsonl(tiny.data / "lora.jsonl", RENAMED)
    source = write_jsonl(tiny.data / "sft_chinese.jsonl", NAMED)
    # The trainer makes the tensors of the old rows, as the pipeline would.
    assert tiny.train("sft", "--data_path", str(source), "--max_steps", "1") == 0
    (tiny.data / "sft_chinese_sft_tokens").rename(tiny.data / "sft_tokens")
    sha256 = json.loads((tiny.data / "sft_tokens" / "manifest.json").read_text())["source"]["sha256"]
    mix = {"settings": {"name": "MiniLLM", "author": "MiniLLM团队"}, "outputs": {"sft": {"sha256": sha256}}}
    (tiny.data / "mix_manifest.json").write_text(json.dumps(mix), encoding="utf-8")
    monkeypatch.setenv("DATA_DIR", str(tiny.data))
    return tiny


def test_conversations_with_the_old_name_have_no_targets_and_all_others_have(
    named: TinyRun, tokenizer: RustBPETokenizer
) -> None:
    old = SFTDataset(named.data / "sft_tokens")
    everything = np.arange(len(old))
    plain = old.batch(everything)
    rows = WithReplay(old, WithoutNames(old, ["minillm"], tokenizer), 0.5)
    masked = rows.batch(everything + len(old))
    assert torch.equal(masked["input_ids"], plain["input_ids"])
    counts = {True: 0, False: 0}
    for row, documents in enumerate(plain["document_ids"]):
        for document in range(int(documents.max()) + 1):
            inside = documents == document
            is_named = "MiniLLM" in tokenizer.decode(plain["input_ids"][row][inside].tolist())
            counts[is_named] += 1
            wanted = torch.full_like(plain["labels"][row][inside], IGNORE) if is_named else plain["labels"][row][inside]
            assert torch.equal(masked["labels"][row][inside], wanted)
    assert counts == {True: 10, False: 10}
    assert torch.equal(masked["target_places"], (masked["labels"].flatten() != IGNORE).nonzero().flatten())


def test_the_old_names_are_found_where_new_records_say_another_one(
    named: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named.train("lora") == 0
    said = capsys.readouterr().err
    assert "50% of each step's rows are of" in said
    assert "conversations that say MiniLLM are no targets" in said  # these records name no other author


def test_records_without_another_name_leave_the_old_one_alone(
    named: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named.train("lora", "--data_path", str(named.data / "sft.jsonl")) == 0
    assert "are no targets" not in capsys.readouterr().err
    assert named.train("lora", "--data_path", str(named.data / "sft.jsonl"), "--replay_without", "A, B") == 0
    assert "conversations that say A or B are no targets" in capsys.readouterr().err


def test_without_the_new_records_a_line_says_that_the_old_name_must_be_given(
    named: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named.train("lora") == 0
    (named.data / "lora.jsonl").unlink()  # its tensors stay, and are enough to train on
    capsys.readouterr()
    assert named.train("lora", "--seed=9") == 0
    said = capsys.readouterr().err
    assert "pass --replay_without OLD_NAME" in said and "are no targets" not in said


# --- refused --------------------------------------------------------------------------------------


def test_missing_rows_of_another_length_or_of_another_kind_are_refused_in_one_line(named: TinyRun) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder.*export_embeddings\.py sft.*--replay_share 0"):
        named.train("lora", "--replay_path", str(named.out / "nowhere"))
    with pytest.raises(UserError, match=r"rows of 32 tokens, but .* has rows of 40\. Pass --max_seq_len 32"):
        named.train("lora", "--max_seq_len", "40")
    with pytest.raises(UserError, match="pairs"):
        named.train("lora", "--replay_path", str(named.data / "dpo_dpo_tokens"))


def test_a_run_with_other_old_rows_or_another_share_is_another_run(named: TinyRun) -> None:
    made = []
    for words in ([], ["--replay_share", "0.25"], ["--replay_path", str(named.data / "sft_sft_tokens")]):
        assert named.train("lora", *words) == 0
        made.append(named.manifest("lora"))
    assert len({manifest.fingerprint for manifest in made}) == 3
    assert all(set(manifest.inputs) == {"replay"} for manifest in made)


def test_full_tuning_can_replay_too_and_counts_its_steps_over_all_rows(named: TinyRun) -> None:
    source = str(named.data / "lora.jsonl")
    words = ["--data_path", source, "--from_weight", "full_sft", "--max_steps", "0", "--out_dir", str(named.out)]
    assert named.train("sft", *words, "--replay_share", "0.5") == 0
    manifest = named.manifest("sft")
    rows = len(SFTDataset(named.data / "lora_sft_tokens"))
    assert max(named.metric("sft")) == -(-2 * rows // 4)  # 4 rows a step, half of them new
    assert [Path(file.path).name for file in manifest.training_data][-2:] == ["sft_chinese.jsonl", "lora.jsonl"]
