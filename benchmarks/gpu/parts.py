"""The five parts of `on_gpu.py`, in order of worth: their checks, and what these must find.

With --tiny the shapes are those of the profile `smoke`, so that a CPU can walk through every part.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

from benchmarks.gpu.checks import FAILED, OK, Check, CheckFailed, Ended, Part, Row, Session, no_figures
from benchmarks.gpu.commands import of_training, probe_check, pytest_check, resume_check, train_check, weights
from configs.artifacts import read_json
from configs.paths import ROOT, latest_weights
from configs.stage_table import STAGE_TABLE, STAGES
from evaluation.results import read_results

Rows = Mapping[str, Row]

HEAD_DIMS = (64, 96, 80)
"""Of minillm-26m, minillm-104m and minillm-moe-145m."""
SHAPE_TOKENS = 16_384
"""Tokens of a step of the larger models, of which several at once fit a large card."""
SPEED_TOKENS = 262_144
"""Of a step where speed counts: what a step costs besides its tokens is little beside so many."""
MOST_DIFFERENT = 0.05
"""Nats by which losses of a compiled run may differ from those of the same run uncompiled."""
MEMORY_SHARE = 0.6
"""Of what a run needed: too little, so that its micro-batch must be halved."""
ASK_SECONDS = 60
TALKS = (
    ("你好！", "你是谁？", "谁开发了你？", "你能做什么？"),
    ("法国的首都是哪里？", "一年有几个月？", "17+25等于多少？", "小明有8个苹果，吃了3个，还剩几个？"),
    ("今天心情不太好。", "给我讲一个小故事。", "你喜欢什么颜色？", "谢谢你，再见！"),
)
"""Three conversations of four turns: what somebody types who tries a model."""


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
    """The same run with less memory than it took.

    A micro-batch that the trainer chose must be halved, one that was asked for be refused.
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


# --- 3: the pipeline ------------------------------------------------------------------------------


def pipeline(session: Session) -> None:
    """All that `run.sh` does after the environment, on the bundled data, and a talk with the
    result."""
    base = session.folder("run")
    own_flags = f"--device {session.device}" + (" --dtype auto" if session.tiny else "")
    environment = {
        "DATA_DIR": str(base / "data"), "OUT_DIR": str(base / "out"), "TF_DIR": str(base / "tf_dir"),
        **{f"{stage.upper()}_ARGS": own_flags for stage in STAGES},
    }  # fmt: skip

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
        command, cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=ASK_SECONDS, check=False,
    )  # fmt: skip
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
        "steps": last["step"], "tokens": round(last["tokens"]), "last_loss": round(last["loss"], 4),
        "validation_losses": [round(loss, 4) for loss in validations], "chose": chose,
    }  # fmt: skip


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


# --- 4: speed -------------------------------------------------------------------------------------


def speed(session: Session) -> None:
    """Tokens a second of 26 M at 2,048 tokens, beside peak and bound; then steps under a
    profiler."""
    found = session.folder("train speed") / "speed.json"
    size = "--model minillm-26m --profile default --minutes 0.3"
    ours = f"--use_compile 1 --tokens_per_step {SPEED_TOKENS} --log_interval 5"
    if session.tiny:
        size = "--model 64x2 --profile smoke --minutes 0.02"
        ours = "--use_compile 0 --tokens_per_step 2048 --batch_size 0 --accumulation_steps 0 --max_steps 0"
    command = [sys.executable, str(ROOT / "benchmarks" / "train_speed.py"), "--work_dir", str(session.data)]
    command += ["--arms", "minillm", "--device", session.device, "--json", str(found)]
    command += [*size.split(), f"--pretrain_args={ours}"]
    session.run([Check(name="train speed", command=command, limit=110, read=partial(of_speed, found))])
    profiled = train_check(
        session, "where the time goes", "pretrain", "--use_compile", "0" if session.tiny else "1",
        steps=10, tokens=SPEED_TOKENS, probe_words=("--profile_steps", "3"), must_fall=False,
    )  # fmt: skip
    session.run([profiled])


def of_speed(found: Path, ended: Ended) -> Row:
    """The figures of train_speed.py."""
    result = read_json(found, "See the log.")[0]
    rate, bound = result["real_tokens_per_s"], result["gemm_bound_tokens_per_s"]
    return {
        "tokens_per_s": rate, "mfu": result["mfu"], "share_of_bound": round(rate / bound, 4),
        "bound_tokens_per_s": bound, "bound_tflops": float(f"{result['bound_tflops']:.3g}"),
        "peak_tflops": float(f"{result['peak_tflops']:.3g}"), "peak_from": result["peak_from"], "dtype": result["dtype"],
        "startup_s": result["startup_seconds"], "measured_s": result["measured_seconds"],
    }  # fmt: skip


def speed_result(rows: Rows) -> str:
    row, words = rows.get("train speed", {}), []
    if "mfu" in row:
        words.append(
            f"{row['tokens_per_s']:,.0f} tokens/s, utilisation {row['mfu']:.1%} of {row['peak_tflops']:g} TFLOP/s "
            f"(goal 35%), {row['share_of_bound']:.0%} of its products' bound, {row['startup_s']:.0f} s of start-up"
        )
    profiled = rows.get("where the time goes", {})
    if "busy_share" in profiled:
        words.append(f"kernels run in {profiled['busy_share']:.0%} of a step's {profiled['step_ms']:g} ms")
    return "; ".join(words)


def speed_details(rows: Rows) -> list[str]:
    kernels = rows.get("where the time goes", {}).get("kernels", [])
    if not kernels:
        return []
    lines = ["| kernel | calls a step | ms a step | share |", "|---|---|---|---|"]
    return lines + [f"| `{k['name']}` | {k['calls']} | {k['ms']:.3f} | {k['share']:.1%} |" for k in kernels]


# --- 5: shapes ------------------------------------------------------------------------------------


def shapes(session: Session) -> None:
    """The other models, float16, decoding, and the time to a loss."""
    large, moe = ["--preset", "minillm-104m"], ["--preset", "minillm-moe-145m"]
    decoded = ["--model", "minillm-26m", "--batch_sizes", "1", "8", "64", "--tokens", "128"]
    if session.tiny:  # narrower, with heads of the same sizes
        narrow = ["--num_hidden_layers", "2", "--num_attention_heads", "2", "--num_key_value_heads", "1"]
        large = [*narrow, "--hidden_size", "192"]
        experts = ["--use_moe", "1", "--num_experts", "4", "--moe_intermediate_size", "64"]
        moe = [*narrow, "--hidden_size", "160", *experts]
        decoded = ["--model", "64x2", "--batch_sizes", "1", "2", "4", "--tokens", "8"]
    eager, compiled = ["--use_compile", "0"], ["--use_compile", "1"]
    plans = {
        "104 M compiled": [*large, *compiled],
        "MoE 145 M compiled": [*moe, *compiled],
        "104 M eager": [*large, *eager],
        "MoE 145 M eager": [*moe, *eager],
        "MoE 145 M deterministic": [*moe, *eager, "--deterministic"],
    }
    if session.device == "cpu":
        session.skip("compiled", "a CPU compiles each model's blocks for a minute or more")
        plans = {name: words for name, words in plans.items() if "compiled" not in name}
    checks = [train_check(session, name, "pretrain", *words, tokens=SHAPE_TOKENS) for name, words in plans.items()]
    # more steps: in the first ones float16's loss scale is still too large, and they are not taken
    half = ["--dtype", "float16", *eager]
    checks.append(train_check(session, "float16", "pretrain", *half, steps=8 if session.tiny else 40))
    session.run(checks, session.at_once)
    session.run([probe_check("decoding", "decode", "--device", session.device, *decoded, limit=60)])
    session.run([time_to_loss(session)])


def time_to_loss(session: Session) -> Check:
    """Our trainer beside transformers, seconds each."""
    found = session.folder("time to loss") / "loss.json"
    size = (
        "--model minillm-26m --profile default --minutes 0.5 --budgets 0.25 --calibrate_minutes 0.05 --batch_sizes 32"
    )
    ours = "--log_interval 2 --use_compile 0"
    if session.tiny:
        size = "--model 64x2 --profile smoke --minutes 0.06 --budgets 0.06 --calibrate_minutes 0.01 --batch_sizes 2"
        ours = "--batch_size 0 --accumulation_steps 0 --max_steps 0"
    command = [sys.executable, str(ROOT / "benchmarks" / "time_to_loss.py"), "--work_dir", str(session.data)]
    command += ["--device", session.device, "--json", str(found), "--learning_rates", "1e-3"]
    command += [*size.split(), f"--pretrain_args={ours}"]
    return Check(name="time to loss", command=command, limit=150, read=partial(of_time_to_loss, found))


def of_time_to_loss(found: Path, ended: Ended) -> Row:
    """Seconds and bits per byte of both arms' ends."""
    figures: Row = {}
    for result in read_json(found, "See the log."):
        end = result["curve"][-1]
        figures |= {f"{result['arm']}_{key}": end[key] for key in ("seconds", "steps", "heldout_bpb")}
    return figures


def shapes_result(rows: Rows) -> str:
    words = [
        f"{name} {row['tokens_per_s']:,} tokens/s"
        for name, row in rows.items()
        if row["status"] == OK and "tokens_per_s" in row
    ]
    found = {name: value for name, value in rows.get("decoding", {}).items() if name.startswith("tokens_per_s_batch_")}
    if found:
        words.append("decoding " + ", ".join(f"{value:,.0f}" for value in found.values()) + " tokens/s at batch "
                     + ", ".join(name.rpartition("_")[2] for name in found))  # fmt: skip
    loss = rows.get("time to loss", {})
    words += [
        f"{arm} {loss[f'{arm}_heldout_bpb']:.3f} bits per byte after {loss[f'{arm}_seconds']:.0f} s"
        for arm in ("minillm", "baseline")
        if f"{arm}_seconds" in loss
    ]
    return ", ".join(words)


PARTS = (
    Part("tests", "tests on the GPU, FlexAttention against the dense mask 显卡测试", 90, tests, tests_result, tests_details),
    Part("steps", "steps of each stage, memory, resuming 各阶段训练步、显存、恢复", 120, steps, steps_result),
    Part("pipeline", "the whole run on the bundled data 自带数据全流程", 200, pipeline, pipeline_result, pipeline_details),
    Part("speed", "utilisation, and where the time goes 利用率与耗时分布", 140, speed, speed_result, speed_details),
    Part("shapes", "larger models, float16, decoding, time to loss 其他结构、精度与生成", 280, shapes, shapes_result),
)  # fmt: skip
"""In order of worth."""
