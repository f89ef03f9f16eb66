"""The parts `tests` and `steps` of `on_gpu.py`: does what runs on this GPU compute the right thing?

With --tiny the shapes are those of the profile `smoke`, so that a CPU can walk through all of it.
"""

import math
from dataclasses import replace

from benchmarks.gpu.checks import FAILED, OK, Check, CheckFailed, Ended, Row
from benchmarks.gpu.commands import of_training, probe_check, pytest_check, resume_check, train_check, weights
from benchmarks.gpu.session import Part, Rows, Session
from configs.stage_table import STAGES

HEAD_DIMS = (64, 96, 80)
"""Sizes of the heads of minillm-26m, minillm-104m and minillm-moe-145m."""
MOST_DIFFERENT = 0.05
"""Nats by which losses of a compiled run may differ from those of the same run uncompiled."""
MEMORY_SHARE = 0.6
"""Share of the memory that a run needed: too little, so that its micro-batch must be halved."""


# --- 1: tests -------------------------------------------------------------------------------------


def tests(session: Session) -> None:
    """The tests that need a GPU, and attention at the sizes of our models."""
    files = {
        "attention": ["tests/model/test_attention.py"],
        "network": ["tests/model/test_model_minillm.py"],
        "training": ["tests/trainer"],
    }
    checks = [pytest_check(f"tests of {name}", paths, session) for name, paths in files.items()]
    size = ("--rows", "2", "--tokens", "200") if session.tiny else ()
    for head_dim in HEAD_DIMS:
        words = ("attention", "--head_dim", str(head_dim), "--device", session.device, *size)
        checks.append(probe_check(f"attention, head size {head_dim}", *words, limit=90))
    session.run(checks, session.at_once)


def tests_result(rows: Rows) -> str:
    counts = {key: sum(row.get(key, 0) for row in rows.values()) for key in ("passed", "failed_tests", "skipped")}
    return f"{counts['passed']} tests passed, {counts['failed_tests']} failed, {counts['skipped']} skipped"


def tests_details(rows: Rows) -> list[str]:
    lines = [
        f"- {failure['test']}: {(failure['traceback'].strip().splitlines() or ['?'])[-1]}"
        for row in rows.values()
        for failure in row.get("failures", [])
    ]
    return ["failed tests:", "", *lines] if lines else []


# --- 2: steps -------------------------------------------------------------------------------------


def steps(session: Session) -> None:
    """Each trainer eager and compiled; memory that runs out; runs that are killed and resumed."""
    eager, fresh = ("--use_compile", "0"), ("--from_weight", "none")
    compiles = session.device != "cpu"
    first = [
        train_check(session, "pretrain eager", "pretrain", *eager),
        train_check(session, "sft eager", "sft", *eager, *fresh),
        resume_check(session, "pretrain"),
    ]
    if compiles:
        first.insert(0, train_check(session, "pretrain compiled", "pretrain", "--use_compile", "1"))
    else:
        session.skip("compiled", "a CPU compiles each trainer's blocks for a minute or more")
    rows = {row["check"]: row for row in session.run(first, session.at_once)}
    second = memory_checks(session, rows["pretrain eager"])
    if compiles:
        second.append(train_check(session, "sft compiled", "sft", "--use_compile", "1", *fresh))
    if start := weights(session, "sft eager", "sft"):
        after_sft = ("--from_weight", str(start))
        second.append(train_check(session, "dpo eager", "dpo", *eager, *after_sft, must_fall=False))
        second.append(resume_check(session, "dpo", *after_sft))
        if compiles:
            compiled = ("--use_compile", "1", *after_sft)
            second.insert(0, train_check(session, "dpo compiled", "dpo", *compiled, must_fall=False))
    else:
        session.skip("dpo", "SFT left no weights to start from")
    rows |= {row["check"]: row for row in session.run(second, session.at_once)}
    for stage in STAGES:
        compare(session, f"{stage} compiled as eager", rows.get(f"{stage} eager"), rows.get(f"{stage} compiled"))


def memory_checks(session: Session, free: Row) -> list[Check]:
    """Two checks that repeat a run with less GPU memory than the run needs.

    In the first check the trainer chose the size of the micro-batch itself: the trainer must halve
    this size and continue. In the second check a flag sets the size: the trainer must stop with an
    error message.

    Args: free: the results of the same run with all of the memory.
    """
    names = ("out of memory, halved", "out of memory, refused")
    peak = free.get("peak_memory_gb")
    if not peak:
        why = "needs a GPU" if session.device == "cpu" else "the run with all of the memory failed"
        for name in names:
            session.skip(name, why)
        return []
    limit = ("--memory_gb", f"{MEMORY_SHARE * peak:.3f}")

    def halved(ended: Ended) -> Row:
        figures = of_training(True, ended)
        if not figures["micro_batch"] < free["micro_batch"]:
            raise CheckFailed(f"the micro-batch was not halved: {figures['micro_batch']} rows", figures)
        return figures

    def refused(ended: Ended) -> Row:
        if "does not fit the GPU's memory" not in ended.err or "Traceback" in ended.err:
            raise CheckFailed("the message is not the one line that names the remedy")
        return {"said": next(line for line in ended.err.splitlines() if line.startswith("error:"))}

    chosen = train_check(session, names[0], "pretrain", "--use_compile", "0", probe_words=limit)
    rows = ("--batch_size", str(free["micro_batch"]))
    asked = train_check(session, names[1], "pretrain", "--use_compile", "0", *rows, probe_words=limit)
    return [replace(chosen, read=halved), replace(asked, read=refused, code=1)]


def compare(session: Session, name: str, eager: Row | None, compiled: Row | None) -> None:
    """Whether two runs of the same steps have the same losses, to rounding."""
    if not eager or not compiled or not (eager.get("losses") and compiled.get("losses")):
        return  # the run that has none tells why
    differences = [abs(a - b) for a, b in zip(eager["losses"], compiled["losses"], strict=True)]
    difference = math.nan if any(map(math.isnan, differences)) else max(differences)
    row: Row = {"check": name, "status": OK, "seconds": 0.0, "largest_difference_nats": round(difference, 5)}
    if not difference <= MOST_DIFFERENT:  # NaN, too
        row |= {"status": FAILED, "error": f"losses differ by {difference:.4f} nats, more than {MOST_DIFFERENT}"}
    session.found(row)


def steps_result(rows: Rows) -> str:
    found = [
        f"{name} {row['tokens_per_s']:,} tokens/s"
        + (f" in {row['peak_memory_gb']} GB" if "peak_memory_gb" in row else "")
        for name, row in rows.items()
        if row["status"] == OK and "tokens_per_s" in row
    ]
    return ", ".join(found)


TESTS = Part(
    "tests", "tests on the GPU, FlexAttention against the dense mask 显卡测试", 90, tests, tests_result, tests_details
)
STEPS = Part("steps", "steps of each stage, memory, resuming 各阶段训练步、显存、恢复", 120, steps, steps_result)
