"""The records that a checkpoint is scored on: of the right shape, and not trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.artifacts import sha256_file
from configs.schema import UserError
from dataset.records.keys import text_hash
from evaluation.baselines import training_examples
from evaluation.heldout import Heldout, read_heldout, without_few
from evaluation.intervals import Metric
from evaluation.provenance import Trained, trained_on
from model.manifest import TrainingFile
from tests.tiny_run import chat, pair_record, sum_record, write_jsonl

NOTHING = Trained([], set())
RECORDS: dict[str, list[dict[str, Any]]] = {
    "pretrain": [{"text": f"第{n}天，下雨了。"} for n in range(40)],
    "sft": [sum_record(n, 8) for n in range(40)],
    "dpo": [pair_record(n, 8) for n in range(40)],
}


def read(path: Path, stage: str, trained: Trained = NOTHING, max_samples: int = 0) -> Heldout:
    """The held-out records of a file."""
    return read_heldout(path, stage, trained, max_samples, 42)


def trained_of(path: Path, stage: str, weights: Path | None = None) -> Trained:
    """What is known of a checkpoint in the folder `weights` that was trained on a file."""
    sources = [TrainingFile(path=str(path), sha256=sha256_file(path))]
    return known(sources, stage, weights or path.parent / "out")


def known(sources: list[TrainingFile], stage: str, weights: Path) -> Trained:
    """The same for several files, which may have changed since."""
    with_texts = stage == "pretrain"
    return trained_on(sources, training_examples(sources, 42, with_texts=with_texts), weights, with_texts=with_texts)


# --- shape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", RECORDS)
@pytest.mark.parametrize("other", RECORDS)
def test_a_file_of_another_shape_is_refused_with_its_line(tmp_path: Path, stage: str, other: str) -> None:
    own, *_ = RECORDS[stage]
    path = write_jsonl(tmp_path / "mine.jsonl", [own, *RECORDS[other][1:3]])
    if stage == other:
        assert len(read(path, stage).records) == 3
        return
    with pytest.raises(UserError, match=rf"mine\.jsonl:2: .* Give another --data_path, or weights of --stage {other}"):
        read(path, stage)


def test_the_line_of_a_wrong_shape_counts_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "一"}\n\n\n{"chosen": "好", "rejected": "坏", "prompt": "问"}\n')
    with pytest.raises(UserError, match=r"mine\.jsonl:4: a pair of answers"):
        read(tmp_path / "mine.jsonl", "pretrain")


@pytest.mark.parametrize("value", [{"a": 1}, ["test"], 3, None, "别的", True])
@pytest.mark.parametrize("column", ["category", "kind", "split", "cluster", "source"])
def test_a_column_of_somebodys_own_decides_nothing(tmp_path: Path, column: str, value: Any) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [sum_record(n, 8) | {column: value} for n in range(4)])
    found = read(path, "sft", max_samples=2)
    assert (found.split, len(found.records)) == ("all", 2)
    assert found.counts == {"general" if column == "category" else "math": 4}


@pytest.mark.parametrize("line", ["3", "[]", '"text"', "{}", "nonsense", '{"text": 3}', '{"conversations": []}'])
def test_a_line_that_is_no_record_is_one_line_of_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "mine.jsonl").write_text(f'{{"text": "一"}}\n{line}\n')
    with pytest.raises(UserError, match=r"mine\.jsonl:2: "):
        read(tmp_path / "mine.jsonl", "pretrain")


# --- what was trained on --------------------------------------------------------------------------


@pytest.mark.parametrize("stage", RECORDS)
@pytest.mark.parametrize("change", ["less a line", "other order", "own fields", "other marks", "with 3 new"])
def test_a_training_file_in_another_coat_is_refused(tmp_path: Path, stage: str, change: str) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", RECORDS[stage])
    trained = trained_of(path, stage)
    records = json.loads(json.dumps(RECORDS[stage], ensure_ascii=False))
    text = json.dumps(records, ensure_ascii=False)
    changed: dict[str, Any] = {
        "less a line": records[1:],
        "other order": records[::-1],
        "own fields": [{"id": n, "split": "test"} | record for n, record in enumerate(records)],
        "other marks": json.loads(text.replace("，", " , ").replace("？", " ?").replace("了。", "了!")),
        "with 3 new": records + json.loads(text.replace("等于", "乘2得").replace("下雨", "下雪"))[:3],
    }
    mine = write_jsonl(tmp_path / "mine.jsonl", changed[change])
    with pytest.raises(
        UserError, match=r"mine\.jsonl: this checkpoint was trained on (every one|40) of its \d+ records"
    ):
        read(mine, stage, trained)


@pytest.mark.parametrize(("seen", "scored"), [(0, 40), (1, 39), (35, 5), (36, None), (40, None)])
def test_what_was_trained_on_is_left_out_with_a_count_or_refused_when_it_is_nearly_all(
    tmp_path: Path, seen: int, scored: int | None
) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", RECORDS["sft"])
    trained = trained_of(write_jsonl(tmp_path / "train.jsonl", [*RECORDS["sft"][:seen], sum_record(99, 1)]), "sft")
    if scored is None:
        with pytest.raises(UserError, match=f"trained on {'every one' if seen == 40 else seen} of its 40 records"):
            read(path, "sft", trained)
        return
    found = read(path, "sft", trained)
    assert found.records == RECORDS["sft"][seen:]
    assert found.counts == {"math": scored}  # an accuracy stands on these alone
    note = f"{path}: {seen} of 40 records left out: the model was trained on them | 其中 {seen} 条模型训练时见过，不计入评测"
    assert found.notes == ([note] if seen else [])


def mix(folder: Path, records: list[dict[str, Any]], heldout: list[dict[str, Any]]) -> list[TrainingFile]:
    """Write what an evaluation after SFT reads of a mix; returns the checkpoint's `training_data`.

    The records are trained on, the others held out.
    """
    folder.mkdir(exist_ok=True)
    path = write_jsonl(folder / "sft_chinese.jsonl", records)
    write_jsonl(folder / "sft_chinese_heldout.jsonl", heldout)
    digest = sha256_file(path)
    (folder / "mix_manifest.json").write_text(json.dumps({"outputs": {path.name: {"sha256": digest}}}))
    return [TrainingFile(path=str(path), sha256=digest)]


def test_an_old_checkpoint_on_a_new_mix_is_scored_on_what_is_new_where_an_evaluation_kept_its_keys(
    tmp_path: Path,
) -> None:
    everything, weights = RECORDS["sft"], tmp_path / "out"
    sources = mix(tmp_path / "data", everything[10:], everything[:10])
    heldout = tmp_path / "data" / "sft_chinese_heldout.jsonl"
    assert len(read(heldout, "sft", known(sources, "sft", weights)).records) == 10
    mix(tmp_path / "data", everything[:30], everything[5:15])  # another seed: 5 of these were held out before
    assert read(heldout, "sft", known(sources, "sft", weights)).records == everything[5:10]
    mix(tmp_path / "data", everything[:20], everything[20:])
    with pytest.raises(UserError, match="trained on every one of its 20 records"):
        read(heldout, "sft", known(sources, "sft", weights))


def test_an_old_checkpoint_of_which_nothing_is_known_is_refused_on_a_new_mix(tmp_path: Path) -> None:
    everything = RECORDS["sft"]
    sources = mix(tmp_path / "data", everything[10:], everything[:10])
    mix(tmp_path / "data", everything[:30], everything[30:])
    with pytest.raises(UserError, match=r"held out by another mix than .* bash scripts/run\.sh; or give --data_path"):
        read(tmp_path / "data" / "sft_chinese_heldout.jsonl", "sft", known(sources, "sft", tmp_path / "out"))


def test_on_a_file_of_ones_own_a_line_says_what_can_not_be_told(tmp_path: Path) -> None:
    sources = mix(tmp_path / "data", RECORDS["sft"][10:], [])
    (tmp_path / "data" / "sft_chinese.jsonl").unlink()
    mine = write_jsonl(tmp_path / "mine.jsonl", RECORDS["sft"][:3])
    (note,) = read(mine, "sft", known(sources, "sft", tmp_path / "out")).notes
    assert "whether any of it was trained on can't be told" in note
    assert " | " in note


def test_a_mix_whose_training_file_was_deleted_still_vouches_for_its_held_out_records(tmp_path: Path) -> None:
    sources = mix(tmp_path / "data", RECORDS["sft"][10:], RECORDS["sft"][:10])
    (tmp_path / "data" / "sft_chinese.jsonl").unlink()
    found = read(tmp_path / "data" / "sft_chinese_heldout.jsonl", "sft", known(sources, "sft", tmp_path / "out"))
    assert (len(found.records), found.notes) == (10, [])


def test_what_the_remaining_files_hold_counts_though_one_is_gone(tmp_path: Path) -> None:
    files = [
        write_jsonl(tmp_path / f"{n}.jsonl", [{"conversations": chat(f"问{n}{k}", "答")} for k in "一二"])
        for n in range(2)
    ]
    sources = [TrainingFile(path=str(path), sha256=sha256_file(path)) for path in files]
    files[0].write_text("")
    trained = known(sources, "sft", tmp_path / "out")
    assert trained.keys == {text_hash(f"问1{k}") for k in "一二"}
    assert trained.lacking.endswith("0.jsonl: changed since the training")


def test_keys_are_kept_beside_weights_that_can_be_written_to_and_only_there(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", RECORDS["dpo"])
    (tmp_path / "file").write_text("")
    assert trained_of(train, "dpo", tmp_path / "file").lacking == ""  # no folder: nothing is kept, nothing fails
    kept = trained_of(train, "dpo", tmp_path / "out")
    (path,) = (tmp_path / "out" / "trained_on").iterdir()
    assert path.stat().st_size == 8 * len(kept.keys) == 8 * 40
    sources = list(kept.sources)
    train.unlink()
    assert known(sources, "dpo", tmp_path / "out") == kept


def test_accuracies_on_few_records_are_not_printed(tmp_path: Path) -> None:
    del tmp_path
    metrics = {name: Metric(0.5, 9, 0.1, 0.9, 9) for name in ("loss", "accuracy_math", "accuracy_math_word", "ended")}
    notes: list[str] = []
    assert without_few(metrics, {"math": 9}, notes).keys() == {"loss", "ended"}
    assert notes == [
        "math: 9 held-out records here, fewer than 10: no accuracy is printed | 此处只有 9 条留出记录，不给出准确率"
    ]
    assert without_few(metrics, {"math": 10}, notes) == metrics
