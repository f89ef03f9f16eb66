"""The set lora_medical: a disclaimer in each answer, held-out wordings, nothing that the mix asks."""

from collections import Counter

from dataset.records.keys import normalised_question
from dataset.samples.adapters import medical
from dataset.samples.exam import unseen
from dataset.samples.files import SAMPLE_FILES
from dataset.samples.generators import generated

RECORDS = list(medical.records())
QUESTIONS = [normalised_question(record["conversations"][0]["content"]) for record in RECORDS]


def test_each_answer_ends_in_the_disclaimer_and_is_short_enough_for_a_small_model() -> None:
    for record in RECORDS:
        question, answer = (turn["content"] for turn in record["conversations"])
        assert answer.endswith("以上仅供参考，不舒服请看医生。") and len(answer) <= 45
        assert not any(mark in question for mark in "(|)")
        assert record["category"] == "knowledge" and record["kind"] == "medical"


def test_one_complaint_has_one_answer_and_wordings_on_each_side() -> None:
    answers = {(record["complaint"], record["conversations"][1]["content"]) for record in RECORDS}
    assert len({complaint for complaint, _ in answers}) == len(answers) >= 40
    sides = Counter((record["complaint"], record.get("split", "training")) for record in RECORDS)
    for complaint in {record["complaint"] for record in RECORDS}:
        assert sides[complaint, "training"] >= 8
        assert sides[complaint, "validation"] >= 2 and sides[complaint, "test"] >= 3


def test_no_question_is_asked_twice_and_none_is_of_an_exam() -> None:
    assert max(Counter(QUESTIONS).values()) == 1
    assert not any(unseen().asks([record["conversations"][0]["content"]]) for record in RECORDS)


def test_the_mix_answers_none_of_its_questions() -> None:
    chats = [
        name for file in SAMPLE_FILES.values() if file.category in {"general", "knowledge"} for name in file.generators
    ]
    mixed = {
        normalised_question(turn["content"])
        for name in chats
        for record in generated(name)
        for turn in record["conversations"]
        if turn["role"] == "user"
    }
    assert not mixed & set(QUESTIONS)
