"""The commands that the parts of `on_gpu.py` are made of, and how their results are read.

With --tiny the shapes are those of the profile `smoke`, so that a CPU can walk through them.
"""

import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.gpu.checks import Check, CheckFailed, Ended, Row
from benchmarks.gpu.data import Recipe, tensors
from benchmarks.gpu.session import Session
from configs.paths import ROOT, TOKENIZER_DIR, latest_weights
from configs.schema import UserError
from configs.stage_table import STAGE_TABLE

PROBES = str(ROOT / "benchmarks" / "gpu" / "probes.py")
STEP_TOKENS = 32_768
"""Tokens of the steps that are only looked at: several such checks at once fit a large card."""
FALLBACKS = ("torch.compile failed", "FlexAttention cannot be used", "step skipped")
"""What a trainer says when it trains in another way than was asked for."""


# --- tests and probes -----------------------------------------------------------------------------


def pytest_check(name: str, paths: Sequence[str], session: Session) -> Check:
    """The tests with a GPU in their name."""
    report = session.folder(name) / "junit.xml"
    options = ["-k", "cuda or gpu", "-v", "--junitxml", str(report), "-p", "no:cacheprovider"]
    options += ["-o", "addopts=--strict-markers --import-mode=importlib"]
    return Check(
        name=name, command=[sys.executable, "-m", "pytest", *options, *paths], limit=95, read=partial(of_junit, report)
    )


def of_junit(report: Path, ended: Ended) -> Row:
    """Counts, and each failure with its traceback. Raises: OSError where there is no report."""
    cases = list(ET.parse(report).iter("testcase"))
    failures = [
        {"test": f"{case.get('classname')}::{case.get('name')}", "traceback": (fault.text or "")[-4000:]}
        for case in cases
        for fault in (*case.findall("failure"), *case.findall("error"))
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    figures = {"passed": len(cases) - len(failures) - skipped, "failed_tests": len(failures), "skipped": skipped}
    return {**figures, **({"failures": failures} if failures else {})}


def probe_check(name: str, *words: str, limit: float) -> Check:
    """A verb of probes.py, whose figures are the check's."""
    return Check(name=name, command=[sys.executable, PROBES, *words], limit=limit, read=of_probe)


def of_probe(ended: Ended) -> Row:
    """The figures of a probe. Raises: CheckFailed where it names a problem."""
    found = ended.json()
    if "problem" in found:
        raise CheckFailed(found.pop("problem"), found)
    return found


# --- steps of a trainer ---------------------------------------------------------------------------


def stage_words(session: Session, stage: str, *, tokens: int = STEP_TOKENS) -> list[str]:
    """Flags of a trainer without folders and shape: the profile, the data, what keeps it short."""
    row_tokens = Recipe.of(tiny=session.tiny).row_tokens[stage]
    words = ["--profile", "smoke" if session.tiny else "default", "--tokenizer_dir", str(TOKENIZER_DIR)]
    words += ["--data_path", str(tensors(session.data, stage, row_tokens)), "--max_seq_len", str(row_tokens)]
    words += ["--device", session.device, "--log_interval", "1", "--eval_interval", "1000000"]
    if not session.tiny and stage != "dpo":
        words += ["--tokens_per_step", str(tokens)]
    return words


def train_check(
    session: Session,
    name: str,
    stage: str,
    *more: str,
    steps: int = 0,
    tokens: int = STEP_TOKENS,
    limit: float = 90,
    probe_words: Sequence[str] = (),
    must_fall: bool = True,
) -> Check:
    """A few steps of a trainer, from the weights that `more` names.

    Args: steps: with 0, so many that the loss falls below its start. The first steps raise it.
    """
    steps = steps or (8 if session.tiny else 20)
    folder = session.folder(name)
    flags = [*stage_words(session, stage, tokens=tokens), "--out_dir", str(folder), "--tf_dir", str(folder)]
    flags += ["--max_steps", str(steps), "--save_interval", "1000000", "--from_resume", "0", *more]
    return Check(
        name=name,
        command=[sys.executable, PROBES, "train", stage, *probe_words, "--", *flags],
        limit=limit,
        read=partial(of_training, must_fall),
    )


def of_training(must_fall: bool, ended: Ended) -> Row:
    """Losses, speed and memory. Raises: CheckFailed where a trainer did not do as asked."""
    figures = ended.json()
    for notice in FALLBACKS:
        if line := next((line.strip() for line in ended.err.splitlines() if notice in line), ""):
            raise CheckFailed(line, figures)
    first, last = figures["first_loss"], figures["last_loss"]
    if must_fall and not last < first:  # NaN, too
        raise CheckFailed(f"the loss does not fall: {first} to {last}", figures)
    return figures


def weights(session: Session, check: str, stage: str) -> Path | None:
    """The weights that a check's run has written, where it came so far."""
    try:
        return latest_weights(STAGE_TABLE[stage].weights, session.folder(check))
    except UserError:
        return None


def resume_check(session: Session, stage: str, *more: str) -> Check:
    """Three runs with --deterministic, one of them killed: the same bits at the end."""
    name = f"resume {stage}"
    flags = [*stage_words(session, stage), "--out_dir", str(session.folder(name)), "--use_compile", "0", *more]
    return probe_check(name, "resume", stage, "--", *flags, limit=100)
