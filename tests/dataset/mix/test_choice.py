"""How many records of each category are taken: targets, repetitions, samples beside user files."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema import MixConfig
from dataset.mix.build import build_mix
from dataset.mix.sources import Source, Sources, find_sources
from tests.dataset.mix.small_mix import PATTERNS, SMALL, XIAOZHI, chat, mixed, out, write


def test_too_few_records_are_repeated_in_whole_rounds_and_a_remainder_up_to_the_target(tmp_path: Path) -> None:
    manifest = mixed(tmp_path, {"a.jsonl": ("general", [chat(f"问{n}") for n in range(20)])})
    times = Counter(record["origin"] for record in out(tmp_path, "sft"))
    assert times.total() == 40
    assert set(times.values()) == {2, 3}
    assert manifest["sources"][0]["repetition"] == 2.2222
    assert len(out(tmp_path, "pretrain")) == len(times) == 18


def test_no_more_rounds_than_allowed_but_identity_follows_its_target(tmp_path: Path) -> None:
    config = MixConfig(general=40, identity=100, max_rounds=3, heldout_share=0.0)
    manifest = mixed(
        tmp_path,
        {
            "a.jsonl": ("general", [chat(f"问{n}") for n in range(5)]),
            "b.jsonl": ("identity", [chat("你是谁？"), chat("叫什么？")]),
        },
        config,
    )
    reached = {name: (tally["asked"], tally["reached"]) for name, tally in manifest["categories"].items()}
    assert reached == {"general": (40, 15), "identity": (100, 100)}


def test_each_identity_file_has_the_target_for_itself(tmp_path: Path) -> None:
    files = {f"{name}.jsonl": ("identity", [chat(f"{name}{n}") for n in range(9)]) for name in "ab"}
    mixed(tmp_path, files)
    assert Counter(record["source"] for record in out(tmp_path, "sft")) == {"a.jsonl": 20, "b.jsonl": 20}


def test_too_many_records_are_sampled_to_the_exact_target(tmp_path: Path) -> None:
    manifest = mixed(tmp_path, {"a.jsonl": ("general", [chat(f"问{n}") for n in range(200)])})
    assert len({record["origin"] for record in out(tmp_path, "sft")}) == len(out(tmp_path, "sft")) == 40
    assert len(out(tmp_path, "pretrain")) == 40
    source = manifest["sources"][0]
    assert source["kept"] == 40
    assert source["read"] == 200 == source["kept"] + source["heldout"] + source["dropped"]["not sampled"]


def test_all_raw_text_is_taken_unless_a_target_is_given(tmp_path: Path) -> None:
    files = {"a.jsonl": ("corpus", [{"text": f"第{n}段。"} for n in range(30)])}
    mixed(tmp_path, files)
    everything = len(out(tmp_path, "pretrain"))
    mixed(tmp_path, files, MixConfig(corpus=7, heldout_min=2))
    assert (everything, len(out(tmp_path, "pretrain"))) == (28, 7)


def test_samples_alone_shrink_all_targets_by_one_factor_but_none_below_what_there_is(
    tmp_path: Path, bundled: Path
) -> None:
    config = MixConfig(general=800, knowledge=1000, math=100, identity=300, preference=200, heldout_min=2, max_rounds=5)
    sources = find_sources(bundled, tmp_path / "samples", config, PATTERNS)
    manifest = build_mix(sources, config, tmp_path / "out")
    factor = 18 * 5 / 800  # 18 of the 20 general samples are trained on
    assert manifest["sample_factor"] == factor
    reached = {name: tally["reached"] for name, tally in manifest["categories"].items()}
    assert reached == {"general": 90, "knowledge": 112, "math": 95, "identity": 300, "preference": 95, "corpus": 9}
    config = replace(config, knowledge=4000, identity=100)
    tallies = build_mix(sources, config, tmp_path / "out")["categories"]
    assert tallies["knowledge"]["reached"] == 4000 * factor  # more than there are, so they are repeated
    assert tallies["identity"]["reached"] == 100  # fewer than there are, as the target says


@pytest.mark.parametrize("own", ["identity_mine.jsonl", "math_mine.jsonl", "sft_mine.jsonl"])
def test_one_small_file_changes_nothing_about_the_repetition_of_other_categories(
    tmp_path: Path, bundled: Path, own: str
) -> None:
    config = MixConfig(
        general=800, knowledge=4000, math=100, identity=300, preference=900, heldout_share=0.0, max_rounds=5
    )
    patterns = {**PATTERNS, "math*": "math"}

    def repetitions() -> dict[str, float]:
        sources = find_sources(bundled, tmp_path / "samples", config, patterns)
        return {name: t["repetition"] for name, t in build_mix(sources, config, tmp_path / "out")["categories"].items()}

    alone = repetitions()
    write(bundled / own, XIAOZHI[:10])
    beside = repetitions()
    mine = {"identity": "identity", "math": "math", "sft": "general"}[own.split("_")[0]]
    assert {name: value for name, value in alone.items() if name != mine} == pytest.approx(
        {name: value for name, value in beside.items() if name != mine}, rel=0.02
    )


@pytest.mark.parametrize(
    ("mine", "target", "taken"), [(40, 100, 40), (40, 41, 37), (40, 20, 18), (95, 100, 90), (200, 100, 90)]
)
def test_bundled_samples_of_a_category_do_not_push_out_the_user_s_records(
    tmp_path: Path, mine: int, target: int, taken: int
) -> None:
    own = write(tmp_path / "a.jsonl", [chat(f"我{n}") for n in range(mine)])
    sample = write(tmp_path / "limits.jsonl", [chat(f"限{n}") for n in range(500)])
    config = MixConfig(general=target, heldout_share=0.0)
    build_mix(
        Sources([Source(own, "general"), Source(sample, "general", is_sample=True)], {}), config, tmp_path / "out"
    )
    assert Counter(record["source"] for record in out(tmp_path, "sft")) == {
        "a.jsonl": taken,
        "limits.jsonl": target - taken,
    }


def test_a_category_with_files_of_the_user_s_keeps_its_target(tmp_path: Path, bundled: Path) -> None:
    config = replace(SMALL, general=100, knowledge=4000, max_rounds=8)
    write(bundled / "sft_mini_512.jsonl", [chat(f"问{n}") for n in range(60)])
    manifest = build_mix(find_sources(bundled, tmp_path / "samples", config, PATTERNS), config, tmp_path / "out")
    assert manifest["sample_factor"] < 1.0
    assert manifest["categories"]["general"]["asked"] == manifest["categories"]["general"]["reached"] == 100
