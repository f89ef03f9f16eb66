"""The metrics of a whole stage, and every answer behind them."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from configs.messages import both
from configs.schema import CATEGORIES
from dataset.tokenizer import RustBPETokenizer
from evaluation.answers import AnswerRule, Said, is_scored, leaks_name, metric_name, normalize
from evaluation.baselines import Asked, Baselines, TrainingExamples, question_text
from evaluation.danger import DangerPrompt, gives_help_line
from evaluation.first_minutes import Prompt, ask_in_turns, judge
from evaluation.intervals import Metric, share
from evaluation.likelihood import Text, bits_metric, chat_text, likelihood_metrics, raw_text, score, token_bytes
from evaluation.preference import pair_of, pair_rows, preference_metrics, score_pairs
from evaluation.questions import Messages, Question, ask, question_of
from inference.generate import Answer, answer
from inference.sampling import Sampling
from model.model_minillm import MiniLLM

GENERAL_ANSWERS = 100
"""Answers generated to everyday talk without an exact measure, to see whether they end."""
OPENING_CHARACTERS = 16
"""Characters of a held-out text that a pretrained model is shown to go on from."""
SHOWN = 3
"""Answers that are printed after a table."""


@dataclass(frozen=True)
class Verdict:
    """One answer and what is wrong with it."""

    metric: str
    turns: tuple[str, ...]
    """What the user said."""
    answer: Answer
    expected: tuple[str, ...]
    broken: str
    """The rule that the answer breaks; empty when it is right or nothing measures it."""
    scored: bool = True
    category: str = ""
    topic: str = ""
    cluster: Hashable = None

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
    """One of the few answers that are shown."""

    label: str
    """`问` of a question, `开头` of a text to continue."""
    given: str
    answer: Answer
    mark: str
    """Whether it is right, and else what was expected; empty where nothing measures it."""


class Evaluation:
    """Takes the metrics of one model, and remembers its answers."""

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
        """A few to show."""
        self.notes: list[str] = []
        """What was left out, and why."""

    # --- text -------------------------------------------------------------------------------------

    def of_texts(self, records: Sequence[dict[str, Any]]) -> dict[str, Metric]:
        """Loss, perplexity and bits per byte of raw texts; the last also of prose and of the text
        of chats apart."""
        prose = [record for record in records if record.get("category") == "corpus"] or records
        self._remember_texts([record["text"][:OPENING_CHARACTERS] for record in prose[:SHOWN]])
        scored = self._score([raw_text(self.tokenizer, record["text"]) for record in records])
        metrics = likelihood_metrics(scored)
        for name, wanted in (("corpus", True), ("chat", False)):
            part = [
                one for record, one in zip(records, scored, strict=True)
                if record.get("category") in CATEGORIES and (record["category"] == "corpus") is wanted
            ]  # fmt: skip
            if part:
                metrics[f"bits_per_byte_{name}"] = bits_metric(part)
        return metrics

    def _score(self, texts: Sequence[Text]) -> Any:
        return score(self.model, texts, self.sizes, length=self.length, label="likelihood")

    # --- chats ------------------------------------------------------------------------------------

    def of_chats(self, records: Sequence[dict[str, Any]]) -> dict[str, Metric]:
        """The same over what the assistant says, and the accuracy of greedy answers."""
        questions = [question_of(record) for record in records]
        scored = self._score([
            chat_text(self.tokenizer, record["conversations"], question.cluster)
            for record, question in zip(records, questions, strict=True)
        ])  # fmt: skip
        questions = self._that_fit_a_row(questions)
        open_ended = [question for question in questions if not is_scored(question)][:GENERAL_ANSWERS]
        questions = [question for question in questions if is_scored(question)] + open_ended
        answers = self.ask([question.messages for question in questions])
        return likelihood_metrics(scored) | self.answer_metrics(questions, answers)

    def _that_fit_a_row(self, questions: Sequence[Question]) -> list[Question]:
        """The questions that leave room for an answer: of longer ones training saw none, and an
        answer to them tells nothing about what was learnt."""
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

    def ask(self, conversations: Sequence[Messages]) -> list[Answer]:
        """The model's greedy answers."""
        return ask(
            self.model, self.tokenizer, conversations,
            batch_size=self.settings["batch_size"], max_new_tokens=self.settings["max_new_tokens"],
        )  # fmt: skip

    def answer_metrics(self, questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, Metric]:
        """Accuracy of each category and kind beside its baselines, and what holds of all answers:
        that they end, do not name the model where nobody asks for it, and do not decline what was
        taught."""
        groups: dict[str, list[tuple[Verdict, Asked]]] = defaultdict(list)
        for question, said in zip(questions, answers, strict=True):
            rule, scored = AnswerRule(question, self.names), is_scored(question)
            expected = (question.expected, *question.accepted)
            verdict = Verdict(
                metric_name(question) if scored else "", _turns(question.messages), said, expected,
                rule.broken(Said(said.text)) if scored else "", scored, question.category, question.topic,
                question.cluster,
            )  # fmt: skip
            self.verdicts.append(verdict)
            if scored:
                asked = Asked(question_text(question.messages), rule, expected, question.cluster)
                groups[verdict.metric].append((verdict, asked))
        self._remember_answers()
        metrics = {name: self._accuracy(group) for name, group in sorted(groups.items())}
        return metrics | self._conditions(questions, answers)

    def _accuracy(self, group: Sequence[tuple[Verdict, Asked]]) -> Metric:
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
        """Shares that no rule is held against."""
        pairs = list(zip(questions, answers, strict=True))
        name = normalize(self.names[0])
        texts = [said.text for said in answers]
        leaks = leaks_name(texts, self.names[0]) if name else [False] * len(texts)
        groups = {
            "ended": [(question, said.ended) for question, said in pairs],
            "name_in_other_answers": [
                (question, leaked)
                for question, leaked in zip(questions, leaks, strict=True)
                if name and question.category != "identity" and name not in normalize(question.expected)
            ],
            "declined_known_facts": [
                (question, Said(said.text).declines)
                for question, said in pairs
                if question.category == "knowledge" and not question.kind
            ],
        }
        return {
            name: share([outcome for _, outcome in group], [question.cluster for question, _ in group])
            for name, group in groups.items()
            if group
        }

    # --- first minutes ----------------------------------------------------------------------------

    def of_prompts(self, prompts: Sequence[Prompt]) -> dict[str, Metric]:
        """`first_minutes` over the list `unseen` and for each of its kinds, and
        `first_minutes_core`."""
        answers = ask_in_turns(prompts, self.ask)
        groups: dict[str, list[tuple[Verdict, Asked]]] = defaultdict(list)
        for prompt, said in zip(prompts, answers, strict=True):
            names = ["first_minutes_core"] if prompt.is_core else ["first_minutes", f"first_minutes_{prompt.kind}"]
            verdict = Verdict(
                names[-1],
                prompt.turns,
                said[-1],
                prompt.tried,
                judge(prompt, said),
                True,
                prompt.kind,
                "",
                prompt.cluster,
            )
            self.verdicts.append(verdict)
            messages = [{"role": "user", "content": turn} for turn in prompt.turns]
            for name in names:
                groups[name].append((verdict, Asked(question_text(messages), prompt, prompt.tried, prompt.cluster)))
        return {name: self._accuracy(group) for name, group in sorted(groups.items())}

    # --- danger -----------------------------------------------------------------------------------

    def of_danger(self, prompts: Sequence[DangerPrompt]) -> dict[str, Metric]:
        """`danger_answered`: how often help is sent where a life is in danger; and
        `help_line_in_harmless`: how often the help line is given where none is (0 is best)."""
        groups: dict[bool, list[tuple[Verdict, Asked]]] = {True: [], False: []}
        for prompt, said in zip(prompts, ask_in_turns(prompts, self.ask), strict=True):
            name = "danger_answered" if prompt.in_danger else "help_line_in_harmless"
            expected = prompt.tried if prompt.in_danger else ()
            # Of one in danger the answer must be whole; a harmless one has no right answer of its own.
            broken = judge(prompt, said[-1:]) if prompt.in_danger else prompt.broken(Said(said[-1].text))
            verdict = Verdict(
                name, prompt.turns, said[-1], expected, broken, category="danger", cluster=prompt.cluster
            )  # fmt: skip
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
        """How often the better answer of a pair is preferred over the reference's taste, and by how
        much; nothing where training would leave all pairs out."""
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
        if not pairs:
            return {}
        policy_scores, reference_scores = (
            score_pairs(model, rows, label=label) for model, label in ((self.model, "policy"), (reference, "reference"))
        )
        return preference_metrics(pairs, policy_scores, reference_scores, beta, self.examples)

    # --- what is shown ----------------------------------------------------------------------------

    def _remember_texts(self, openings: list[str]) -> None:
        prompts = [[self.tokenizer.get_bos_token_id(), *self.tokenizer.encode(text)] for text in openings]
        said = answer(self.model, self.tokenizer, prompts, Sampling(max_new_tokens=48))
        self.samples = [Sample("开头", opening, one, "") for opening, one in zip(openings, said, strict=True)]

    def _remember_answers(self) -> None:
        """One answer of each of three categories, right or wrong as it comes."""
        seen: set[str] = set()
        for verdict in self.verdicts:
            if verdict.category not in seen and len(seen) < SHOWN:
                seen.add(verdict.category)
                mark = f"✗ ({verdict.expected[0]})" if verdict.broken else "✓" if verdict.scored else ""
                self.samples.append(Sample("问", verdict.turns[-1], verdict.answer, mark))


def _turns(messages: Messages) -> tuple[str, ...]:
    return tuple(str(message["content"]) for message in messages if message["role"] == "user")
