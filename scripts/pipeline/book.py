"""Which stages are done: the state of each stage, what follows from it, and its record.

A stage is done when its fingerprint (`fingerprints.py`) is that of its last run, its outputs are
still those that the run wrote, and its evaluation stands in the results file. Weights are never
removed here: the trainer replaces them once the new ones are complete.
"""

import json
import secrets
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from configs.artifacts import write_json
from configs.messages import both
from configs.paths import ROOT, display
from configs.schema import UserError
from configs.stage_table import STAGES
from scripts.pipeline.fingerprints import evaluation_fingerprint, outputs_of, stage_fingerprint
from scripts.pipeline.hashes import Hashes, read_notes
from scripts.pipeline.plan import PIPELINE, Pipeline


class State(Enum):
    """What has become of a stage, by its record and its files: the first that is true."""

    NEW = "never started"
    REDO = "the user asked to do it again"
    BROKEN = "an output is missing, or is not what the stage wrote"
    STALE = "its settings, its recipe or its inputs are others now"
    OTHER_EXAM = "its evaluation would be another one now"
    INTERRUPTED = "it was stopped before its end"
    NOT_JUDGED = "the line of its evaluation is missing"
    DONE = "nothing is left to do"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What `OUT_DIR/stages/STAGE.json` notes. Files of earlier versions may lack a field."""

    status: str
    """`running`, `done` or `redo`."""
    fingerprint: str = ""
    """What it was made from."""
    evaluation: str = ""
    """What its evaluation depended on."""
    run_id: str = ""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> size and SHA-256 of each file that it wrote."""
    seconds: int = 0
    """How long it took."""
    replaces: dict[str, Any] | None = None
    """Of a training stage that starts over: the `weights` that it replaces (size and time; null:
    none) and `since_ns`."""

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """The record of a file; None without one. Raises: UserError if it is damaged."""
        notes = read_notes(path)
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in notes.items() if name in known}) if "status" in notes else None


class StageBook:
    """The records of all stages of one pipeline, and what follows from them."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.folder = pipeline.out_dir / "stages"
        bases = {"out": pipeline.out_dir, "data": pipeline.data_dir, "root": ROOT}
        self.hashes = Hashes(self.folder / "hashes.json", bases)

    def fingerprint(self, stage: str) -> str:
        """What the result of a stage depends on."""
        return stage_fingerprint(self.pipeline, stage, self.hashes)

    # --- before a stage ---------------------------------------------------------------------------

    def state(self, stage: str) -> State:
        """What has become of a stage. Raises: UserError if its record is damaged."""
        record = self._record(stage)
        if record is None:
            return State.NEW
        if record.status == "redo":
            return State.REDO
        if record.status == "done" and not self._outputs_are_whole(record):
            return State.BROKEN
        if record.fingerprint != self.fingerprint(stage):
            return State.STALE
        if record.evaluation != self._evaluation(stage):
            return State.OTHER_EXAM
        if record.status != "done":
            return State.INTERRUPTED
        return State.DONE if self._is_judged(stage, record.run_id) else State.NOT_JUDGED

    def begin(self, stage: str) -> bool:
        """Decide about a stage. False: it is done. True: it must run, and all is ready for that."""
        state, record = self.state(stage), self._record(stage)
        run_id = record.run_id if record else ""
        replaces = record.replaces if record else None
        match state:
            case State.DONE:
                return False
            case State.INTERRUPTED | State.NOT_JUDGED:
                pass  # the run resumes under its id
            case State.NEW | State.OTHER_EXAM:
                run_id = self._join_run(stage)
            case State.STALE:
                self._clear_tokenizer(stage)
                run_id = self._join_run(stage)
            case State.REDO | State.BROKEN:
                self._clear_tensors(stage, record)
                self._clear_tokenizer(stage)
                run_id, replaces = self._join_run(stage), self._to_be_replaced(stage)
        self._remove_leftovers(stage)
        now = Record(
            status="running",
            fingerprint=self.fingerprint(stage),
            evaluation=self._evaluation(stage),
            run_id=run_id,
            replaces=replaces,
        )
        self._write(stage, now)
        return True

    def _clear_tensors(self, stage: str, record: Record | None) -> None:
        """Remove the tensors that the export wrote. It would take whole ones as they are, while the
        other stages write theirs again."""
        if stage == "export" and record is not None:
            _remove(self.hashes.locate(label) for label in record.outputs)

    def _clear_tokenizer(self, stage: str) -> None:
        """Rename the trained tokenizer if none is trained any more, so that no stage finds it."""
        trained = self.pipeline.out_dir / "tokenizer"
        if stage != "tokenizer" or self.pipeline.train_tokenizer or not trained.is_dir():
            return
        kept = trained.with_name("tokenizer.previous")
        shutil.rmtree(kept, ignore_errors=True)
        trained.replace(kept)
        note = f"{display(trained)}: not used without ENABLE_RUSTBPE=1; kept as {display(kept)}."
        print(both(note, "之前训练的分词器不再使用，已改名保留"), file=sys.stderr, flush=True)

    def _remove_leftovers(self, stage: str) -> None:
        """Remove the unfinished files of a run that was killed while it wrote."""
        pipeline = self.pipeline
        match stage:
            case "mix":
                folders = [pipeline.data_dir]
            case "tokenizer":
                folders = [pipeline.out_dir / "tokenizer"]
            case "export":
                folders = [pipeline.tokens(other) for other in STAGES]
            case _:
                states = pipeline.out_dir / "checkpoints" / stage
                folders = [pipeline.out_dir, pipeline.weights(stage).parent, *states.glob("*/")]
        for folder in folders:
            _remove(path for path in folder.glob(".*.tmp") if path.is_file())

    # --- weights that are made again --------------------------------------------------------------

    def must_start_over(self, stage: str) -> bool:
        """Whether a trainer must not resume from what is there, because its weights are damaged or
        are to be made again.

        The old weights stay until the new ones replace them. Once the trainer has saved a resume
        state after that decision, it resumes from it.
        """
        record = self._record(stage)
        replaces = record.replaces if record else None
        if not replaces or replaces["weights"] != self._stamp(stage):
            return False
        # A state newer than the decision belongs to the new weights: the trainer may resume it.
        states = (self.pipeline.out_dir / "checkpoints" / stage).glob("*/state.pt")
        return all(state.stat().st_mtime_ns < replaces["since_ns"] for state in states)

    def _to_be_replaced(self, stage: str) -> dict[str, Any] | None:
        """What a stage that trains and starts over has to replace: its weights (None without any),
        and the time of this decision. None for other stages."""
        return {"weights": self._stamp(stage), "since_ns": time.time_ns()} if stage in self.pipeline.runs else None

    def _stamp(self, stage: str) -> list[int] | None:
        """Size and time of a stage's weights."""
        try:
            status = self.pipeline.weights(stage).stat()
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]

    # --- after a stage ----------------------------------------------------------------------------

    def finish(self, stage: str, seconds: int) -> None:
        """Mark a stage as done. Raises: UserError when an output is missing."""
        record, outputs = self._begun(stage), {}
        for path in outputs_of(self.pipeline, stage):
            content = self.hashes.content(path)
            if content is None:
                raise UserError(
                    f"{display(path)}: missing, though stage {stage} ended without an error. "
                    "Rerun: bash scripts/run.sh --fresh.",
                    "该阶段没有写出应有的文件：请运行 bash scripts/run.sh --fresh",
                )
            outputs[self.hashes.label(path)] = content
        done = Record(
            status="done",
            fingerprint=record.fingerprint,
            evaluation=record.evaluation,
            run_id=record.run_id,
            outputs=outputs,
            seconds=seconds,
        )
        self._write(stage, done)

    def redo_from(self, stage: str) -> None:
        """Let a stage and all later ones of this call start over under a new run id, even if this
        is interrupted in between."""
        self._write_run([])
        stages = self.pipeline.stages
        for later in stages[stages.index(stage) :]:
            record = self._record(later)
            self._write(later, Record(status="redo", outputs=record.outputs if record else {}))

    # --- what was written, and what was judged ----------------------------------------------------

    def _outputs_are_whole(self, record: Record) -> bool:
        """Whether each output has the content that was recorded. Sizes come first, because most
        damage changes them and they are quick to read."""
        files = {self.hashes.locate(label): content for label, content in record.outputs.items()}
        return all(path.is_file() and path.stat().st_size == was["size"] for path, was in files.items()) and all(
            self.hashes.sha256(path) == was["sha256"] for path, was in files.items()
        )

    def _evaluation(self, stage: str) -> str:
        return evaluation_fingerprint(self.pipeline, stage, self.hashes)

    def _is_judged(self, stage: str, run_id: str) -> bool:
        """Whether the evaluation's line stands in the results file; a stage without an evaluation
        needs none."""
        if stage not in self.pipeline.runs:
            return True
        try:
            lines = (self.pipeline.tf_dir / "eval_results.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return any(_line_is_of(line, run_id, stage) for line in lines)

    # --- records ----------------------------------------------------------------------------------

    def run_id(self, stage: str) -> str:
        """The run that a stage was last started in."""
        return self._begun(stage).run_id

    def _join_run(self, stage: str) -> str:
        """The id of the run that a stage starts in. A run holds each stage once and in order, so a
        stage that comes again starts a new run."""
        # A stage that the run has already reached starts a new run.
        run = read_notes(self.folder / "run.json")
        if not run or any(PIPELINE.index(other) >= PIPELINE.index(stage) for other in run["stages"]):
            run = self._write_run([stage])
        else:
            run = self._write_run([*run["stages"], stage], run["run_id"])
        return str(run["run_id"])

    def _write_run(self, stages: list[str], run_id: str = "") -> dict[str, Any]:
        run = {"run_id": run_id or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}", "stages": stages}
        write_json(self.folder / "run.json", run)
        return run

    def _record(self, stage: str) -> Record | None:
        return Record.read(self.folder / f"{stage}.json")

    def _begun(self, stage: str) -> Record:
        record = self._record(stage)
        assert record is not None, f"stage {stage} was never begun"
        return record

    def _write(self, stage: str, record: Record) -> None:
        write_json(self.folder / f"{stage}.json", asdict(record))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _line_is_of(line: str, run_id: str, stage: str) -> bool:
    """Whether a line of the results file belongs to this stage of this run."""
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("run_id") == run_id and value.get("stage") == stage
