"""What the weights of a run say: twelve prompts after each stage, and held-out questions.

The report asks the weights itself, with the engine that chats. Answers are kept in
`OUT_DIR/report_answers.json` under the fingerprint of all that they depend on, so a report that is
written again asks nothing and has the same bytes.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from configs.artifacts import fingerprint, sha256_file, write_json
from configs.schema import MixConfig, UserError
from configs.stage_table import continues_text, heldout_file
from dataset.records.files import read_records
from dataset.records.keys import split_of
from evaluation.answers import AnswerRule, Said, is_scored, metric_name
from evaluation.baselines import NearestText, question_text, training_examples
from evaluation.provenance import mixture_of, names_of
from evaluation.questions import Question, ask, question_of
from evaluation.run_report.curves import rounded
from evaluation.run_report.facts import Facts, RunFolders, weights_of
from inference.engine import Answer, Engine
from inference.loading import OpenModel, open_model
from inference.sampling import Sampling
from model.device import choose_device

PROMPTS = (
    "你是谁？", "你好呀", "你能做什么？", "中国的首都是哪里？", "水的化学式是什么？", "李白是哪个朝代的人？", "37+45等于多少？",
    "小明有8个苹果，吃了3个，还剩几个？", "我今天心情不好", "给我讲个笑话", "明天会下雨吗？", "请介绍一下长城",
)  # fmt: skip
"""What is asked after each stage: the model itself, talk, facts, sums, and what it can't know."""
KEPT_FILE = "report_answers.json"
VERSION = 1
"""Of this page's questions and rules. Raise it when kept answers should be asked anew."""
MAX_NEW_TOKENS = 96
PER_METRIC = 12
"""Most held-out questions of each metric that are asked."""
SHOWN = 6
"""Best and worst held-out answers that are shown, of each."""
SEED = 20


class AnswerBook:
    """The answers that were kept, by fingerprint. New ones are added and written at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = {}
        self.kept: dict[str, Any] = content if isinstance(content, dict) else {}
        self.used: dict[str, Any] = {}

    def get(self, depends_on: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """What was kept under this fingerprint, else what `make` gives."""
        key = fingerprint({"version": VERSION, **depends_on})
        self.used[key] = self.kept[key] if key in self.kept else make()
        return self.used[key]

    def save(self) -> None:
        """Write the answers that this report shows. Those of earlier weights are dropped."""
        if self.used != self.kept:
            write_json(self.path, self.used)


def read_answers(folders: RunFolders, facts: Facts) -> Facts:
    """Answers to PROMPTS by stage, and the best and worst held-out answers of the last chat stage.

    Weights that can't be opened are left out, with the reason.
    """
    book = AnswerBook(folders.out / KEPT_FILE)
    columns: dict[str, list[Facts]] = {}
    missing: dict[str, str] = {}
    for stage in asked_stages(facts):
        sha256 = facts["stages"][stage]["weights"]["sha256"]
        try:
            columns[stage] = book.get(
                {"weights": sha256, "prompts": PROMPTS, "max_new_tokens": MAX_NEW_TOKENS},
                partial(say_of, folders, stage),
            )
        except UserError as error:
            missing[stage] = str(error)
    judged: Facts = {}
    chats = [stage for stage in columns if stage in ("sft", "dpo")]
    heldout = folders.data / heldout_file("conversations")
    if chats and heldout.is_file():
        stage = chats[-1]
        depends_on = {
            "weights": facts["stages"][stage]["weights"]["sha256"],
            "heldout": sha256_file(heldout),
            "per_metric": PER_METRIC,
        }
        try:
            judged = book.get(depends_on, lambda: judge_heldout(opened(folders, stage), stage, heldout))
        except UserError as error:
            missing["heldout"] = str(error)
    book.save()
    return {"prompts": list(PROMPTS), "columns": columns, "missing": missing, "heldout": judged}


def asked_stages(facts: Facts) -> list[str]:
    """Stages whose weights are asked: all that write text, but an adapter, which is no whole
    model."""
    return [
        stage for stage, one in facts["stages"].items() if one["weights"] and one["talks"] and one["weights"]["shape"]
    ]


def opened(folders: RunFolders, stage: str) -> OpenModel:
    """The weights of a stage. Raises: UserError."""
    path = weights_of(folders.out, stage)
    assert path is not None, f"stage {stage} has no weights"
    return open_model(path, device=choose_device("auto"))


def say_of(folders: RunFolders, stage: str) -> list[Facts]:
    """The answers of a stage's weights to PROMPTS. Raises: UserError."""
    return say(opened(folders, stage), stage)


def say(checkpoint: OpenModel, stage: str) -> list[Facts]:
    """The greedy answer to each of PROMPTS; of a pretrained model, how it continues the text."""
    if continues_text(stage):
        tokenizer = checkpoint.tokenizer
        prompts = [[tokenizer.get_bos_token_id(), *tokenizer.encode(text)] for text in PROMPTS]
        answers = Engine(checkpoint.model, tokenizer).answers(prompts, Sampling(max_new_tokens=MAX_NEW_TOKENS // 2))
    else:
        answers = ask(
            checkpoint.model,
            checkpoint.tokenizer,
            [[{"role": "user", "content": text}] for text in PROMPTS],
            batch_size=len(PROMPTS),
            max_new_tokens=MAX_NEW_TOKENS,
            label=f"report {stage}",
        )
    return [_plain(answer) for answer in answers]


def _plain(answer: Answer) -> Facts:
    return {"text": answer.text.strip(), "ended": answer.ended}


# --- held-out questions ---------------------------------------------------------------------------


def judge_heldout(checkpoint: OpenModel, stage: str, heldout: Path) -> Facts:
    """Ask a sample of the held-out questions, and take the best and the worst answers.

    Best: right answers to questions that are least like any training question. Worst: wrong answers
    to questions that are most like one; the training question and its answer stand beside them.
    """
    questions = sampled(heldout)
    if not questions:
        return {}
    sources = checkpoint.manifest.training_data
    default = MixConfig()
    names = names_of(mixture_of(heldout.parent, sources), (default.name, default.author))
    answers = ask(
        checkpoint.model,
        checkpoint.tokenizer,
        [question.messages for question in questions],
        batch_size=64,
        max_new_tokens=MAX_NEW_TOKENS,
        label="report heldout",
        thinking=[question.enable_thinking for question in questions],
    )
    examples = training_examples(sources, SEED)
    if examples.questions:
        numbers, cosines = NearestText(examples.questions).find([question_text(one.messages) for one in questions])
    rows: list[Facts] = []
    for place, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        row: Facts = {
            "metric": metric_name(question),
            "turns": [str(one["content"]) for one in question.messages if one["role"] == "user"],
            "answer": _plain(answer),
            "expected": question.expected,
            "right": not AnswerRule(question, names).broken(Said(answer.text)),
            "likeness": 0.0,
            "nearest": None,
        }
        if examples.questions:
            row["likeness"] = rounded(float(cosines[place]))
            nearest = examples.questions[numbers[place]].replace("\x01", " / ")
            row["nearest"] = {"question": nearest, "answer": examples.answers[numbers[place]]}
        rows.append(row)
    right = sorted((row for row in rows if row["right"]), key=lambda row: row["likeness"])
    wrong = sorted((row for row in rows if not row["right"]), key=lambda row: -row["likeness"])
    return {
        "stage": stage,
        "asked": len(rows),
        "right": len(right),
        "reason": examples.reason,
        "best": spread(right),
        "worst": spread(wrong),
    }


def sampled(heldout: Path) -> list[Question]:
    """Up to PER_METRIC questions of each metric that have a rule, of the half `test`."""
    groups: dict[str, list[Question]] = defaultdict(list)
    records = [record for record in read_records(heldout) if record.get("conversations")]
    has_test = any(split_of(record) == "test" for record in records)
    for record in records:
        if not has_test or split_of(record) == "test":
            question = question_of(record)
            if is_scored(question) and question.messages:
                groups[metric_name(question)].append(question)
    choose = random.Random(SEED)
    return [
        question
        for _, group in sorted(groups.items())
        for question in choose.sample(group, min(PER_METRIC, len(group)))
    ]


def spread(rows: Sequence[Facts]) -> list[Facts]:
    """The first rows, no metric more than once while others are left."""
    taken: list[Facts] = []
    left = list(rows)
    while left and len(taken) < SHOWN:
        seen: set[str] = set()
        later = []
        for row in left:
            if row["metric"] in seen or len(taken) >= SHOWN:
                later.append(row)
            else:
                seen.add(row["metric"])
                taken.append(row)
        left = later
    return taken
