"""The pipeline's stages: what each is made from, what it writes, the commands it runs, and whether it is done.

A stage is done when a hash of its recipe's version, its settings, the values chosen by rule and the content of its inputs
is the one of its last run, and its outputs are still those that the run wrote. Weights are never removed here: the trainer
replaces them once the new ones are complete. The records lie in `OUT_DIR/stages/`. Imports no torch: `run.sh` asks often.
"""

import argparse
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.artifacts import fingerprint, read_json, sha256_file, write_json
from configs.cli import split_words
from configs.flags import (
    TrainRun,
    build_parser,
    default_tokenizer_dir,
    env_path,
    resolve_run,
    run_settings,
)
from configs.load import load_file_categories, load_profile
from configs.messages import both
from configs.paths import (
    DANGER_PROMPTS,
    DATA_DIR,
    FIRST_MINUTES,
    IDENTITY_MARK,
    IDENTITY_SAMPLE,
    IDENTITY_SOURCE,
    OUT_DIR,
    ROOT,
    TF_DIR,
    display,
    find_dataset,
    source_dir,
)
from configs.schema import RESULT_NEUTRAL, Profile, UserError, as_dict
from configs.stage_table import (
    DATA_STEMS,
    RECIPE_VERSION,
    STAGE_TABLE,
    STAGES,
    heldout_file,
    record_file,
    tensor_folder,
    weight_file,
    weight_file_after,
)

PIPELINE = ("mix", "tokenizer", "export", *STAGES)
"""The stages that have a record, in the order in which they run; `env` is marked in the environment itself."""
OWN_FLAGS = {
    "profile": "bash scripts/run.sh --profile",
    "out_dir": "OUT_DIR",
    "tf_dir": "TF_DIR",
    "tokenizer_dir": "ENABLE_RUSTBPE=1 (or leave it out)",
}
"""Trainer flags that belong to the whole run, and what to use in their place."""
MIX_OUTPUTS = (
    *(name(data) for data in DATA_STEMS for name in (record_file, heldout_file)),
    "rejects.jsonl",
    "mix_manifest.json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """One call of `run.sh`: its profile, its folders, and the user's flags of the three trainers."""

    profile_name: str
    profile: Profile
    data_dir: Path
    out_dir: Path
    tf_dir: Path
    train_tokenizer: bool
    """Whether the tokenizer is trained here (`ENABLE_RUSTBPE=1`); else the one that ships is taken."""
    num_gpus: int
    """Processes asked for; 0: one a GPU that is found."""
    gpus_found: int
    extra: Mapping[str, tuple[str, ...]]
    runs: Mapping[str, TrainRun]

    @property
    def tokenizer_dir(self) -> Path:
        """The tokenizer of all stages."""
        return self.out_dir / "tokenizer" if self.train_tokenizer else default_tokenizer_dir(self.out_dir)

    def tokens(self, stage: str) -> Path:
        """The tensors that a trainer reads by default."""
        return self.data_dir / tensor_folder(STAGE_TABLE[stage].data)

    def texts(self) -> list[Path]:
        """The mixed training records of all kinds."""
        return [self.data_dir / record_file(data) for data in DATA_STEMS]

    def heldout(self, stage: str) -> Path:
        """The held-out records of a stage."""
        return self.data_dir / heldout_file(STAGE_TABLE[stage].data)

    def start(self, stage: str) -> Path | None:
        """The weights that a trainer starts from; None where it starts from none or finds them by itself."""
        name = self.runs[stage].from_weight
        if name == "none":
            return None
        earlier = {STAGE_TABLE[other].weights: other for other in STAGES[: STAGES.index(stage)]}
        if name in earlier:
            return self.weights(earlier[name])
        return _found(Path(name)) if name.endswith(".pth") else None

    def weights(self, stage: str) -> Path:
        """The weights that a stage writes; their name ends in the shape of those it starts from."""
        start = self.start(stage)
        name = weight_file_after(stage, start.name) if start else None
        return self.out_dir / (name or weight_file(stage, self.runs[stage].model))

    def processes(self, stage: str) -> int:
        """How many processes train a stage: as many as the user asks for, else one a GPU unless it runs elsewhere."""
        on_all_gpus = self.runs[stage].train.device in {"auto", "cuda"}
        return self.num_gpus or (max(1, self.gpus_found) if on_all_gpus else 1)


def pipeline_from_environment(profile_name: str, gpus_found: int) -> Pipeline:
    """The pipeline as `run.sh` passes it on. Raises: UserError on a variable or an extra flag that can't be."""
    profile = load_profile(profile_name)
    extra = {stage: _split_arguments(STAGE_TABLE[stage].arguments) for stage in STAGES}
    return Pipeline(
        profile_name=profile_name,
        profile=profile,
        data_dir=env_path("DATA_DIR", DATA_DIR),
        out_dir=env_path("OUT_DIR", OUT_DIR),
        tf_dir=env_path("TF_DIR", TF_DIR),
        train_tokenizer=_switch("ENABLE_RUSTBPE"),
        num_gpus=_count("NUM_GPUS"),
        gpus_found=gpus_found,
        extra=extra,
        runs={stage: _resolve(stage, profile_name, extra[stage]) for stage in STAGES},
    )


def _split_arguments(variable: str) -> tuple[str, ...]:
    """The words of a variable, each on one line, as run.sh reads them line by line."""
    words = split_words(variable, os.environ.get(variable, ""))
    if any("\n" in word for word in words):
        raise UserError(f"{variable}: a word holds a line break. Take it out.", "参数中有换行：请删去")
    return words


def _switch(variable: str) -> bool:
    value = os.environ.get(variable) or "0"
    if value not in {"0", "1"}:
        raise UserError(f"{variable}={value}: must be 0 or 1.", "只能是 0 或 1")
    return value == "1"


def _count(variable: str) -> int:
    value = os.environ.get(variable, "")
    if value and (not value.isdecimal() or int(value) < 1):
        raise UserError(
            f"{variable}={value}: must be 1 or more. To train on the CPU, set CUDA_VISIBLE_DEVICES to nothing.",
            "必须是不小于 1 的整数；用 CPU 训练请把 CUDA_VISIBLE_DEVICES 设为空",
        )
    return int(value or 0)


def _resolve(stage: str, profile_name: str, words: Iterable[str]) -> TrainRun:
    """A trainer's settings under the user's extra flags; wrong ones are reported under the variable's name."""
    variable = STAGE_TABLE[stage].arguments
    parser = build_parser(stage, f"Flags that {variable} may hold.")
    parser.prog, parser.usage = variable, f'{variable}="--flag value ..." bash scripts/run.sh'
    try:
        arguments = parser.parse_args(list(words))
    except SystemExit as stop:
        raise SystemExit(stop.code or 2) from None  # --help is an answer here, not the end of a good run
    for name, instead in OWN_FLAGS.items():
        if getattr(arguments, name) is not None:
            raise UserError(
                f"{variable}: --{name} belongs to the whole run. Use {instead}.",
                "该参数由整个流程统一设置：请改用所列写法",
            )
    arguments.profile = profile_name
    try:
        return resolve_run(stage, argparse.Namespace(**vars(arguments)))
    except UserError as error:
        raise UserError(f"profile {profile_name}, {variable}: {error}", error.chinese) from None


class Hashes:
    """Content hashes of files. A file whose size and time have not changed is not read again."""

    def __init__(self, path: Path, bases: Mapping[str, Path]) -> None:
        """Args: path: where the hashes are kept. bases: name -> folder, so that a moved folder stays known."""
        self._path, self._bases = path, bases
        self._known: dict[str, dict[str, Any]] = _read_record(path)
        self._changed = False

    def label(self, path: Path) -> str:
        """A file's name in records: below a base, such as `out/pretrain_192.pth`, else absolute."""
        path = path.absolute()
        for name, base in self._bases.items():
            if path.is_relative_to(base.absolute()):
                return f"{name}/{path.relative_to(base.absolute()).as_posix()}"
        return str(path)

    def locate(self, label: str) -> Path:
        """The file of a label."""
        name, _, rest = label.partition("/")
        return self._bases[name] / rest if name in self._bases else Path(label)

    def content(self, path: Path) -> dict[str, Any] | None:
        """A file's size, time and SHA-256; None where there is no such file."""
        try:
            status = path.stat()
        except OSError:
            return None
        stamp = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        label = self.label(path)
        known = self._known.get(label)
        if known is None or {key: known[key] for key in stamp} != stamp:
            known = {**stamp, "sha256": sha256_file(path)}
            self._known[label] = known
            self._changed = True
        return known

    def sha256(self, path: Path) -> str:
        """A file's content; empty where there is no such file."""
        known = self.content(path)
        return known["sha256"] if known else ""

    def save(self) -> None:
        """Keep what was read for the next call."""
        if self._changed:
            write_json(self._path, self._known)


def _read_record(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    record: dict[str, Any] = read_json(
        path, "Delete it, then rerun: the stage is looked at afresh.", "阶段记录损坏：请删除，然后重新运行"
    )
    return record


class StageBook:
    """The records of a run's stages: what is done, what goes on, what starts over."""

    def __init__(self, pipeline: Pipeline, by_rule: "Callable[[Pipeline, str, Hashes], Any]" = lambda *_: None) -> None:
        """Args: by_rule: what a trainer's rules give for the settings that its stage leaves open, as plain data."""
        self.pipeline, self._by_rule = pipeline, by_rule
        self.folder = pipeline.out_dir / "stages"
        bases = {"out": pipeline.out_dir, "data": pipeline.data_dir, "root": ROOT}
        self.hashes = Hashes(self.folder / "hashes.json", bases)

    # --- what a stage depends on -------------------------------------------------------------------------------

    def fingerprint(self, stage: str) -> str:
        """What the result of a stage depends on: its recipe, settings, and the content of what it reads."""
        settings, inputs = self._made_from(stage)
        contents = [[path.name, self.hashes.sha256(path)] for path in inputs]
        return fingerprint([stage, RECIPE_VERSION[stage], settings, contents])

    def _made_from(self, stage: str) -> tuple[Any, list[Path]]:
        pipeline, tokenizer = self.pipeline, self.pipeline.tokenizer_dir / "tokenizer.pkl"
        if stage == "mix":
            return [as_dict(pipeline.profile.mix), load_file_categories()], self._sources()
        if stage == "tokenizer":
            if not pipeline.train_tokenizer:
                return "given", [tokenizer]
            return pipeline.profile.model.vocab_size, [*pipeline.texts(), *map(pipeline.heldout, STAGES)]
        if stage == "export":
            lengths = [pipeline.runs[other].train.max_seq_len for other in STAGES]
            texts = [pipeline.data_dir / name for name in MIX_OUTPUTS if name.endswith("jsonl") and "_chinese" in name]
            return lengths, [tokenizer, *texts]
        run, start = pipeline.runs[stage], pipeline.start(stage)
        settings = run_settings(run, RESULT_NEUTRAL)
        if start is not None:
            del settings["from_weight"]  # what counts is the content of the weights, not their name
        data = _arrays(run.data_path)
        chosen = self._by_rule(pipeline, stage, self.hashes)
        return [settings, chosen, pipeline.processes(stage)], [tokenizer, *data, *([start] if start else [])]

    def _sources(self) -> list[Path]:
        """What the mix reads: the bundled tables that stand in for missing files, and the user's files."""
        bundled = [*(ROOT / "dataset").glob("*.jsonl"), *(ROOT / "dataset" / "samples").glob("*")]
        folder = source_dir(self.pipeline.data_dir)
        users = sorted(folder.glob("[!.]*")) if folder.is_dir() else []
        return [
            path
            for path in (*sorted(bundled), *users)
            if path.is_file() and not (path == folder / IDENTITY_SOURCE and self._is_unedited(path))
        ]

    def _is_unedited(self, identity: Path) -> bool:
        """Whether an identity file is as the mix wrote it: then it is no source of the user's."""
        mark = identity.with_name(IDENTITY_MARK)
        written = mark.read_text(encoding="utf-8").strip() if mark.is_file() else ""
        return self.hashes.sha256(identity) in {written, self.hashes.sha256(IDENTITY_SAMPLE)}

    def evaluation_fingerprint(self, stage: str) -> str:
        """What the evaluation of a stage depends on besides its weights; empty where a stage has none."""
        if stage not in STAGES:
            return ""
        profile = self.pipeline.profile
        read = [self.pipeline.heldout(stage)]
        if stage == "dpo":
            read.append(self.pipeline.heldout("sft"))
        if stage != "pretrain":
            read += [FIRST_MINUTES, DANGER_PROMPTS]
        settings = [as_dict(profile.evaluate), profile.mix.name, profile.mix.author]
        return fingerprint([settings, [self.hashes.sha256(path) for path in read]])

    def outputs(self, stage: str) -> list[Path]:
        """The files that a stage must have written, and those it wrote beside them."""
        pipeline = self.pipeline
        if stage == "mix":
            return [pipeline.data_dir / name for name in MIX_OUTPUTS]
        if stage == "tokenizer":
            return _files(pipeline.tokenizer_dir, "tokenizer.pkl") if pipeline.train_tokenizer else []
        if stage == "export":
            return [path for other in STAGES for path in _files(pipeline.tokens(other), "manifest.json")]
        return [pipeline.weights(stage)]

    # --- what became of it -------------------------------------------------------------------------------------

    def begin(self, stage: str) -> bool:
        """Decide about a stage: False when it is done, else True, with the way cleared for it to run or to go on."""
        record = self._record(stage)
        done = record.get("status") == "done"
        broken = record.get("status") == "redo" or (done and not self._outputs_are_whole(record))
        stale = bool(record) and record["fingerprint"] != self.fingerprint(stage)
        replaces = self._to_be_replaced(stage) if broken else record.get("replaces")
        if broken and stage == "export":  # which would take whole tensors for its own work; the others write anew
            _remove(self.hashes.locate(label) for label in record["outputs"])
        if stale and stage == "tokenizer" and not self.pipeline.train_tokenizer:
            self._set_trained_tokenizer_aside()
        made_from, judged_by = self.fingerprint(stage), self.evaluation_fingerprint(stage)
        judged_anew = bool(record) and record["evaluation"] != judged_by
        run_id = record.get("run_id", "")
        if done and not (broken or stale or judged_anew) and self._is_judged(stage, run_id):
            return False
        if not record or broken or stale or judged_anew:
            run_id = self._join_run(stage)
        self._remove_leftovers(stage)
        self._write(
            stage, status="running", fingerprint=made_from, evaluation=judged_by, run_id=run_id, replaces=replaces
        )
        return True

    def _set_trained_tokenizer_aside(self) -> None:
        """Keep the tokenizer of an earlier run under another name, where later stages do not find it."""
        trained = self.pipeline.out_dir / "tokenizer"
        if not trained.is_dir():
            return
        kept = trained.with_name("tokenizer.previous")
        shutil.rmtree(kept, ignore_errors=True)
        trained.replace(kept)
        note = f"{display(trained)}: not used without ENABLE_RUSTBPE=1; kept as {display(kept)}."
        print(both(note, "之前训练的分词器不再使用，已改名保留"), file=sys.stderr, flush=True)

    def must_start_over(self, stage: str) -> bool:
        """Whether a trainer must not take the weights that are there for its own: they are damaged, or to be made again.

        They stay until the new ones replace them, and until then a resume state, once there is one, is gone on with.
        """
        replaces = self._record(stage).get("replaces")
        if not replaces or replaces["weights"] != self._stamp(stage):
            return False
        states = (self.pipeline.out_dir / "checkpoints" / stage).glob("*/state.pt")
        return all(state.stat().st_mtime_ns < replaces["since_ns"] for state in states)

    def _to_be_replaced(self, stage: str) -> dict[str, Any] | None:
        """The weights (none: null) that a training stage which starts over has to replace, and since when."""
        return {"weights": self._stamp(stage), "since_ns": time.time_ns()} if stage in STAGES else None

    def _stamp(self, stage: str) -> list[int] | None:
        """Size and time of a stage's weights."""
        try:
            status = self.pipeline.weights(stage).stat()
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]

    def finish(self, stage: str, seconds: int) -> None:
        """Mark a stage as done. Raises: UserError when an output is missing."""
        record, outputs = self._record(stage), {}
        for path in self.outputs(stage):
            content = self.hashes.content(path)
            if content is None:
                raise UserError(
                    f"{display(path)}: missing, though stage {stage} ended without an error. "
                    "Rerun: bash scripts/run.sh --fresh.",
                    "该阶段没有写出应有的文件：请运行 bash scripts/run.sh --fresh",
                )
            outputs[self.hashes.label(path)] = content
        self._write(
            stage, status="done", fingerprint=record["fingerprint"], evaluation=record["evaluation"],
            run_id=record["run_id"], outputs=outputs, seconds=seconds,
        )  # fmt: skip

    def redo_from(self, stage: str) -> None:
        """Let a stage and all that follow start over under a new run id, however often this is interrupted."""
        self._write_run([])
        for later in PIPELINE[PIPELINE.index(stage) :]:
            outputs = self._record(later).get("outputs", {})
            self._write(later, status="redo", fingerprint="", evaluation="", run_id="", outputs=outputs)

    def run_id(self, stage: str) -> str:
        """The run that a stage was last started in."""
        return str(self._record(stage)["run_id"])

    def _record(self, stage: str) -> dict[str, Any]:
        return _read_record(self.folder / f"{stage}.json")

    def _write(
        self, stage: str, *, status: str, fingerprint: str, evaluation: str, run_id: str,
        outputs: Mapping[str, Any] | None = None, seconds: int = 0, replaces: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        write_json(
            self.folder / f"{stage}.json",
            {
                "status": status, "fingerprint": fingerprint, "evaluation": evaluation, "run_id": run_id,
                "outputs": dict(outputs or {}), "seconds": seconds, "replaces": replaces,
            },
        )  # fmt: skip

    def _outputs_are_whole(self, record: Mapping[str, Any]) -> bool:
        """Whether each output is there with the content it was recorded with (sizes first: most damage shows there)."""
        files = {self.hashes.locate(label): content for label, content in record["outputs"].items()}
        return all(path.is_file() and path.stat().st_size == was["size"] for path, was in files.items()) and all(
            self.hashes.sha256(path) == was["sha256"] for path, was in files.items()
        )

    def _is_judged(self, stage: str, run_id: str) -> bool:
        """Whether the evaluation's line stands in the results file; a stage without an evaluation needs none."""
        if stage not in STAGES:
            return True
        try:
            lines = (self.pipeline.tf_dir / "eval_results.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return any(_line_is_of(line, run_id, stage) for line in lines)

    def _join_run(self, stage: str) -> str:
        """The id under which a stage starts. A run holds each stage once, in order: what comes again gets a new run."""
        run = _read_record(self.folder / "run.json")
        if not run or any(PIPELINE.index(other) >= PIPELINE.index(stage) for other in run["stages"]):
            run = self._write_run([stage])
        else:
            run = self._write_run([*run["stages"], stage], run["run_id"])
        return str(run["run_id"])

    def _write_run(self, stages: list[str], run_id: str = "") -> dict[str, Any]:
        run = {"run_id": run_id or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}", "stages": stages}
        write_json(self.folder / "run.json", run)
        return run

    def _remove_leftovers(self, stage: str) -> None:
        """Remove the unfinished files of a run that was killed while it wrote."""
        out, data = self.pipeline.out_dir, self.pipeline.data_dir
        folders = {"mix": [data], "tokenizer": [out / "tokenizer"], "export": [self.pipeline.tokens(s) for s in STAGES]}
        for folder in folders.get(stage, [out, *(out / "checkpoints" / stage).glob("*/")]):
            _remove(path for path in folder.glob(".*.tmp") if path.is_file())


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _line_is_of(line: str, run_id: str, stage: str) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("run_id") == run_id and value.get("stage") == stage


def _arrays(data_path: Path) -> list[Path]:
    """The files whose content a trainer learns from: a folder's arrays, or the text file that was given instead."""
    path = _found(data_path)
    return sorted(path.rglob("*.npy")) if path.is_dir() else [path]


def _found(path: Path) -> Path:
    """The file or folder that a trainer will take for this name; the name itself while there is none."""
    try:
        return find_dataset(path)
    except UserError:
        return path  # not there yet, or wrong: the trainer tells


def _files(folder: Path, required: str) -> list[Path]:
    """The files of a folder but for hidden notes, `required` among them even where it is missing."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted({folder / required, *found})


# --- the commands, as arguments of the environment's Python ------------------------------------------------------


def mix_command(pipeline: Pipeline) -> list[str]:
    """Sources -> mixed records."""
    return [
        str(ROOT / "scripts" / "build_chinese_mix.py"),
        *("--profile", pipeline.profile_name),
        *("--output_dir", str(pipeline.data_dir)),
    ]


def tokenizer_command(pipeline: Pipeline) -> list[str]:
    """Mixed text -> tokenizer folder."""
    return [
        str(ROOT / "scripts" / "train_rustbpe_tokenizer.py"),
        *("--input", *map(str, pipeline.texts())),
        *("--output", str(pipeline.tokenizer_dir)),
        *("--vocab_size", str(pipeline.profile.model.vocab_size)),
    ]


def export_command(pipeline: Pipeline, stage: str) -> list[str]:
    """Mixed records -> token tensors of one stage."""
    train = pipeline.runs[stage].train
    return [
        *(str(ROOT / "scripts" / "export_embeddings.py"), stage),
        *("--input", str(pipeline.data_dir / f"{stage}_chinese.jsonl")),
        *("--output", str(pipeline.tokens(stage))),
        *("--tokenizer_dir", str(pipeline.tokenizer_dir)),
        *("--max-length", str(train.max_seq_len)),
        *("--num-workers", str(train.num_workers)),
    ]


def train_command(pipeline: Pipeline, stage: str) -> list[str]:
    """Tensors and starting weights -> weights; the user's flags come later, so that they win."""
    start, processes = pipeline.start(stage), pipeline.processes(stage)
    launcher = [str(ROOT / "trainer" / "torchrun.py"), "--standalone", "--nproc_per_node", str(processes)]
    return [
        *(launcher if processes > 1 else []),
        str(ROOT / "trainer" / STAGE_TABLE[stage].trainer),
        *("--profile", pipeline.profile_name),
        *("--data_path", str(pipeline.tokens(stage))),
        *("--out_dir", str(pipeline.out_dir)),
        *("--tf_dir", str(pipeline.tf_dir)),
        *("--tokenizer_dir", str(pipeline.tokenizer_dir)),
        *pipeline.extra[stage],
        *(("--from_weight", str(start)) if start else ()),  # the file that the name stands for in this run
    ]


def evaluate_command(pipeline: Pipeline, stage: str, run_id: str) -> list[str]:
    """Weights and held-out records -> one line in the results file."""
    start = pipeline.start(stage)
    return [
        *(str(ROOT / "scripts" / "evaluate_stage.py"), "--stage", stage),
        *("--profile", pipeline.profile_name),
        *("--checkpoint", str(pipeline.weights(stage))),
        *(("--reference", str(start)) if stage == "dpo" and start else ()),
        *("--data_path", str(pipeline.heldout(stage))),
        *("--results_file", str(pipeline.tf_dir / "eval_results.jsonl")),
        *("--tokenizer_dir", str(pipeline.tokenizer_dir)),
        *("--device", pipeline.runs[stage].train.device),
        *("--run_id", run_id),
    ]
