"""The flags of sampling: one for each field, read into it."""

from dataclasses import fields

import pytest

from configs.cli import Parser
from configs.schema import UserError
from inference.sampling import Sampling
from inference.sampling_flags import FLAGS, add_sampling_flags, sampling_of

NONSENSE = (
    ["--temperature", "nan"], ["--top_k", "-1"], ["--min_p", "1"], ["--repetition_penalty", "0"],
    ["--presence_penalty", "3"], ["--frequency_penalty", "inf"], ["--no_repeat_ngram_size", "-1"], ["--stop", ""],
    ["--stop_token_ids", "-1"], ["--logit_bias", "7:nan"], ["--logit_bias", "7:101"], ["--seed", "-1"],
)  # fmt: skip


def read(*words: str) -> Sampling:
    """What these flags ask for."""
    parser = Parser()
    add_sampling_flags(parser)
    return sampling_of(parser.parse_args(words))


def test_each_field_has_a_flag() -> None:
    names = {field.name for field in fields(Sampling)} - {"logprobs"}
    assert names <= set(FLAGS)


def test_without_flags_an_answer_is_greedy() -> None:
    assert read() == Sampling(max_new_tokens=512, top_p=0.9)


def test_every_flag_reaches_its_field() -> None:
    words = (
        "--max_new_tokens 9 --temperature 0.7 --top_k 5 --top_p 0.8 --min_p 0.1 --repetition_penalty 1.2 --presence_penalty "
        "-0.5 --frequency_penalty 0.25 --no_repeat_ngram_size 3 --stop 。 --stop -完 --stop_token_ids 5 6 --logit_bias "
        "7:-100 8:2.5 --seed 4"
    )
    assert read(*words.split()) == Sampling(
        max_new_tokens=9,
        temperature=0.7,
        top_k=5,
        top_p=0.8,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        no_repeat_ngram_size=3,
        stop=("。", "-完"),
        stop_token_ids=(5, 6),
        logit_bias=((7, -100.0), (8, 2.5)),
        seed=4,
    )


@pytest.mark.parametrize("bias", ["7", "7:", ":1", "x:1", "7:x", "7:1:1"])
def test_a_bias_without_its_form_is_wrong_usage(bias: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--logit_bias", bias)
    assert stop.value.code == 2 and "ID:BIAS" in capsys.readouterr().err


@pytest.mark.parametrize("words", NONSENSE)
def test_nonsense_is_refused_in_one_line(words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        read(*words)
    assert words[0].removeprefix("--") in refused.value.line and "\n" not in refused.value.line
