"""benchmarks/exam_parity.py: same decisions pass, another one fails, a tie may go either way."""

from benchmarks.exam_parity import PAIRINGS, YAML_DIR, Key, compare, sample_of

PAIRING = next(pairing for pairing in PAIRINGS if pairing.yaml == "zhoblimp")
KEY: Key = ("", ("好句子。", "坏句子。"))


def test_each_pairing_has_its_yaml_file() -> None:
    for pairing in PAIRINGS:
        assert f"task: minillm_{pairing.yaml}\n" in (YAML_DIR / f"{pairing.yaml}.yaml").read_text(encoding="utf-8")


def test_a_decision_that_differs_is_a_failure_unless_it_is_a_tie() -> None:
    assert compare(PAIRING, [(KEY, [-1.0, -2.0])], {KEY: [-1.0, -2.00001]})["ok"]
    assert not compare(PAIRING, [(KEY, [-1.0, -2.0])], {KEY: [-2.0, -1.0]})["ok"]
    tie = compare(PAIRING, [(KEY, [-1.0, -1.00001])], {KEY: [-1.00001, -1.0]})
    assert tie["ok"]
    assert tie["acc_pair_sum"] == {"same": 0, "ties": 1, "different": 0}


def test_another_prompt_is_a_failure() -> None:
    assert not compare(PAIRING, [(("x", KEY[1]), [-1.0, -2.0])], {KEY: [-1.0, -2.0]})["ok"]


def test_a_logged_sample_gives_prompt_and_likelihoods() -> None:
    asked = {"gen_args_0": {"arg_0": "c", "arg_1": "a"}, "gen_args_1": {"arg_0": "c", "arg_1": "b"}}
    sample = {"arguments": asked, "resps": [[("-1.5", "True")], [("-2.5", "False")]]}
    assert sample_of(sample) == (("c", ("a", "b")), [-1.5, -2.5])
