"""What is known of a checkpoint's training: its mix, its names, the records that it has seen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema import MixConfig, UserError
from dataset.mix.build import build_mix
from dataset.mix.sources import find_sources
from dataset.records.files import read_records
from dataset.records.keys import text_hash
from evaluation.baselines import text_key
from evaluation.provenance import is_bundled, mixture_of, names_of, not_trained_on, require_parts
from evaluation.questions import question_of
from model.manifest import StartFile, TrainedSettings, TrainingFile, WeightsManifest
from tests.tiny_run import chat, write_jsonl

NAMES = ("MiniLLM", "MiniLLM 团队")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the bundled samples are written once."""
    return tmp_path_factory.mktemp("samples")


@pytest.mark.parametrize("own", ["", "general", "knowledge", "math"])
def test_a_mix_tells_whether_its_talk_and_knowledge_are_the_bundled_ones(
    tmp_path: Path, samples: Path, own: str
) -> None:
    (tmp_path / "mine").mkdir()
    if own:
        records = [{"conversations": chat(f"问题{n}", f"回答{n}")} for n in range(40)]
        write_jsonl(tmp_path / "mine" / f"{own}.jsonl", records)
    config = MixConfig(general=60, knowledge=60, math=60, identity=60, preference=60, name="小明")
    sources = find_sources(tmp_path / "mine", samples, config, {f"{own}.jsonl": own})
    outputs = build_mix(sources, config, tmp_path / "mix")["outputs"]
    trained = [TrainingFile(path="gone.jsonl", sha256=outputs["sft_chinese.jsonl"]["sha256"])]
    mixture = mixture_of(tmp_path / "mix", trained)
    assert mixture is not None
    assert is_bundled(mixture) is (own in {"", "math"})
    assert names_of(mixture, NAMES) == ("小明", config.author)


def test_what_scoring_needs_of_a_record_passes_through_the_mix_with_the_names_filled_in(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    fields = {
        "topic": "name",
        "cluster": "{{name}} 1",
        "accepted": ["我的名字是{{name}}。", "{{author}}"],
        "honest": True,
    }
    record = {"conversations": chat("你叫啥？", "我叫{{name}}。"), "split": "test", **fields}
    own = [record, *({"conversations": chat(f"你叫什么{n}？", "我叫{{name}}。")} for n in range(20))]
    write_jsonl(tmp_path / "mine" / "identity_conversations.jsonl", own)
    config = MixConfig(general=0, knowledge=0, math=0, identity=20, preference=0, name="小明", author='明"组"')
    build_mix(find_sources(tmp_path / "mine", tmp_path / "samples", config, {}), config, tmp_path / "mix")
    held_out = read_records(tmp_path / "mix" / "sft_chinese_heldout.jsonl")
    (question,) = [question for question in map(question_of, held_out) if question.asked == "你叫啥？"]
    assert question.expected == "我叫小明。"
    assert (question.topic, question.cluster, question.honest) == ("name", "cluster 小明 1", True)
    assert question.accepted == ("我的名字是小明。", '明"组"')


def test_another_mix_or_none_tells_nothing(tmp_path: Path) -> None:
    trained = [TrainingFile(path="a", sha256="1")]
    manifests: list[Any] = [None, [], {}, {"outputs": {"a": {"sha256": "2"}}}, {"outputs": {"a": 3}}, {"outputs": []}]
    for manifest in manifests:
        if manifest is not None:
            (tmp_path / "mix_manifest.json").write_text(json.dumps(manifest))
        assert mixture_of(tmp_path, trained) is None
    assert not is_bundled(None)
    assert names_of(None, NAMES) == NAMES


def test_records_are_known_by_their_text_or_their_first_question() -> None:
    seen = {text_key("春天来了。"), text_hash("你好"), text_hash("1+23等于几")}
    old = [
        {"text": "春天来了。"},
        {"text": "春天 来了！"},
        {"conversations": chat("你好！", "你好")},
        {"chosen": chat("1+23 等于几？", "24")},
        {"conversations": [{"role": "system", "content": "x"}, *chat("你好", "好")]},
    ]
    new = [{"text": "春天"}, {"conversations": chat("12+3等于几？", "15")}, {"chosen": chat("再见", "再见")}]
    assert not_trained_on([*old, *new], seen) == new
    assert not_trained_on(old, set()) == old


@pytest.mark.parametrize(
    ("identity", "names"),
    [
        (None, ("小明", "明组")),
        ({"own": False, "name": "小智", "author": "智组"}, ("小明", "明组")),
        ({"own": True, "name": "小智", "author": "智组"}, ("小智", "智组")),
        ({"own": True, "name": "小智", "author": None}, ("小智", "")),
        ({"own": True}, ("", "")),
    ],
)
def test_the_name_to_ask_for_is_the_one_that_the_users_own_identity_records_say(
    identity: Any, names: tuple[str, str]
) -> None:
    mixture = {"settings": {"name": "小明", "author": "明组"}} | ({"identity": identity} if identity else {})
    assert names_of(mixture, NAMES) == names


WHOLE = WeightsManifest(
    settings=TrainedSettings(train={"max_seq_len": 64, "beta": 0.1}),
    training_data=(TrainingFile(path="a", sha256="1"),),
    start=StartFile(path="b", sha256="2"),
)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"training_data": ()}, "training_data"),
        ({"training_data": (TrainingFile(path="a"),)}, "training_data"),
        ({"settings": TrainedSettings()}, "max_seq_len"),
        ({"settings": TrainedSettings(train={"max_seq_len": "64", "beta": 0.1})}, "max_seq_len"),
        ({"settings": TrainedSettings(train={"max_seq_len": 64})}, "beta"),
        ({"start": None}, "start"),
    ],
)
def test_weights_that_do_not_say_how_they_were_trained_are_refused(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    require_parts(tmp_path / "rlhf_16.pth", WHOLE, "dpo")
    with pytest.raises(UserError, match=rf"rlhf_16\.pth: its manifest doesn't say how it was trained \('{named}'\)"):
        require_parts(tmp_path / "rlhf_16.pth", replace(WHOLE, **change), "dpo")
