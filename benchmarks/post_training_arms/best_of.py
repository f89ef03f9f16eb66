"""Best of n: a model answers each question n times, and a judge picks one of the answers."""

from collections.abc import Sequence
from typing import Any

from dataset.tokenizer import RustBPETokenizer
from evaluation.answers import AnswerRule, Said
from evaluation.intervals import Metric, mean, share
from evaluation.likelihood import row_nats, windows
from evaluation.questions import question_of
from inference.engine import Engine
from inference.sampling import Sampling
from model.heads import RewardModel
from model.model_minillm import MiniLLM

MAX_NEW_TOKENS = 48


def best_of(
    reward: RewardModel,
    policy: MiniLLM,
    tokenizer: RustBPETokenizer,
    records: Sequence[dict[str, Any]],
    names: tuple[str, str],
    *,
    n: int,
    seed: int,
) -> dict[str, Metric]:
    """Accuracies of n answers a question, sampled at temperature 1.

    Args: records: conversations whose last answer has a rule. names: of the model and its author.
    Returns: `sampled`: of all answers. `best`: of the one with the highest reward. `likeliest`: of
    the one with the highest log-probability. `any`: whether one of them is right, which no judge
    can exceed. `gain`: best less sampled, paired by question.
    """
    questions = [question_of(record) for record in records]
    engine = Engine(policy, tokenizer)
    prompts = [tokenizer.render_for_completion(question.messages) for question in questions]
    requests = [
        engine.add(prompt, Sampling(max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, seed=seed + n * number), n)
        for number, prompt in enumerate(prompts)
    ]
    engine.run()
    right: list[list[bool]] = []
    texts: list[list[int]] = []
    masks: list[list[int]] = []
    for question, prompt, samples in zip(questions, prompts, requests, strict=True):
        rule = AnswerRule(question, names)
        right.append([one.finish_reason == "stop" and not rule.broken(Said(one.text)) for one in samples])
        for one in samples:
            answer = [*one.ids, tokenizer.assistant_end_id] if one.finish_reason == "stop" else one.ids
            texts.append([*prompt, *answer])
            masks.append([0] * len(prompt) + [1] * len(answer))
    rewards = reward.score(texts).tolist()
    rows = [next(windows(ids, mask, len(ids))) for ids, mask in zip(texts, masks, strict=True)]
    logps = [-nats for nats, _ in row_nats(policy, rows, 32, "answers")]
    clusters = [question.cluster for question in questions]

    def picked(values: Sequence[float]) -> list[bool]:
        """Whether the answer with the highest value is right, for each question."""
        return [
            outcomes[max(range(n), key=lambda place: values[number * n + place])]
            for number, outcomes in enumerate(right)
        ]

    sampled = [sum(outcomes) / n for outcomes in right]
    best = picked(rewards)
    return {
        "sampled": mean(sampled, clusters),
        "best": share(best, clusters),
        "likeliest": share(picked(logps), clusters),
        "any": share([any(outcomes) for outcomes in right], clusters),
        "gain": mean([float(one) - other for one, other in zip(best, sampled, strict=True)], clusters),
    }
