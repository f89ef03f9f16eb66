"""A copy of the repository for tests of `run.sh`: each stage is a few lines, without training."""

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

COMMON = """
import hashlib, json, os, sys, time
from pathlib import Path

name = Path(sys.argv[0]).stem + ("" if len(sys.argv) < 2 or sys.argv[1].startswith("--") else "-" + sys.argv[1])
flags = {}
for word, value in zip(sys.argv, sys.argv[1:]):
    if word.startswith("--"):
        flags[word[2:]] = value
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps({"name": name, "argv": sys.argv[1:]}) + "\\n")

def give_up_if_asked(moment):
    if os.environ.get("FAKE_FAIL") == f"{name} {moment}":
        print("error: asked to fail", file=sys.stderr)
        sys.exit(1)

def wait_if_asked():
    # Until the file is gone; a trainer whose pipeline has gone saves and ends.
    gate = Path(os.environ.get("FAKE_GATE", ""))
    if os.environ.get("FAKE_WAIT") != name:
        return
    Path(os.environ["FAKE_LOG"] + ".waiting").write_text(str(os.getpid()))
    while gate.is_file():
        time.sleep(0.01)
    time.sleep(0.2)
    with open(os.environ["FAKE_LOG"], "a") as log:
        log.write(json.dumps({"name": name + " ended", "argv": []}) + "\\n")
    if os.getppid() != int(os.environ["MINILLM_PARENT_PID"]):
        sys.exit(143)

give_up_if_asked("before")
wait_if_asked()
"""
MIX = (
    COMMON
    + """
out = Path(flags["output_dir"])
for stage in ("pretrain", "sft", "dpo"):
    for kind in ("", "_heldout"):
        (out / f"{stage}_chinese{kind}.jsonl").write_text(f"{stage}{kind}\\n")
(out / "rejects.jsonl").write_text("")
(out / "mix_manifest.json").write_text("{}\\n")
"""
)
TOKENIZER = (
    COMMON
    + """
out = Path(flags["output"])
out.mkdir(parents=True, exist_ok=True)
(out / "tokenizer.pkl").write_text("trained on " + Path(flags["input"]).read_text())
"""
)
MATURIN = """#!/bin/sh
printf '%s in %s\\n' "$*" "$VIRTUAL_ENV" >>"${FAKE_LOG}.maturin"
exit ${FAKE_MATURIN_EXIT:-0}
"""
EXPORT = (
    COMMON
    + """
out = Path(flags["output"])
(out / "validation").mkdir(parents=True, exist_ok=True)
text = Path(flags["input"]).read_text() + flags["max-length"]
(out / "input_ids.npy").write_text(text)
(out / "validation" / "input_ids.npy").write_text(text)
(out / "manifest.json").write_text("{}\\n")
"""
)
TRAINER = (
    COMMON
    + """
stage, stem = {"train_pretrain": ("pretrain", "pretrain"), "train_full_sft": ("sft", "full_sft"),
               "train_dpo": ("dpo", "rlhf"), "train_lora": ("lora", "lora/lora_identity")}[name]
out = Path(flags["out_dir"])
(out / stem).parent.mkdir(exist_ok=True)
weights = out / f"{stem}_{flags.get('hidden_size', os.environ.get('FAKE_HIDDEN', '192'))}.pth"
skipped = ("log_interval", "from_resume", "from_weight", "profile", "data_path", "out_dir", "tf_dir", "tokenizer_dir")
made_from = [stage] + [f"{key}={flags[key]}" for key in sorted(flags) if key not in skipped]
if "from_weight" in flags:
    made_from.append(hashlib.sha256(Path(flags["from_weight"]).read_bytes()).hexdigest())
of_these = hashlib.sha256("\\n".join(made_from).encode()).hexdigest()[:16]
state = out / "checkpoints" / stage / of_these / "state.pt"
again = flags.get("from_resume") == "0"
if weights.exists() and weights.read_text() == "\\n".join(made_from) and not again and not state.exists():
    print("trained already")
    sys.exit(0)
state.parent.mkdir(parents=True, exist_ok=True)
print("resumed" if state.exists() and not again else "from step 0")
state.write_text("step 5")
give_up_if_asked("after a save")
weights.unlink(missing_ok=True)
weights.write_text("\\n".join(made_from))
state.unlink()
"""
)
EVALUATE = (
    COMMON
    + """
results = Path(flags["results_file"])
results.parent.mkdir(parents=True, exist_ok=True)
lines = results.read_text().splitlines() if results.exists() else []
line = {"run_id": flags["run_id"], "stage": flags["stage"]}
Path(flags["checkpoint"]).read_bytes()
if line not in [json.loads(other) for other in lines]:
    with results.open("a") as file:
        file.write(json.dumps(line) + "\\n")
give_up_if_asked(flags["stage"] + " after the line")
"""
)
DOCTOR = """
import os, runpy, sys
if "--probe" in sys.argv:
    runpy.run_path(os.environ["REAL_DOCTOR"], run_name="__main__")
print(os.environ.get("FAKE_HARDWARE", "cpu 0 0 no NVIDIA GPU") if "--hardware" in sys.argv else "  doctor was here")
"""
REPORT = """
import os, sys
if os.environ.get("FAKE_FAIL") == "run_report":
    sys.exit("error: asked to fail")
print("Report: | 报告：", "  out/report.html", sep="\\n")
"""
INTERPRETER = """#!/bin/sh
# A Python of an environment: it notes what it is asked to install and installs nothing.
case "$1 $2" in
  "-m pip") [ "$3" = --version ] || printf '%s\\n' "$*" >>"$FAKE_LOG.pip"; exit ${{FAKE_PIP_EXIT:-0}} ;;
  *"/trainer/torchrun.py "*) shift 4; export FAKE_PROCESSES=1 ;;
esac
exec {python} "$@"
"""
SYSTEM_PYTHON = """#!/bin/sh
# The Python of the system: it makes an environment, else it is the one that runs the tests.
if [ "$1" = --version ]; then echo "Python ${{FAKE_VERSION:-3.12.1}}"; exit 0; fi
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin" && cp {interpreter} "$3/bin/python" && touch "$3/pyvenv.cfg"; exit 0
fi
exec {python} "$@"
"""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    code: int
    output: str
    errors: str

    def stages(self) -> list[str]:
        """The lines about stages, without their Chinese halves and the seconds."""
        said = [line.partition(" | ")[0] for line in self.output.splitlines() if line.startswith("stage ")]
        lines = [line.split(" in ")[0] for line in said]
        return [line.removeprefix("stage ") for line in lines]

    def started(self) -> list[str]:
        """The stages that had something to do."""
        return [line.removesuffix(": start") for line in self.stages() if line.endswith(": start")]


@dataclass
class FakeRepository:
    """A repository with fake stages, and an environment in which everything is installed."""

    folder: Path
    installed: bool = True
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.folder / "repository"
        self.log = self.folder / "log"
        self.gate = self.folder / "gate"
        shutil.copytree(ROOT / "configs", self.root / "configs", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(
            ROOT / "scripts" / "pipeline",
            self.root / "scripts" / "pipeline",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        for name in ("run.sh", "run_cn_pipeline.sh"):
            self.write(f"scripts/{name}", (ROOT / "scripts" / name).read_text(encoding="utf-8"))
        self.write("requirements.txt", "torch>=2.9\ntqdm\n")
        self.write("scripts/doctor.py", DOCTOR)
        self.write("scripts/build_chinese_mix.py", MIX)
        self.write("scripts/export_embeddings.py", EXPORT)
        self.write("scripts/evaluate_stage.py", EVALUATE)
        self.write("scripts/run_report.py", REPORT)
        for name in ("train_pretrain.py", "train_full_sft.py", "train_dpo.py", "train_lora.py"):
            self.write(f"trainer/{name}", TRAINER)
        self.write("trainer/facts.py", "def ask_rules(*_):\n    return {}\n")
        self.write("dataset/samples/files.py", "def generator_files():\n    return []\n")
        self.write("dataset/samples/sets.py", 'SAMPLE_SETS = {"lora_identity": ""}\n')
        self.write("model/tokenizer.pkl", "tokenizer")
        self.write("dataset/identity_cn_sample.jsonl", "{}\n")
        self.interpreter = self.executable("interpreter", INTERPRETER.format(python=sys.executable))
        self.python = self.executable(
            "bin/python3", SYSTEM_PYTHON.format(python=sys.executable, interpreter=self.interpreter)
        )
        self.venv = self.folder / "venv"
        self.environment = {
            **os.environ,
            "PYTHON": str(self.python),
            "VENV_DIR": str(self.venv),
            "FAKE_LOG": str(self.log),
            "FAKE_GATE": str(self.gate),
            "REAL_DOCTOR": str(ROOT / "scripts" / "doctor.py"),
            **self.environment,
        }
        for name in ("PRETRAIN_ARGS", "SFT_ARGS", "DPO_ARGS", "LORA_ARGS", "NUM_GPUS", "ENV_TOOL"):
            self.environment.pop(name, None)
        for name in ("DATA_DIR", "OUT_DIR", "TF_DIR", "TORCH_INDEX_URL", "ENABLE_RUSTBPE", "PYTHONDONTWRITEBYTECODE"):
            self.environment.pop(name, None)
        if self.installed:
            (self.venv / "bin").mkdir(parents=True)
            shutil.copy(self.interpreter, self.venv / "bin" / "python")
            version = subprocess.run(
                [self.venv / "bin" / "python", "--version"], capture_output=True, text=True, check=True
            ).stdout
            (self.venv / "pyvenv.cfg").touch()
            (self.venv / ".deps_installed").write_text("torch>=2.9\ntqdm\n" + version)

    def with_rust(self) -> str:
        """Make a crate, a cargo, and a maturin that notes what it is asked to build.

        Returns: the PATH to run with.
        """
        for name in ("Cargo.toml", "Cargo.lock", "pyproject.toml", "src/lib.rs"):
            self.write(f"rustbpe/{name}", f"# {name}")
        self.write("scripts/train_rustbpe_tokenizer.py", TOKENIZER)
        self.executable("bin/cargo", "#!/bin/sh\n")
        self.executable("venv/bin/maturin", MATURIN)
        return f"{self.folder}/bin:{os.environ['PATH']}"

    def take_results_of(self, other: "FakeRepository") -> None:
        """Start where another repository's run has ended."""
        for name in ("data", "out", "tf_dir"):
            shutil.copytree(other.root / name, self.root / name)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the repository."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def executable(self, name: str, text: str) -> Path:
        """Write a program beside the repository."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def start(
        self, *flags: str, script: str = "run.sh", cwd: Path | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        """Start `run.sh`."""
        return subprocess.Popen(
            ["bash", str(self.root / "scripts" / script), *flags],
            cwd=cwd or self.root,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *flags: str, script: str = "run.sh", cwd: Path | None = None, **variables: str) -> Result:
        """Run `run.sh` to its end."""
        process = self.start(*flags, script=script, cwd=cwd, **variables)
        output, errors = process.communicate(timeout=120)
        return Result(process.returncode, output, errors)

    def calls(self) -> list[dict[str, Any]]:
        """What was run since the last look, in order."""
        calls = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return calls

    def names(self) -> list[str]:
        """The programs that were run since the last look."""
        return [call["name"] for call in self.calls()]

    def installations(self) -> list[str]:
        """What pip was asked since the last look."""
        path = Path(f"{self.log}.pip")
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def results(self, folder: str = "tf_dir") -> list[dict[str, str]]:
        """The lines of the results file."""
        path = self.root / folder / "eval_results.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]
