"""Which files are read, their categories, and the bundled samples beside them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from configs.artifacts import sha256_file
from configs.paths import IDENTITY_MARK, IDENTITY_SAMPLE
from configs.schema import MixConfig, UserError
from dataset.mix.build import build_mix
from dataset.mix.sources import Source, Sources, find_sources
from dataset.samples.files import SAMPLE_FILES
from dataset.samples.generators import generated
from dataset.samples.unknown import questions as unknown
from tests.dataset.mix.small_mix import PATTERNS, REFUSALS, SMALL, chat, mixed, out, pair, write

ODD_NAMES = [
    "a: b.jsonl", "#1.jsonl", "x #y.jsonl", "it's.jsonl", 'say "hi".jsonl', "- a.jsonl", "[1].jsonl", "a[1].jsonl", "*.jsonl",
    "数据：一.jsonl", "{a}.jsonl", "&a.jsonl", "!a.jsonl", "%a.jsonl", "`a.jsonl", " a.jsonl", "a?.jsonl",
    "a\\b.jsonl", "a: b: c.csv", "plain.jsonl", "x" * 200 + ".jsonl",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_suggested_line_is_yaml_and_places_that_file_alone(tmp_path: Path, bundled: Path, name: str) -> None:
    path = write(bundled / name, [chat("问")])
    with pytest.raises(UserError, match="its name tells no category") as raised:
        find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)
    line = str(raised.value).split("Add the line `  ")[1].split("` (or")[0]
    block = yaml.safe_load(f"files:\n  {line}\n  z*: math\n")["files"]
    assert list(block.values()) == ["general", "math"]
    write(bundled / "other_a1.jsonl", [chat("问")])
    with pytest.raises(UserError, match=r"other_a1\.jsonl: its name tells no category"):
        find_sources(bundled, tmp_path / "samples", SMALL, {**block, **PATTERNS})
    (bundled / "other_a1.jsonl").unlink()
    sources = find_sources(bundled, tmp_path / "samples", SMALL, {**block, **PATTERNS})
    assert Source(path, "general") in sources.files


def test_a_file_read_in_another_format_is_named(tmp_path: Path) -> None:
    records = json.dumps([chat(f"请介绍第{n}号公园") for n in range(30)], ensure_ascii=False)
    (tmp_path / "a.json").write_bytes(records.encode("gb18030"))
    manifest = build_mix(Sources([Source(tmp_path / "a.json", "general")], {}), SMALL, tmp_path / "out")
    source = manifest["sources"][0]
    assert (source["read"], source["format"]) == (30, "GB18030 (GBK), a JSON array")
    assert out(tmp_path, "sft")[0]["conversations"][0]["content"].startswith("请介绍第")


def test_a_valid_line_of_10_mb_is_accepted(tmp_path: Path) -> None:
    mixed(tmp_path, {"a.jsonl": ("corpus", [{"text": "长" * 3_400_000}, {"text": "短"}])})
    assert sorted(len(record["text"]) for record in out(tmp_path, "pretrain")) == [1, 3_400_000]


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("io.FileIO", refuse)
    with pytest.raises(UserError, match=r"a.jsonl: can't be read \(Permission denied\)"):
        mixed(tmp_path, {"a.jsonl": ("general", [chat("问")])})


def test_samples_stand_in_for_each_category_without_a_file(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "sft_mini_512.jsonl", [chat("问")])
    write(bundled / "r1_mix_1024.jsonl", [chat("问")])
    (bundled / "README.md").write_text("readme")
    sources = find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)
    assert [(source.path.name, source.category, source.is_sample) for source in sources.files] == [
        ("limits_cn_sample.jsonl", "general", True),
        ("sft_mini_512.jsonl", "general", False),
        ("knowledge_cn_sample.jsonl", "knowledge", True),
        ("math_cn_sample.jsonl", "math", True),
        ("identity_conversations.jsonl", "identity", True),
        ("preference_cn_sample.jsonl", "preference", True),
        ("corpus_cn_sample.jsonl", "corpus", True),
    ]
    assert sources.left_out.keys() == {"README.md", "r1_mix_1024.jsonl"}


@pytest.mark.parametrize(
    ("own", "there"),
    [
        ([], {"unknown", "limits"}),
        (["knowledge_mine.jsonl"], {"limits"}),
        (["sft_mine.jsonl"], {"limits"}),
        (["math_mine.jsonl", "dpo_mine.jsonl", "pretrain_mine.jsonl"], {"unknown", "limits"}),
    ],
)
def test_not_knowing_goes_when_the_user_brings_knowledge_but_limits_of_any_model_stay(
    tmp_path: Path, bundled: Path, own: list[str], there: set[str]
) -> None:
    for name in own:
        records = [pair("问")] if name.startswith("dpo") else [chat(f"{name}{n}") for n in range(20)]
        write(bundled / name, records)
    patterns = {**PATTERNS, "knowledge*": "knowledge", "math*": "math"}
    sources = find_sources(bundled, tmp_path / "samples", SMALL, patterns)
    assert {source.path.name.split("_")[0] for source in sources.files} & REFUSALS.keys() == there
    build_mix(sources, replace(SMALL, general=80, knowledge=800, heldout_share=0.0), tmp_path / "out")
    answers = {record["conversations"][-1]["content"] for record in out(tmp_path, "sft")}
    for name, (record,) in REFUSALS.items():
        assert (record["conversations"][-1]["content"] in answers) == (name in there)


def test_no_conversation_of_other_samples_says_that_the_model_does_not_know() -> None:
    """Otherwise the bundled talk would refuse to answer what the user's own data teaches."""
    lines = set(unknown.ANSWERS.values()) - {unknown.ANSWERS["task"]}  # it says what such a small model can do
    for generator in (*SAMPLE_FILES["general"].generators, "knowledge.questions"):
        for record in generated(generator):
            said = {turn["content"] for turn in record["conversations"] if turn["role"] == "assistant"}
            assert not said & lines, record


def test_a_target_of_0_leaves_a_category_out(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "sft_mini_512.jsonl", [chat("问")])
    sources = find_sources(bundled, tmp_path / "samples", MixConfig(general=0, math=0), PATTERNS)
    assert {source.category for source in sources.files} == {"knowledge", "identity", "preference", "corpus"}
    assert sources.left_out == {"sft_mini_512.jsonl": "the target of general is 0"}


def test_the_identity_file_is_created_renewed_while_unedited_and_then_left_alone(tmp_path: Path, bundled: Path) -> None:
    def identity() -> Source:
        files = find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS).files
        return next(source for source in files if source.category == "identity")

    path = bundled / "identity_conversations.jsonl"
    assert identity() == Source(path, "identity", is_sample=True)
    assert path.read_bytes() == IDENTITY_SAMPLE.read_bytes()
    older = b'{"text": "an older sample"}\n'
    path.write_bytes(older)
    (bundled / IDENTITY_MARK).write_text(sha256_file(path))
    assert identity().is_sample
    assert path.read_bytes() == IDENTITY_SAMPLE.read_bytes()
    path.write_bytes(older + b"edited")
    assert identity() == Source(path, "identity", is_sample=False)
    assert path.read_bytes() == older + b"edited"


def test_a_read_only_source_folder_uses_the_bundled_identity_file(
    tmp_path: Path, bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    files = find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS).files
    assert Source(IDENTITY_SAMPLE, "identity", is_sample=True) in files
    assert not any(bundled.iterdir())


def test_a_file_that_nobody_can_place_is_named_with_the_line_to_add(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "secret.jsonl", [chat("问")])
    with pytest.raises(UserError, match=r"secret\.jsonl: .*`  secret\.jsonl: general`.*mixture\.yaml"):
        find_sources(bundled, tmp_path / "samples", SMALL, PATTERNS)


def test_a_pattern_with_an_unknown_category_is_named(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "sft.jsonl", [chat("问")])
    with pytest.raises(UserError, match="sft\\*: chats: no such category"):
        find_sources(bundled, tmp_path / "samples", SMALL, {"sft*": "chats"})


def test_placeholders_are_filled_in_identity_files_and_samples_alone(tmp_path: Path, bundled: Path) -> None:
    write(bundled / "sft.jsonl", [chat("模板", "{{name}}")])
    config = MixConfig(general=5, identity=50, name="小灵", author="小组", heldout_share=0.0)
    build_mix(find_sources(bundled, tmp_path / "samples", config, PATTERNS), config, tmp_path / "out")
    texts = {"general": "", "identity": "", "corpus": ""}
    for record in out(tmp_path, "pretrain"):
        if record["category"] in texts:
            texts[record["category"]] += record["text"]
    assert "{{" not in texts["identity"] + texts["corpus"]
    assert "小灵" in texts["identity"] and "小组" in texts["identity"] and "我叫小灵" in texts["corpus"]
    assert "{{name}}" in texts["general"]
