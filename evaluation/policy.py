"""How well a policy answers held-out prompts: greedily, and as it is sampled while it learns."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluation.answers import Key, Said
from evaluation.baselines import Asked, question_text
from evaluation.intervals import Metric, mean, share
from evaluation.questions import question_of
from evaluation.rules import Rule, rule_of
from evaluation.stage import Evaluation, Verdict
from inference.engine import Answer, Engine
from inference.sampling import Sampling

SAMPLES = 4
"""Answers that are sampled to each prompt."""


@dataclass(frozen=True)
class PromptRule:
    """The rule of a prompt, in the form in which baselines ask for it."""

    rule: Rule
    keys: Collection[Key] = ()
    has_more: bool = True

    def broken(self, said: Said) -> str:
        """What is wrong with an answer; empty if it is right."""
        return self.rule.broken(said.text)


def prompt_metrics(
    evaluation: Evaluation, records: Sequence[dict[str, Any]], *, max_new_tokens: int, temperature: float, seed: int
) -> dict[str, Metric]:
    """Shares of right answers to prompts, by their rules (evaluation/rules.py).

    An answer that was cut off at the limit is wrong, as it is for a reward.
    Args: max_new_tokens, temperature: of the training.
    Returns: `accuracy_prompts` of greedy answers, with baselines; `accuracy_sampled` of SAMPLES
    answers to each prompt; `well_formed_prompts` and `ended_prompts` of the greedy ones.
    """
    questions = [question_of(record) for record in records]
    rules = [PromptRule(rule_of(record)) for record in records]
    clusters: list[Hashable] = [question.cluster for question in questions]
    prompts = [evaluation.tokenizer.render_for_completion(question.messages) for question in questions]
    greedy = Sampling(max_new_tokens=max_new_tokens)
    said = [answers[0] for answers in _answers(evaluation, prompts, greedy, 1)]
    right = []
    for question, rule, answer in zip(questions, rules, said, strict=True):
        broken = rule.broken(Said(answer.text)) if answer.ended else "cut off"
        right.append(not broken)
        turns = tuple(str(message["content"]) for message in question.messages if message["role"] == "user")
        verdict = Verdict(
            metric="accuracy_prompts",
            turns=turns,
            answer=answer,
            expected=(question.expected,),
            broken=broken,
            category=question.category,
            cluster=question.cluster,
        )
        evaluation.verdicts.append(verdict)
    asked = [
        Asked(question_text(question.messages), rule, (question.expected,), question.cluster)
        for question, rule in zip(questions, rules, strict=True)
    ]
    sampling = replace(greedy, temperature=temperature, seed=seed)
    shares = [
        sum(one.ended and not rule.broken(Said(one.text)) for one in answers) / len(answers)
        for rule, answers in zip(rules, _answers(evaluation, prompts, sampling, SAMPLES), strict=True)
    ]
    formed = [rule.rule.well_formed(answer.text) for rule, answer in zip(rules, said, strict=True)]
    return {
        "accuracy_prompts": replace(share(right, clusters), baselines=evaluation.baselines.of(asked)),
        "accuracy_sampled": mean(shares, clusters),
        "well_formed_prompts": share(formed, clusters),
        "ended_prompts": share([answer.ended for answer in said], clusters),
    }


def _answers(
    evaluation: Evaluation, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int
) -> list[list[Answer]]:
    """n answers to each prompt, without their thoughts."""
    engine = Engine(evaluation.model, evaluation.tokenizer, max_batch_size=evaluation.settings["batch_size"])
    seeds = range(sampling.seed, sampling.seed + n * len(prompts), n)
    requests = [
        engine.add(prompt, replace(sampling, seed=seed), n) for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    engine.run()
    answer_of = evaluation.tokenizer.chat_format.answer_of
    return [
        [Answer(answer_of(one.text), one.finish_reason == "stop", len(one.ids)) for one in group] for group in requests
    ]
