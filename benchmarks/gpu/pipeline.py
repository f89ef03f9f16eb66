"""The part `pipeline` of `on_gpu.py`: the whole run on the bundled data, and a talk with the model.

With --tiny the shapes are those of the profile `smoke`, so that a CPU can walk through all of it.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

from benchmarks.gpu.checks import OK, Check, CheckFailed, Ended, Row, no_figures
from benchmarks.gpu.session import Part, Rows, Session
from configs.paths import ROOT, latest_weights
from configs.stage_table import STAGE_TABLE, STAGES
from evaluation.results import read_results

ASK_SECONDS = 60
TALKS = (
    ("你好！", "你是谁？", "谁开发了你？", "你能做什么？"),
    ("法国的首都是哪里？", "一年有几个月？", "17+25等于多少？", "小明有8个苹果，吃了3个，还剩几个？"),
    ("今天心情不太好。", "给我讲一个小故事。", "你喜欢什么颜色？", "谢谢你，再见！"),
)
"""Three conversations of four turns, such as people type when they try a model."""


def pipeline(session: Session) -> None:
    """All that `run.sh` does after making the environment, and a talk with the result."""
    base = session.folder("run")
    own_flags = f"--device {session.device}" + (" --dtype auto" if session.tiny else "")
    folders = {"DATA_DIR": "data", "OUT_DIR": "out", "TF_DIR": "tf_dir"}
    environment = {name: str(base / folder) for name, folder in folders.items()}
    environment |= {f"{stage.upper()}_ARGS": own_flags for stage in STAGES}

    def check(name: str, words: Sequence[str], limit: float, read: Callable[[Ended], Row] = no_figures) -> Check:
        return Check(name=name, command=[sys.executable, *words], limit=limit, read=read, environment=environment)

    def planned(stage: str, step: str = "") -> list[str]:
        """The command that `run.sh` would start."""
        book = [sys.executable, str(ROOT / "scripts" / "pipeline" / "ask.py")]
        book += ["--profile", "smoke" if session.tiny else "default"]
        ask(*book, "begin", stage, environment=session.environment() | environment)
        return ask(*book, "command", stage, *([step] if step else []), environment=session.environment() | environment)

    (base / "no_sources").mkdir(parents=True)
    mix = [*planned("mix"), "--source_dir", str(base / "no_sources")]
    well = all_ok(session.run([check("mix", mix, 60)]))
    if well:
        exports = [check(f"export {stage}", planned("export", stage), 60) for stage in STAGES]
        well = all_ok(session.run(exports, session.at_once))
    evaluations = []
    for stage in STAGES:
        if not well:
            session.skip(f"train {stage}", "a step before it did not come to its end")
            continue
        training = check(f"train {stage}", planned(stage, "train"), 90, partial(of_stage, base, stage))
        well = all_ok(session.run([training]))
        if not well:
            continue
        judge = [*planned(stage, "evaluate"), *(["--max_samples", "8"] if session.tiny else [])]
        evaluations.append(check(f"evaluate {stage}", judge, 90, partial(of_evaluation, base, stage)))
        if stage != "pretrain":
            path = latest_weights(STAGE_TABLE[stage].weights, base / "out")
            session.run([talk_check(session, f"talk after {stage}", path)])
    session.run(evaluations, session.at_once)


def ask(*command: str, environment: Mapping[str, str]) -> list[str]:
    """The lines that a quick command prints. Raises: CheckFailed where it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=ASK_SECONDS, check=False
    )
    if done.returncode:
        raise CheckFailed(f"{' '.join(command[1:])}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def talk_check(session: Session, name: str, path: Path) -> Check:
    """The conversations, typed into `eval_model.py`."""
    words = ["--weight", str(path), "--device", session.device, "--temperature", "0"]
    words += ["--max_new_tokens", "16" if session.tiny else "128"]
    typed = "/new\n".join("".join(f"{turn}\n" for turn in turns) for turns in TALKS)
    command = [sys.executable, str(ROOT / "eval_model.py"), *words]
    return Check(name=name, command=command, limit=60, read=of_talk, stdin=typed)


def all_ok(rows: Sequence[Row]) -> bool:
    return all(row["status"] == OK for row in rows)


def of_stage(base: Path, stage: str, ended: Ended) -> Row:
    """What a trainer's last line of metrics says."""
    lines = [
        json.loads(line)
        for path in (base / "tf_dir" / "metrics").glob(f"{stage}_*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    last = [line for line in lines if "loss" in line][-1]
    validations = [line["validation_loss"] for line in lines if "validation_loss" in line]
    chose = next((line.strip() for line in ended.err.splitlines() if line.startswith(f"{stage}: ")), "")
    return {
        "steps": last["step"],
        "tokens": round(last["tokens"]),
        "last_loss": round(last["loss"], 4),
        "validation_losses": [round(loss, 4) for loss in validations],
        "chose": chose,
    }


def of_evaluation(base: Path, stage: str, ended: Ended) -> Row:
    """The scores, as they stand in the results file."""
    lines = list(read_results(base / "tf_dir" / "eval_results.jsonl", smoke=True))
    metrics = next(line["metrics"] for line in reversed(lines) if line["stage"] == stage)
    return {"scores": {name: round(metric["value"], 4) for name, metric in metrics.items()}}


def of_talk(ended: Ended) -> Row:
    """Questions and answers. Raises: CheckFailed where an answer is missing."""
    answers = [part.strip() for part in re.split(r"(?:^|\n)(?:你: )+模型: ", ended.out)[1:]]
    if answers:  # behind the last one stands the question that the end of the input left open
        answers[-1] = answers[-1].removesuffix("你:").strip()
    questions = [question for turns in TALKS for question in turns]
    talk = [list(pair) for pair in zip_longest(questions, answers, fillvalue="")]
    if len(answers) != len(questions):
        raise CheckFailed(f"{len(answers)} answers to {len(questions)} questions", {"talk": talk})
    return {"talk": talk}


def pipeline_result(rows: Rows) -> str:
    seconds = sum(row["seconds"] for name, row in rows.items() if not name.startswith("evaluate"))
    words = [f"{seconds:.0f} s from the mix to DPO, talks included"]
    for stage in ("sft", "dpo"):
        scores = rows.get(f"evaluate {stage}", {}).get("scores", {})
        shown = [f"{name.removeprefix('accuracy_')} {value:.1%}" for name, value in scores.items() if is_share(name)]
        words += [f"after {stage}: {', '.join(shown)}"] if shown else []
    return "; ".join(words)


def is_share(name: str) -> bool:
    return name.startswith("accuracy_") or name in ("first_minutes", "ended", "preference_accuracy")


def pipeline_details(rows: Rows) -> list[str]:
    lines = []
    for name, row in rows.items():
        if row.get("talk"):
            lines += [
                f"{name}:",
                "",
                *(f"- {asked} → {said.splitlines()[0] if said else '(nothing)'}" for asked, said in row["talk"]),
                "",
            ]
        if row.get("scores"):
            lines += [f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in row["scores"].items()), ""]
    return lines


PIPELINE = Part(
    "pipeline", "the whole run on the bundled data 自带数据全流程", 200, pipeline, pipeline_result, pipeline_details
)
