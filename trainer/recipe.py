"""What all stages with the shared loop do: begin or resume, train, write the weights.

A program such as `train_full_sft.py` calls, in this order: `gather` (trainer/facts.py), `is_done`,
`begin`, and `Training.fit`.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.artifacts import require_writable
from configs.cli import silence_terminal
from configs.messages import warning
from configs.paths import display
from configs.schema import TrainConfig, UserError
from configs.stage_table import RECIPE_VERSION
from inference.loading import keep_tokenizer
from model.device import DTYPES, dtype_name, seed_everything
from model.manifest import StartFile, TrainedSettings, TrainingFile, WeightsManifest
from model.model_minillm import MiniLLM
from model.weights import (
    check_tokenizer,
    keep_previous,
    load_strict,
    previous,
    read_made,
    read_weights,
    require_finite,
    save_weights,
)
from trainer.autoconfig import DataFacts, chosen_values, fill_in, with_chosen
from trainer.facts import Facts
from trainer.flops import known_peak, training_flops
from trainer.loop import BatchStream, Objective, Rows, Run, StopSignal, TrainingStopped, steps_of_run, train
from trainer.metrics import Metrics
from trainer.optim import decay_has_begun
from trainer.rehearsal import TrialStep, needs_rehearsal, rehearse
from trainer.resume import fitting, saved_states
from trainer.runtime import Runtime
from trainer.validation import Validator, validator


def is_done(facts: Facts) -> bool:
    """Whether this run was finished before, so that there is nothing to train.

    This is true if the weights file has the fingerprint of this run. Then the user is
    told, the resume state of this run is deleted, and the process leaves its group of processes.
    """
    path, state = facts.weights_path, facts.state.path
    if not facts.run.from_resume or not path.exists():
        return False
    # If the state is newer than the weights, a new training of these weights was interrupted.
    if state.exists() and state.stat().st_mtime_ns > path.stat().st_mtime_ns:
        return False
    try:
        manifest = read_made(path)
    except UserError:
        return False  # the file is damaged: train again and replace it
    if manifest.fingerprint != facts.fingerprint:
        return False
    facts.say(
        f"{display(path)} is already the result of these settings, data and starting weights. "
        "Pass --from_resume 0 to train it again."
    )
    facts.state.clear()
    facts.runtime.close()
    return True


Save = Callable[[Path, MiniLLM, WeightsManifest], None]
"""Writes what a training has made: weights, or an adapter alone."""
StreamMaker = Callable[[Rows, Objective, TrainConfig, Runtime], BatchStream]
"""Makes the batches of each step from the rows."""


@dataclass
class Training:
    """One training: the model before its first step, and all that `fit` needs to train it."""

    facts: Facts
    config: TrainConfig
    """The settings with nothing left open."""
    runtime: Runtime
    """As in the facts. But a resumed run uses the dtype with which it began."""
    model: MiniLLM
    resume: dict[str, Any] | None
    """The resume state to continue from. None: a fresh run, or the state is already restored."""
    save: Save | None = None
    """Writes the result; None: as whole weights."""
    stop: StopSignal = field(default_factory=StopSignal)

    def fit(
        self,
        rows: Rows,
        objective: Objective,
        validation: Rows | None,
        also: Mapping[str, Rows] | None = None,
        stream_of: StreamMaker = BatchStream,
    ) -> int:
        """Train and write the weights.

        Args: rows: the training data. validation: the held-out data of the validation loss. also:
        name -> other held-out data, whose loss is shown as `NAME_validation_loss`. stream_of: makes
        the batches of each step.
        Returns: the exit code of the program: 0, or the exit code for the signal that stopped the
        run.
        Raises: UserError. TrainingDiverged is one kind of it.
        """
        facts = self.facts
        # Rehearse first, because this may change the size of the micro-batch. The number of steps
        # depends on that size.
        self._rehearse(rows, objective, validation)
        stream = stream_of(rows, objective, self.config, self.runtime)
        num_steps = stream.num_steps()
        facts.say(description(self, stream, num_steps))
        metrics = self.open_metrics(num_steps)
        run = Run(
            self.config,
            self.runtime,
            num_steps=num_steps,
            state=facts.state,
            resume=self.resume,
            metrics=metrics,
            validate=self._validator(objective, validation, also or {}),
            stop=self.stop,
            token_cost=token_cost(facts, self.runtime),
        )
        self.resume = None  # now only `run` holds it, and `run` frees it after loading
        watch_signals(self.stop)
        # Each process needs its own random numbers for dropout. Set the seed here, just before the
        # first step, so that random numbers drawn earlier have no influence on them.
        seed_everything(self.config.seed + self.runtime.rank)
        started, kept = time.perf_counter(), None
        try:
            with explaining_helper_failure(facts):
                train(self.config, self.model, stream, objective, run)
                require_finite(self.model, facts.weights_path, f"after step {num_steps} of stage {facts.run.stage}")
                kept = self.write_weights()  # before `metrics.close`, whose last upload may take long
        except TrainingStopped as error:
            return self.tell_of_stop(error, metrics)
        finally:
            if metrics is not None:
                metrics.close()
        facts.say(f"{display(facts.weights_path)} written after {time.perf_counter() - started:.0f} s of training")
        if kept is not None:
            facts.say(f"the weights of before are {display(kept)}")
        self.runtime.barrier()
        self.runtime.close()
        return 0

    def _rehearse(self, rows: Rows, objective: Objective, validation: Rows | None) -> None:
        """Try one step, and keep settings with which this step works."""
        if needs_rehearsal(self.config, self.runtime):
            step = TrialStep(self.model, rows, objective, validation, self.runtime, self.config)
            self.config = rehearse(
                self.config,
                self.model,
                step,
                self.runtime,
                free_to_choose=not self.facts.run.train.batch_size,
                resuming=self.resume is not None,
            )

    def open_metrics(self, num_steps: int) -> Metrics | None:
        """The log of the main process; None in other processes. Tells from where a run resumes."""
        facts, first_step = self.facts, self.resume["step"] if self.resume else 0
        if self.resume:
            facts.say(f"resuming after step {first_step} of {num_steps} ({display(self.resume['path'])})")
        if not self.runtime.is_main:
            return None
        return Metrics(
            facts.run.tf_dir,
            facts.run.stage,
            facts.fingerprint,
            num_steps=num_steps,
            first_step=first_step,
            use_wandb=self.config.use_wandb,
            settings=facts.settings,
        )

    def _validator(self, objective: Objective, rows: Rows | None, also: Mapping[str, Rows]) -> Validator | None:
        """A function that computes the validation losses. Without rows: None, and a message."""
        if rows is None or len(rows) == 0:
            self.facts.say("no validation data beside the tensors: no validation loss will be shown")
            return None
        validators = {
            name: validator(objective, part, self.facts.tokenizer, self.runtime, batch_size=self.config.batch_size)
            for name, part in {"": rows, **also}.items()
        }

        def validate(model: nn.Module) -> dict[str, float]:
            found = {name: one(model) for name, one in validators.items()}
            return {f"{name}_{key}".lstrip("_"): value for name, part in found.items() for key, value in part.items()}

        return validate

    def write_weights(self) -> Path | None:
        """Write the weights with their manifest, and remove the resume state.

        Returns: where older weights of other settings are kept. None: there were none.
        """
        if not self.runtime.is_main:
            return None
        keep_tokenizer(self.facts.tokenizer, self.facts.run.out_dir)
        kept = keep_previous(self.facts.weights_path, self.facts.fingerprint)
        save = self.save or save_weights
        save(self.facts.weights_path, self.model, weights_manifest(self.facts, self.config, self.runtime))
        self.facts.state.clear()
        return kept

    def tell_of_stop(self, error: TrainingStopped, metrics: Metrics | None) -> int:
        """Tell the user how to resume. Returns: the exit code."""
        if metrics is not None:
            metrics.close_bar()
        # With --from_resume 0 the same command would start again from the first step.
        again = "the same command" if self.facts.run.from_resume else "the same command without --from_resume 0"
        self.facts.say(f"stopped ({error}); the state is saved, {again} resumes from here")
        return self.stop.exit_code or 143


# --- how it begins --------------------------------------------------------------------------------


def begin(facts: Facts, prepare: Callable[[MiniLLM], None] | None = None, save: Save | None = None) -> Training:
    """Find a resume state, choose the settings that are left open, and build the model.

    The model has random weights or the starting weights. If there is a resume state, the loop loads
    it later (`Run.restore`).
    Args: prepare: changes the model once it has its starting weights: attaches an adapter, adds a
    head. It is called in a resumed run too; what it freezes is not in the resume state, and keeps
    the starting weights. save: writes the result; None: as whole weights.
    Raises: UserError if a folder can't be written, or if the resume state or the starting weights
    are damaged.
    """
    for folder in (facts.run.out_dir, facts.run.tf_dir):
        require_writable(folder)
    seed_everything(facts.config.seed)  # for the random weights below
    resume = find_state(facts) if facts.run.from_resume else None
    config, runtime = resumed_settings(resume, facts) if resume is not None else fresh_settings(facts)
    model = MiniLLM(facts.shape)
    if facts.start is not None and (resume is None or prepare is not None):
        state, _, manifest = read_weights(facts.start.path)
        if facts.start.path.is_dir():  # a folder knows no fingerprint; its tokenizer was read with it
            manifest = facts.start.manifest
        check_tokenizer(facts.start.path, manifest, facts.tokenizer.sha256, display(facts.tensors_path))
        load_strict(model, state, facts.start.path)
    if prepare is not None:
        prepare(model)
    model.to(runtime.device)
    model.gradient_checkpointing = config.gradient_checkpointing
    if config.use_compile:
        model.compile_blocks()  # only a preparation: the rehearsal compiles, and notices a failure
    return Training(facts, config, runtime, model, resume, save)


def find_state(facts: Facts) -> dict[str, Any] | None:
    """The resume state to continue from; None if there is none.

    First we look for a state of exactly this run. If there is none, we take the state of a shorter
    run that stopped before its warm-down. Until that point this longer run would have done the
    same, except that its warm-up may be longer. If a state can't be used, the user is told why.
    Raises: UserError if the state of exactly this run is damaged.
    """
    state = facts.state.load()
    if state is not None:
        return state
    # The other run chose the size of a step. With this size, compute how many steps our run would
    # have.
    for other in facts.state.others():
        with fitting(other["path"]):
            config = with_chosen(facts.config, other["choices"])
            num_steps = steps_of_run(config, facts.epoch_rows, facts.runtime.world_size)
        step, before = other["step"], other["num_steps"]
        where = f"{display(other['path'])}: step {step} of {before}"
        if num_steps > before and not decay_has_begun(step, before, config):
            facts.say(f"{where}, now {num_steps}: resuming under the schedule of the longer run")
            return other
        reason = "whose warm-down had begun" if num_steps > before else f"and this run has {num_steps}"
        facts.say(f"{where}, {reason}: it can't be resumed as this run, and stays")
    return None


def fresh_settings(facts: Facts) -> tuple[TrainConfig, Runtime]:
    """The settings of a run that starts from its first step. Every setting has a value.

    The user is told which older weights this run will replace.
    """
    tell_what_starts_anew(facts)
    data, fresh = DataFacts.of(facts.data), facts.start is None
    config = fill_in(facts.config, facts.run.stage, facts.shape, data, facts.runtime, fresh=fresh)
    return config, facts.runtime


def resumed_settings(resume: dict[str, Any], facts: Facts) -> tuple[TrainConfig, Runtime]:
    """The settings that the interrupted run had chosen, so that the result is the same, bit by bit.

    But on another machine its dtype or its number of threads may be very slow. So there both are
    chosen again. The user is told that the numbers will differ by rounding. Each step still has the
    same rows.
    Raises: UserError if the state does not fit this run.
    """
    chosen, runtime = resume["choices"], facts.runtime
    with fitting(resume["path"]):
        config = with_chosen(facts.config, chosen)
        if chosen["machine"] == runtime.machine:
            torch.set_num_threads(chosen["threads"])
            return config, replace(runtime, dtype=DTYPES[chosen["dtype"]])
        # If the new machine chooses the same values, no warning is needed.
        now = chosen_values(config, runtime)
        if any(chosen[name] != now[name] for name in ("device", "dtype", "threads")):
            facts.say(
                warning(
                    f"this run began on another machine ({_machine(chosen)}) and resumes here with dtype and threads chosen "
                    f"again ({_machine(now)}): its steps and their rows stay, its numbers differ by rounding. --from_resume 0 "
                    "starts afresh.",
                    "换了机器：步数和数据不变，数值有舍入差异；--from_resume 0 从头训练",
                )
            )
    return config, runtime


def _machine(chosen: dict[str, Any]) -> str:
    """A few words about a machine, such as `cpu, float32, 4 threads`."""
    machine = chosen["machine"]
    return f"{machine['gpu'] or machine['device']}, {chosen['dtype']}, {chosen['threads']} threads"


def tell_what_starts_anew(facts: Facts) -> None:
    """Tell the user, before the first step, what happens to older weights and resume states."""
    path, manifest = facts.weights_path, None
    with suppress(UserError):  # no such file, or a damaged one
        manifest = read_made(path)
    if manifest is not None and manifest.fingerprint != facts.fingerprint:
        facts.say(
            f"{display(path)}: made with {differences(manifest, facts)}; training starts anew. The old "
            f"weights stay until the new ones are complete, then as {previous(path).name}"
        )
    if facts.run.from_resume and (states := saved_states(facts.state.stage_folder)):
        facts.say(f"no resume state fits these settings and data; {display(states[0])}, of others, stays")


DIFFERENCES = {
    "recipe_version": "another version of the recipe",
    "tensors": "other data",
    "start": "other starting weights",
}
"""Part of a manifest -> the words for the user if this part differs."""


def differences(manifest: WeightsManifest, facts: Facts) -> str:
    """A few words about the differences between this run and the run that made some weights.

    Args: manifest: the manifest of those weights.
    """
    now = weights_manifest(facts, facts.config, facts.runtime)
    found = []
    # First list settings that differ, then other parts of the manifest. Three differences are
    # enough to understand the reason.
    old = manifest.settings
    for part, before in (("model", old.model), ("train", old.train)):
        found += [
            f"{name} {before.get(name)} (now {value})"
            for name, value in facts.settings[part].items()
            if before.get(name) != value
        ]
    found += [words for name, words in DIFFERENCES.items() if getattr(manifest, name) != getattr(now, name)]
    return ", ".join(found[:3]) + (" ..." if len(found) > 3 else "") or "other rules or another number of processes"


# --- what is said and written ---------------------------------------------------------------------


def weights_manifest(facts: Facts, config: TrainConfig, runtime: Runtime) -> WeightsManifest:
    """What the weights are made from. It is saved with them (docs/formats.md)."""
    start, stage, source = facts.start, facts.run.stage, facts.data.source
    # The training data of earlier stages: the manifest of the starting weights lists it. Below, the
    # data of this stage is added. An evaluation refuses all data in this list.
    inherited = start.manifest.training_data if start else ()
    ours = TrainingFile(path=source.path, records=source.records, sha256=source.sha256)
    new = [*(file for file in facts.also_seen if file not in inherited), ours]
    return WeightsManifest(
        stage=stage,
        profile=facts.run.profile,
        fingerprint=facts.fingerprint,
        recipe_version=RECIPE_VERSION[stage],
        settings=TrainedSettings(**facts.settings),
        resolved=facts.resolved,
        tokenizer_sha256=facts.tokenizer.sha256,
        tensors=facts.data.fingerprint,
        training_data=(*inherited, *new),
        inputs=facts.inputs,
        start=StartFile(path=start.path.name, sha256=start.sha256) if start else None,
        choices=chosen_values(config, runtime),
        torch=str(torch.__version__),  # as text, because a safe load refuses torch's own type
    )


def description(training: Training, stream: BatchStream, num_steps: int) -> str:
    """One line about what will be trained, how, and where."""
    config, runtime, shape = training.config, training.runtime, training.model.config
    kind = f"MoE, {shape.num_experts} experts" if shape.use_moe else "dense"
    return (
        f"{training.facts.run.stage}: {training.model.num_parameters():,} trainable parameters "
        f"(hidden {shape.hidden_size} x {shape.num_hidden_layers} layers, {kind}); {config.optimizer}, "
        f"lr {config.learning_rate:g}; {len(stream.rows):,} rows, {stream.rows_per_step} a step "
        f"({config.accumulation_steps} x {config.batch_size}), {num_steps} steps; "
        f"{runtime.device}, {dtype_name(runtime.dtype)}, {torch.get_num_threads()} threads"
        + (", compiled" if config.use_compile else "")
        + (f", {runtime.world_size} processes" if runtime.world_size > 1 else "")
    )


def token_cost(facts: Facts, runtime: Runtime) -> float:
    """The operations for training one token, divided by the operations that all devices together
    can do in a second. 0 if this is unknown."""
    peak = known_peak(runtime.device, runtime.dtype)
    if peak is None:
        return 0.0
    return training_flops(facts.shape, DataFacts.of(facts.data).row_tokens) / (peak * runtime.world_size)


# --- how it ends early ----------------------------------------------------------------------------


def watch_signals(stop: StopSignal) -> None:
    """Let Ctrl-C, SIGTERM and a closed terminal end the run after the current step.

    A second Ctrl-C ends the run at once, without saving.
    """

    def handler(signum: int, frame: object) -> None:
        if stop.exit_code and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop.exit_code = 128 + signum
        stop.reason = signal.Signals(signum).name

    def hung_up(signum: int, frame: object) -> None:
        signal.signal(signum, signal.SIG_IGN)  # ignore a second hangup, because it must not stop the save
        handler(signum, frame)
        silence_terminal()  # printing to a closed terminal would fail before the state is saved

    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, hung_up)


@contextmanager
def explaining_helper_failure(facts: Facts) -> Iterator[None]:
    """If a helper process failed, show its error instead of torch's error of a broken connection.

    Raises: UserError with the last lines of the helper's output.
    """
    try:
        yield
    except RuntimeError as error:
        failure = facts.group.failure() if facts.group is not None else None
        if failure is None:
            raise
        raise UserError(
            f"a helper process ended in the middle of the run: {failure}\nThe same command goes on from the last save; "
            "--cpu_processes 1 trains in one process, with less memory.",
            "辅助进程中途退出：重新运行同一命令会接着训练，或加 --cpu_processes 1",
        ) from error
