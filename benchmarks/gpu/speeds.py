"""The parts `speed` and `shapes` of `on_gpu.py`: training at several sizes, and decoding.

With --tiny the shapes are those of the profile `smoke`, so that a CPU can walk through all of it.
"""

import sys
from functools import partial
from pathlib import Path

from benchmarks.gpu.checks import OK, Check, Ended, Row
from benchmarks.gpu.commands import probe_check, train_check
from benchmarks.gpu.session import Part, Rows, Session
from configs.artifacts import read_json
from configs.paths import ROOT

SHAPE_TOKENS = 16_384
"""Tokens of a step of the larger models, of which several at once fit a large card."""
SPEED_TOKENS = 262_144
"""Tokens of a step whose speed is measured: so many that the fixed cost of a step hardly counts."""


# --- 4: speed -------------------------------------------------------------------------------------


def speed(session: Session) -> None:
    """Tokens a second of 26 M at 2,048 tokens, beside peak and bound; then a few steps profiled."""
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
    compiled = ("--use_compile", "0" if session.tiny else "1")
    words = ("--profile_steps", "3")
    profiled = train_check(
        session,
        "where the time goes",
        "pretrain",
        *compiled,
        steps=10,
        tokens=SPEED_TOKENS,
        probe_words=words,
        must_fall=False,
    )
    session.run([profiled])


def of_speed(found: Path, ended: Ended) -> Row:
    """The figures of train_speed.py."""
    result = read_json(found, "See the log.")[0]
    rate, bound = result["real_tokens_per_s"], result["gemm_bound_tokens_per_s"]
    return {
        "tokens_per_s": rate,
        "mfu": result["mfu"],
        "share_of_bound": round(rate / bound, 4),
        "bound_tokens_per_s": bound,
        "bound_tflops": float(f"{result['bound_tflops']:.3g}"),
        "peak_tflops": float(f"{result['peak_tflops']:.3g}"),
        "peak_from": result["peak_from"],
        "dtype": result["dtype"],
        "startup_s": result["startup_seconds"],
        "measured_s": result["measured_seconds"],
    }


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
        speeds = ", ".join(f"{value:,.0f}" for value in found.values())
        batches = ", ".join(name.rpartition("_")[2] for name in found)
        words.append(f"decoding {speeds} tokens/s at batch {batches}")
    loss = rows.get("time to loss", {})
    words += [
        f"{arm} {loss[f'{arm}_heldout_bpb']:.3f} bits per byte after {loss[f'{arm}_seconds']:.0f} s"
        for arm in ("minillm", "baseline")
        if f"{arm}_seconds" in loss
    ]
    return ", ".join(words)


SPEED = Part("speed", "utilisation, and where the time goes 利用率与耗时分布", 140, speed, speed_result, speed_details)
SHAPES = Part(
    "shapes", "larger models, float16, decoding, time to loss 其他结构、精度与生成", 280, shapes, shapes_result
)
