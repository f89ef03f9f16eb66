"""Computes all metrics of one model: for texts, chats, first prompts, danger and pairs."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from configs.messages import both
from configs.schema import CATEGORIES
from dataset.tokenizer import RustBPETokenizer
from evaluation.answers import REASONING_KINDS, AnswerRule, Rule, Said, is_scored, leaks_name, metric_name, normalize
from evaluation.baselines import Asked, Baselines, TrainingExamples, question_text
from evaluation.danger import DangerPrompt, gives_help_line
from evaluation.first_minutes import Prompt, ask_in_turns, judge
from evaluation.intervals import Metric, share
from evaluation.judges import other_judges, rewards_of_pairs
from evaluation.likelihood import (
    Row,
    Scored,
    Text,
    bits_metric,
    chat_texts,
    likelihood_metrics,
    raw_text,
    score,
    token_bytes,
)
from evaluation.preference import Pair, num_targets, pair_of, pair_rows, preference_metrics, score_pairs
from evaluation.questions import Messages, Question, ask, question_of
from evaluation.reasoning import LastSentenceRule, is_well_formed
from evaluation.reward import reward_metrics
from inference.engine import Answer, Engine
from inference.sampling import Sampling
from model.heads import RewardModel
from model.manifest import WeightsManifest
from model.model_minillm import MiniLLM

GENERAL_ANSWERS = 100
"""How many questions without a rule are asked, to see whether their answers end."""
OPENING_CHARACTERS = 16
"""A pretrained model gets this number of characters of a held-out text, and continues it."""
SHOWN = 3
"""How many answers are printed below the tables."""


@dataclass(frozen=True)
class Verdict:
    """One answer of the model, and what is wrong with it."""

    metric: str
    """Name of the metric that counts this answer; empty if no metric counts it."""
    turns: tuple[str, ...]
    """What the user said."""
    answer: Answer
    expected: tuple[str, ...]
    broken: str
    """The rule that the answer breaks; empty if it is right, or if there is no rule."""
    scored: bool = True
    """Whether there is a rule for this answer."""
    category: str = ""
    topic: str = ""
    """The topic of a question about the model itself; empty for other questions."""
    cluster: Hashable = None
    """Answers of one cluster count as one in an interval (`evaluation/intervals.py`)."""

    def as_json(self) -> dict[str, Any]:
        """A line of `--answers_file`."""
        return {
            "metric": self.metric,
            "turns": list(self.turns),
            "answer": self.answer.text,
            "ended": self.answer.ended,
            "right": not self.broken if self.scored else None,
            "broken": self.broken,
            "expected": list(self.expected),
            "topic": self.topic,
            "cluster": str(self.cluster),
        }


class Sample(NamedTuple):
    """One of the few answers that are printed."""

    label: str
    """`问` for a question, `开头` for a text to continue."""
    given: str
    answer: Answer
    mark: str
    """✓, or ✗ with the expected answer; empty if there is no rule for the answer."""


class Evaluation:
    """Computes the metrics of one model and keeps its answers.

    Args: names: the names of the model and of its author; empty if unknown. settings: the fields of
    `EvalConfig`. length: tokens of one training row. examples: the training examples of the model.
    The baselines use them.
    """

    def __init__(
        self,
        model: MiniLLM,
        tokenizer: RustBPETokenizer,
        names: tuple[str, str],
        settings: dict[str, int],
        length: int,
        examples: TrainingExamples | None = None,
    ) -> None:
        self.model, self.tokenizer, self.names, self.settings, self.length = model, tokenizer, names, settings, length
        self.examples = examples or TrainingExamples(reason="no training data was looked at")
        self.baselines = Baselines(self.examples)
        self.sizes = token_bytes(tokenizer)
        self.verdicts: list[Verdict] = []
        self.samples: list[Sample] = []
        """The few answers that are printed."""
        self.notes: list[str] = []
        """Messages about questions or pairs that were left out."""

    # --- text -------------------------------------------------------------------------------------

    def of_texts(self, records: Sequence[dict[str, Any]]) -> dict[str, Metric]:
        """Loss, perplexity and bits per byte of raw texts.

        Bits per byte are also given separately for prose (`_corpus`) and for the text of chats
        (`_chat`), because chats are much easier to predict.
        """
        prose = [record for record in records if record.get("category") == "corpus"] or records
        self._remember_texts([record["text"][:OPENING_CHARACTERS] for record in prose[:SHOWN]])
        scored = self._score([raw_text(self.tokenizer, record["text"]) for record in records])
        metrics = likelihood_metrics(scored)
        for name, wanted in (("corpus", True), ("chat", False)):
            part = [
                one
                for record, one in zip(records, scored, strict=True)
                if record.get("category") in CATEGORIES and (record["category"] == "corpus") is wanted
            ]
            if part:
                metrics[f"bits_per_byte_{name}"] = bits_metric(part)
        return metrics

    def _score(self, texts: Sequence[Text]) -> list[Scored]:
        return score(self.model, texts, self.sizes, length=self.length, label="likelihood")

    # --- chats ------------------------------------------------------------------------------------

    def of_chats(self, records: Sequence[dict[str, Any]]) -> dict[str, Metric]:
        """How likely the assistant's words are, and how many greedy answers are right."""
        questions = [question_of(record) for record in records]
        texts = [
            text
            for record, question in zip(records, questions, strict=True)
            for text in chat_texts(self.tokenizer, record["conversations"], question.cluster)
        ]
        scored = self._score(texts)
        questions = self._that_fit_a_row(questions)
        # Ask all questions whose answers can be scored. Ask only some of the open-ended questions:
        # their answers only show whether answers end properly.
        open_ended = [question for question in questions if not is_scored(question)][:GENERAL_ANSWERS]
        questions = [question for question in questions if is_scored(question)] + open_ended
        answers = self.ask(
            [question.messages for question in questions], [question.enable_thinking for question in questions]
        )
        return likelihood_metrics(scored) | self.answer_metrics(questions, answers)

    def _that_fit_a_row(self, questions: Sequence[Question]) -> list[Question]:
        """The questions that are short enough, so that an answer still fits into the row.

        Training cuts longer conversations off. So an answer to a longer question does not show what
        the model has learnt.
        """
        lengths = [len(self.tokenizer.render_for_completion(question.messages)) for question in questions]
        fit = [question for question, length in zip(questions, lengths, strict=True) if length < self.length]
        if left_out := len(questions) - len(fit):
            self.notes.append(
                both(
                    f"{left_out} of {len(questions)} questions not asked: no room for an answer within {self.length} tokens "
                    "(training cuts them there)",
                    f"有 {left_out} 个问题太长，没有作答的余地，不计入评测",
                )
            )
        return fit

    def ask(self, conversations: Sequence[Messages], thinking: Sequence[bool | None] = ()) -> list[Answer]:
        """The model's greedy answers. Args: thinking: as in `evaluation.questions.ask`."""
        return ask(
            self.model,
            self.tokenizer,
            conversations,
            batch_size=self.settings["batch_size"],
            max_new_tokens=self.settings["max_new_tokens"],
            thinking=thinking,
        )

    def answer_metrics(self, questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, Metric]:
        """Accuracy of each category and kind with its baselines, and four conditions.

        A condition is a share of answers: those that end, those that say the model's name although
        nobody asked for it, those that say "I don't know" to facts that were taught, and of answers
        with a thought those that are well formed.
        """
        groups: dict[str, list[tuple[Verdict, Asked]]] = defaultdict(list)
        for question, said in zip(questions, answers, strict=True):
            rule, scored = self._rule(question), is_scored(question)
            expected = (question.expected, *question.accepted)
            verdict = Verdict(
                metric=metric_name(question) if scored else "",
                turns=_turns(question.messages),
                answer=said,
                expected=expected,
                broken=rule.broken(Said(said.text)) if scored else "",
                scored=scored,
                category=question.category,
                topic=question.topic,
                cluster=question.cluster,
            )
            self.verdicts.append(verdict)
            if scored:
                asked = Asked(question_text(question.messages), rule, expected, question.cluster)
                groups[verdict.metric].append((verdict, asked))
        self._remember_answers()
        metrics = {name: self._accuracy(group) for name, group in sorted(groups.items())}
        return metrics | self._conditions(questions, answers)

    def _rule(self, question: Question) -> Rule:
        """What makes an answer to a question right."""
        return LastSentenceRule(question) if question.kind in REASONING_KINDS else AnswerRule(question, self.names)

    def _accuracy(self, group: Sequence[tuple[Verdict, Asked]]) -> Metric:
        """The share of right answers, with its baselines, and the same share for each topic."""
        right = [not verdict.broken for verdict, _ in group]
        metric = share(right, [verdict.cluster for verdict, _ in group])
        topics: dict[str, list[bool]] = defaultdict(list)
        for verdict, _ in group:
            if verdict.topic:
                topics[verdict.topic].append(not verdict.broken)
        return replace(
            metric,
            baselines=self.baselines.of([asked for _, asked in group]),
            by_topic={
                topic: {"value": sum(values) / len(values), "n": len(values)}
                for topic, values in sorted(topics.items())
            },
        )

    def _conditions(self, questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, Metric]:
        """Shares that describe the answers, but do not say whether they are right."""
        pairs = list(zip(questions, answers, strict=True))
        name = normalize(self.names[0])
        texts = [said.text for said in answers]
        # Without a name there can be no leak. (An empty name would be found in every answer.)
        leaks = leaks_name(texts, self.names[0]) if name else [False] * len(texts)
        groups = {
            "ended": [(question, said.ended) for question, said in pairs],
            # If the right answer contains the name, saying the name is no leak.
            "name_in_other_answers": [
                (question, leaked)
                for question, leaked in zip(questions, leaks, strict=True)
                if name and question.category != "identity" and name not in normalize(question.expected)
            ],
            # Count only plain facts. For knowledge with a `kind`, such as `unknown`, the right
            # answer may be "I don't know".
            "declined_known_facts": [
                (question, Said(said.text).declines)
                for question, said in pairs
                if question.category == "knowledge" and not question.kind
            ],
            "well_formed": [
                (question, is_well_formed(said, self.tokenizer.chat_format))
                for question, said in pairs
                if question.enable_thinking
            ],
        }
        return {
            name: share([outcome for _, outcome in group], [question.cluster for question, _ in group])
            for name, group in groups.items()
            if group
        }

    # --- first minutes ----------------------------------------------------------------------------

    def of_prompts(self, prompts: Sequence[Prompt]) -> dict[str, Metric]:
        """The metrics of first prompts.

        Returns: `first_minutes` for the list `unseen`, the same for each kind of prompt, and
        `first_minutes_core` for the list `core`.
        """
        answers = ask_in_turns(prompts, self.ask)
        groups: dict[str, list[tuple[Verdict, Asked]]] = defaultdict(list)
        for prompt, said in zip(prompts, answers, strict=True):
            names = ["first_minutes_core"] if prompt.is_core else ["first_minutes", f"first_minutes_{prompt.kind}"]
            verdict = Verdict(
                metric=names[-1],
                turns=prompt.turns,
                answer=said[-1],
                expected=prompt.tried,
                broken=judge(prompt, said),
                category=prompt.kind,
                cluster=prompt.cluster,
            )
            self.verdicts.append(verdict)
            messages = [{"role": "user", "content": turn} for turn in prompt.turns]
            for name in names:
                groups[name].append((verdict, Asked(question_text(messages), prompt, prompt.tried, prompt.cluster)))
        return {name: self._accuracy(group) for name, group in sorted(groups.items())}

    # --- danger -----------------------------------------------------------------------------------

    def of_danger(self, prompts: Sequence[DangerPrompt]) -> dict[str, Metric]:
        """The metrics of prompts about danger.

        Returns: `danger_answered`: how often the model gives help when a life is in danger.
        `help_line_in_harmless`: how often it gives the help line although there is no danger (0 is
        best).
        """
        groups: dict[bool, list[tuple[Verdict, Asked]]] = {True: [], False: []}
        for prompt, said in zip(prompts, ask_in_turns(prompts, self.ask), strict=True):
            name = "danger_answered" if prompt.in_danger else "help_line_in_harmless"
            expected = prompt.tried if prompt.in_danger else ()
            # A person in danger needs a complete answer, so the answer must also end. For a
            # harmless prompt we only look for the help line.
            broken = judge(prompt, said[-1:]) if prompt.in_danger else prompt.broken(Said(said[-1].text))
            verdict = Verdict(
                metric=name,
                turns=prompt.turns,
                answer=said[-1],
                expected=expected,
                broken=broken,
                category="danger",
                cluster=prompt.cluster,
            )
            self.verdicts.append(verdict)
            messages = [{"role": "user", "content": turn} for turn in prompt.turns]
            asked = Asked(question_text(messages), prompt, expected, prompt.cluster)
            groups[prompt.in_danger].append((verdict, asked))
        metrics = {}
        if groups[True]:
            metrics["danger_answered"] = self._accuracy(groups[True])
        if groups[False]:
            given = [gives_help_line(Said(verdict.answer.text)) for verdict, _ in groups[False]]
            metrics["help_line_in_harmless"] = share(given, [verdict.cluster for verdict, _ in groups[False]])
        return metrics

    # --- pairs ------------------------------------------------------------------------------------

    def of_pairs(self, records: Sequence[dict[str, Any]], reference: MiniLLM, beta: float) -> dict[str, Metric]:
        """How often the model favours the chosen answer more than the reference does, and how much.

        Args: reference: the weights that DPO started from. beta: the value that training used.
        Returns: the metrics; empty if training would leave out all pairs.
        """
        pairs, rows = self._pairs(records)
        if not pairs:
            return {}
        policy_scores, reference_scores = (
            score_pairs(model, rows, label=label) for model, label in ((self.model, "policy"), (reference, "reference"))
        )
        return preference_metrics(pairs, policy_scores, reference_scores, beta, self.examples)

    def of_rewards(self, records: Sequence[dict[str, Any]], start: MiniLLM, dpo: Path | None) -> dict[str, Metric]:
        """How often a reward model prefers the chosen answer, beside other judges.

        Args: start: the weights that it started from. dpo: DPO's weights from the same start.
        Returns: the metrics; empty if training would leave out all pairs.
        """
        pairs, rows = self._pairs(records)
        if not pairs:
            return {}
        rewards = rewards_of_pairs(RewardModel(self.model, WeightsManifest()), rows)
        lengths = [(num_targets(chosen), num_targets(rejected)) for chosen, rejected in rows]
        others = other_judges(rows, start, dpo, self.model.device)
        return reward_metrics(pairs, rewards, others, lengths, self.examples)

    def _pairs(self, records: Sequence[dict[str, Any]]) -> tuple[list[Pair], list[tuple[Row, Row]]]:
        """The pairs of some records, without those that training leaves out, and their rows."""
        pairs, rows = [], []
        for record in records:
            pair = pair_of(record)
            if found := pair_rows(self.tokenizer, pair, self.length):
                pairs.append(pair)
                rows.append(found)
        if left_out := len(records) - len(pairs):
            self.notes.append(
                both(
                    f"{left_out} of {len(records)} pairs left out: no answer, or no difference, within {self.length} tokens "
                    "(training leaves them out too)",
                    f"有 {left_out} 对太长或没有区别，不计入评测",
                )
            )
        return pairs, rows

    # --- what is shown ----------------------------------------------------------------------------

    def _remember_texts(self, openings: list[str]) -> None:
        """Let the model continue a few texts, and keep these for printing."""
        prompts = [[self.tokenizer.get_bos_token_id(), *self.tokenizer.encode(text)] for text in openings]
        said = Engine(self.model, self.tokenizer).answers(prompts, Sampling(max_new_tokens=48))
        self.samples = [Sample("开头", opening, one, "") for opening, one in zip(openings, said, strict=True)]

    def _remember_answers(self) -> None:
        """Keep the first answer of each of three categories for printing, right or wrong."""
        self.samples = []  # those of an earlier call are among the verdicts
        seen: set[str] = set()
        for verdict in self.verdicts:
            if verdict.category not in seen and len(seen) < SHOWN:
                seen.add(verdict.category)
                mark = "✓" if verdict.scored else ""
                if verdict.broken:
                    mark = f"✗ ({verdict.expected[0]})"
                self.samples.append(Sample("问", verdict.turns[-1], verdict.answer, mark))


def _turns(messages: Messages) -> tuple[str, ...]:
    """What the user says in a conversation."""
    return tuple(str(message["content"]) for message in messages if message["role"] == "user")
