"""The frame of every supervised stage: flags -> data -> starting weights -> loop -> weights with their manifest."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from configs.artifacts import fingerprint, require_writable
from configs.cli import silence_terminal
from configs.flags import TrainRun, run_settings
from configs.messages import warning
from configs.paths import display, find_dataset, latest_weights
from configs.schema import RESULT_NEUTRAL, UserError, as_dict
from configs.stage_table import DATA_STEMS, RECIPE_VERSION, STAGE_TABLE, tensor_folder, weight_file
from dataset.records import bare_name
from dataset.tensors import check_contents, read_manifest, require_kind
from dataset.tokenizer import RustBPETokenizer
from dataset.tokens.build import ensure_tensors
from evaluation.likelihood import bits_per_byte, token_bytes
from model.device import DTYPES, choose_device, dtype_name, seed_everything
from model.model_minillm import MiniLLM
from model.weights import (
    check_tokenizer,
    keep_previous,
    load_model,
    load_strict,
    previous,
    read_weights,
    require_finite,
    save_weights,
    weights_fingerprint,
)
from trainer.choices import fill_in, rehearse, repeat, require_memory, resolved_values, row_length
from trainer.flops import known_peak, training_flops
from trainer.loop import (
    BatchStream,
    Objective,
    Rows,
    Run,
    StopSignal,
    TrainingStopped,
    choices,
    steps_of_run,
    train,
)
from trainer.metrics import Metrics
from trainer.objectives import NextToken
from trainer.optim import decay_has_begun
from trainer.processes import start_group
from trainer.resume import ResumeState, fitting, saved_states
from trainer.runtime import Runtime

VALIDATION_ROWS = 128
"""Rows, evenly spread over the validation data, that a validation loss is taken over."""
LENGTH_SETTINGS = ("epochs", "max_steps")
"""What may be raised while a run is stopped, before its warm-down has begun: it resumes as a longer run."""


class Stage:
    """One trainer's call, step by step; the recipes in `train_*.py` read top to bottom."""

    def __init__(self, run: TrainRun) -> None:
        self.run, self.config = run, run.train
        self.data = STAGE_TABLE[run.stage].data
        self.stop = StopSignal()
        self.group = start_group(run, choose_device(run.train.device))
        self.runtime = Runtime.start(
            run.train.device, run.train.dtype, deterministic=run.train.deterministic, group=self.group
        )
        if (
            self.group is not None and self.config.accumulation_steps
        ):  # a step keeps its rows: each takes some of its parts
            parts = self.config.accumulation_steps // self.group.world_size
            self.config = replace(self.config, accumulation_steps=parts)
        self.tokenizer = RustBPETokenizer.from_directory(run.tokenizer_dir)
        self.tensors_path = self._tensors()
        self.data_manifest = read_manifest(self.tensors_path)
        self._check_data()
        self.start_path = self._start_path()
        self.start_sha256, self.start_shape = "", run.model
        self.start_manifest: dict[str, Any] = {}
        if self.start_path is not None:  # noted now: hours later, at the end, the file may be another one
            self.start_sha256 = weights_fingerprint(self.start_path)
            _, self.start_shape, self.start_manifest = read_weights(self.start_path)
        require_memory(self._shape())
        self.settings = run_settings(replace(run, model=self._shape()), RESULT_NEUTRAL)
        del self.settings["from_weight"]  # what counts is the content of the starting weights, not their name
        self.resolved = resolved_values(
            run.train, run.stage, self._shape(), self.data_manifest, fresh=self.start_path is None
        )
        self.fingerprint, family = self._fingerprints()
        self.weights_path = run.out_dir / weight_file(run.stage, self._shape())
        self.state = ResumeState(run.out_dir / "checkpoints" / run.stage, self.fingerprint, family)
        self.resume: dict[str, Any] | None = None

    # --- what it is made of -------------------------------------------------------------------------------------

    def _fingerprints(self) -> tuple[str, str]:
        """What the result depends on, as one hash; and the same but for the length of the run."""
        version, data = RECIPE_VERSION[self.run.stage], self.data_manifest["fingerprint"]
        inputs = [version, data, self.start_sha256, self.runtime.world_size]
        train = {name: value for name, value in self.settings["train"].items() if name not in LENGTH_SETTINGS}
        resolved = {name: value for name, value in self.resolved.items() if name != "tokens_per_step"}  # by the length
        family = fingerprint([*inputs, self.settings | {"train": train}, resolved])
        return fingerprint([*inputs, self.settings, self.resolved]), family

    def _tensors(self) -> Path:
        """The tensors of the data path; a JSONL file is turned into tensors beside it first."""
        path = self.run.data_path
        if path.suffix != ".jsonl" or not tensors_beside(path, self.data).is_dir():
            path = find_dataset(path)  # a JSONL whose tensors exist may be gone
        if path.is_dir():
            return path
        output = tensors_beside(path, self.data)
        if self.runtime.is_main:
            ensure_tensors(
                self.data,
                path,
                output,
                self.tokenizer,
                max_length=self.config.max_seq_len,
                num_workers=self.config.num_workers,
            )
        self.runtime.barrier()
        return output

    def _check_data(self) -> None:
        manifest, where = self.data_manifest, display(self.tensors_path)
        if self.runtime.is_main:
            check_contents(self.tensors_path, manifest)
        self.runtime.barrier()
        require_kind(self.tensors_path, manifest, self.data)
        if manifest["tokenizer_sha256"] != self.tokenizer.sha256:
            raise UserError(
                f"{where}: made with another tokenizer ({manifest['tokenizer_sha256'][:8]}) than "
                f"{display(self.run.tokenizer_dir)} ({self.tokenizer.sha256[:8]}). "
                f"Rerun python scripts/export_embeddings.py {DATA_STEMS[self.data]}, or pass --tokenizer_dir.",
                "数据用的是另一个分词器：请重新运行该命令，或用 --tokenizer_dir 指定",
            )
        if manifest["max_length"] > self.config.max_seq_len:
            raise UserError(
                f"{where}: rows of {manifest['max_length']} tokens, but --max_seq_len is {self.config.max_seq_len}. "
                f"Rerun python scripts/export_embeddings.py {DATA_STEMS[self.data]} --max-length {self.config.max_seq_len}.",
                "数据的行比 --max_seq_len 长：请重新运行该命令",
            )

    def _start_path(self) -> Path | None:
        """The weights that `--from_weight` names: a path, or a stage's name in the output folder."""
        name = self.run.from_weight
        if name == "none":
            return None
        if name.endswith(".pth") or os.sep in name:
            return find_dataset(Path(name))
        flags = self.run.shape_flags
        path = latest_weights(
            name, self.run.out_dir, hidden_size=flags.get("hidden_size"), use_moe=flags.get("use_moe")
        )
        self.say(f"starting from {display(path)}")
        return path

    def _shape(self) -> Any:
        """The shape: that of the starting weights, which no flag may contradict, else the one asked for."""
        if self.start_path is None:
            longest = self.config.max_seq_len
            shape = replace(self.run.model, vocab_size=self._vocab_size(), original_max_position_embeddings=longest)
            return shape.resolve()
        shape = self.start_shape
        for key, value in self.run.shape_flags.items():
            if key != "dropout" and getattr(shape, key) != value:
                raise UserError(
                    f"--{key} {value}: {display(self.start_path)} was made with {getattr(shape, key)}. "
                    "Leave the flag out, or give other weights with --from_weight.",
                    "与起始权重的形状不符：请去掉该选项，或换 --from_weight",
                )
        return replace(shape, dropout=self.run.shape_flags.get("dropout", shape.dropout))

    def _vocab_size(self) -> int:
        flag = self.run.shape_flags.get("vocab_size")
        size = self.tokenizer.get_vocab_size()
        if flag is not None and flag < size:
            raise UserError(
                f"--vocab_size {flag}: the tokenizer has {size} tokens. Give {size} or more, or leave it out.",
                f"小于分词器的词元数：请给 {size} 或更大，或去掉该选项",
            )
        return flag or size

    def manifest(self) -> dict[str, Any]:
        """What the weights are made of."""
        inherited: list[dict[str, Any]] = self.start_manifest.get("training_data", [])
        return {
            "format": 1,
            "stage": self.run.stage,
            "profile": self.run.profile,
            "fingerprint": self.fingerprint,
            "recipe_version": RECIPE_VERSION[self.run.stage],
            "settings": self.settings,
            "resolved": self.resolved,
            "tokenizer_sha256": self.tokenizer.sha256,
            "tensors": self.data_manifest["fingerprint"],
            "training_data": [*inherited, self.data_manifest["source"]],
            "start": {"path": self.start_path.name, "sha256": self.start_sha256} if self.start_path else None,
            "choices": choices(self.config, self.runtime),
            "torch": str(torch.__version__),  # a TorchVersion is no plain data
        }

    # --- what it does -------------------------------------------------------------------------------------------

    def is_done(self) -> bool:
        """Whether the weights of exactly these settings, data and start are written already.

        A resume state that is newer than they are says that they are being trained once more.
        """
        if not self.run.from_resume or not self.weights_path.exists():
            return False
        if self.state.path.exists() and self.state.path.stat().st_mtime_ns > self.weights_path.stat().st_mtime_ns:
            return False
        try:
            _, _, manifest = read_weights(self.weights_path)
        except UserError:
            return False  # damaged: train again, and the file is replaced
        return bool(manifest.get("fingerprint") == self.fingerprint)

    def build_model(self) -> MiniLLM:
        """The model to train, on the device: fresh, from the stage before, or as the interrupted run left it."""
        for folder in (self.run.out_dir, self.run.tf_dir):
            require_writable(folder)
        seed_everything(self.config.seed)
        self.resume = self._state_to_take() if self.run.from_resume else None
        if self.resume is not None:
            with fitting(self.resume["path"]):
                self._repeat_choices(self.resume["choices"])
        else:
            self._tell_what_starts_anew()
            self.config = fill_in(
                self.config, self.run.stage, self._shape(), self.data_manifest, self.runtime,
                fresh=self.start_path is None,
            )  # fmt: skip
        model = MiniLLM(self._shape())
        if self.start_path is not None and self.resume is None:
            state, _, manifest = read_weights(self.start_path)
            check_tokenizer(self.start_path, manifest, self.tokenizer.sha256, display(self.tensors_path))
            load_strict(model, state, self.start_path)
        model.to(self.runtime.device)
        model.gradient_checkpointing = self.config.gradient_checkpointing
        if self.config.use_compile:
            model.compile_blocks()
        return model

    def _state_to_take(self) -> dict[str, Any] | None:
        """The state of this very run; else that of a shorter one, stopped before its warm-down; None where there is none.

        Up to there both runs are the same but for their warm-up.
        """
        state = self.state.load()
        if state is not None:
            return state
        for other in self.state.others():
            with fitting(other["path"]):
                config = repeat(self.config, other["choices"])
                num_steps = steps_of_run(config, self.data_manifest["rows"], self.runtime.world_size)
            step, before = other["step"], other["num_steps"]
            where = f"{display(other['path'])}: step {step} of {before}"
            if num_steps > before and not decay_has_begun(step, before, config):
                self.say(f"{where}, now {num_steps}: resuming under the schedule of the longer run")
                return other
            reason = "whose warm-down had begun" if num_steps > before else f"and this run has {num_steps}"
            self.say(f"{where}, {reason}: it can't be resumed as this run, and stays")
        return None

    def _tell_what_starts_anew(self) -> None:
        """Say before the first step which work of other settings is there, and what becomes of it."""
        try:
            _, _, manifest = read_weights(self.weights_path)
        except UserError:
            manifest = {"fingerprint": self.fingerprint}  # none, or damaged
        if manifest.get("fingerprint") != self.fingerprint:
            self.say(
                f"{display(self.weights_path)}: made with {self._differences(manifest)}; training starts anew. The old "
                f"weights stay until the new ones are complete, then as {previous(self.weights_path).name}"
            )
        if self.run.from_resume and (states := saved_states(self.state.stage_folder)):
            self.say(f"no resume state fits these settings and data; {display(states[0])}, of others, stays")

    def _differences(self, manifest: dict[str, Any]) -> str:
        """How the weights of a manifest were made otherwise than this run would make them, in a few words."""
        now = self.manifest()
        names = {
            "recipe_version": "another version of the recipe", "tensors": "other data", "start": "other starting weights",
        }  # fmt: skip
        found = []
        for part in ("model", "train"):
            before = manifest.get("settings", {}).get(part, {})
            found += [
                f"{name} {before.get(name)} (now {value})"
                for name, value in self.settings[part].items()
                if before.get(name) != value
            ]
        found += [words for name, words in names.items() if manifest.get(name) != now[name]]
        return ", ".join(found[:3]) + (" ..." if len(found) > 3 else "") or "other rules or another number of processes"

    def _repeat_choices(self, chosen: dict[str, Any]) -> None:
        """Take what the interrupted run had chosen, so that the arithmetic is the same bit by bit.

        On another machine it can't be: bfloat16 may be very slow there, and so many threads too. There both are chosen
        again, while a step keeps its rows.
        """
        self.config = repeat(self.config, chosen)
        if chosen["machine"] == self.runtime.machine:
            torch.set_num_threads(chosen["threads"])
            self.runtime = replace(self.runtime, dtype=DTYPES[chosen["dtype"]])
            return
        now = choices(self.config, self.runtime)
        if any(chosen[name] != now[name] for name in ("device", "dtype", "threads")):
            began, goes_on = (
                f"{it['machine']['gpu'] or it['device']}, {it['dtype']}, {it['threads']} threads"
                for it in (chosen, now)
            )
            self.say(
                warning(
                    f"this run began on another machine ({began}) and resumes here with dtype and threads chosen again "
                    f"({goes_on}): its steps and their rows stay, its numbers differ by rounding. --from_resume 0 starts afresh.",
                    "换了机器：步数和数据不变，数值有舍入差异；--from_resume 0 从头训练",
                )
            )

    def load_reference(self) -> MiniLLM:
        """The starting weights again, frozen. Raises: UserError when the stage starts from none."""
        if self.start_path is None:
            raise UserError(
                "--from_weight none: this stage needs weights to start from. Name them, such as full_sft.",
                "此阶段需要起始权重：请指定，例如 full_sft",
            )
        model, _ = load_model(self.start_path, device=self.runtime.device)
        return model.requires_grad_(False).eval()

    def fit(self, model: MiniLLM, rows: Rows, objective: Objective, validation: Rows | None) -> int:
        """Train, write the weights, and return the exit code."""
        self._rehearse(model, rows, objective, validation)
        stream = BatchStream(rows, objective, self.config, self.runtime)
        num_steps = stream.num_steps()
        first_step = self.resume["step"] if self.resume else 0
        self._describe(model, stream, num_steps)
        if self.resume:
            self.say(f"resuming after step {first_step} of {num_steps} ({display(self.resume['path'])})")
        metrics = None
        if self.runtime.is_main:
            metrics = Metrics(
                self.run.tf_dir, self.run.stage, self.fingerprint, num_steps=num_steps, first_step=first_step,
                use_wandb=self.config.use_wandb, settings=self.settings,
            )  # fmt: skip
        run = Run(
            self.config, self.runtime, num_steps=num_steps, state=self.state, resume=self.resume, metrics=metrics,
            validate=self._validator(objective, validation), stop=self.stop, token_cost=self._token_cost(),
        )  # fmt: skip
        self.resume = None
        self._watch_signals()
        # Dropout differs between processes. Seeded here, it depends on nothing that was drawn on the way.
        seed_everything(self.config.seed + self.runtime.rank)
        started, kept = time.perf_counter(), None
        try:
            train(self.config, model, stream, objective, run)
            require_finite(model, self.weights_path, f"after step {num_steps} of stage {self.run.stage}")
            if self.runtime.is_main:  # before a tracker's last upload, which may take long
                kept = keep_previous(self.weights_path, self.fingerprint)
                save_weights(self.weights_path, model, self.manifest())
                self.state.clear()
        except TrainingStopped as error:
            if metrics is not None:
                metrics.close_bar()
            again = "the same command" if self.run.from_resume else "the same command without --from_resume 0"
            self.say(f"stopped ({error}); the state is saved, {again} resumes from here")
            return self.stop.exit_code or 143
        except RuntimeError as error:
            failure = self.group.failure() if self.group is not None else None
            if failure is None:
                raise
            raise UserError(
                f"a helper process ended in the middle of the run: {failure}\nThe same command goes on from the last save; "
                "--cpu_processes 1 trains in one process, with less memory.",
                "辅助进程中途退出：重新运行同一命令会接着训练，或加 --cpu_processes 1",
            ) from error
        finally:
            if metrics is not None:
                metrics.close()
        self.say(f"{display(self.weights_path)} written after {time.perf_counter() - started:.0f} s of training")
        if kept is not None:
            self.say(f"the weights of before are {display(kept)}")
        self.runtime.barrier()
        self.runtime.close()
        return 0

    def _rehearse(self, model: MiniLLM, rows: Rows, objective: Objective, validation: Rows | None) -> None:
        """Where a compiler or a GPU's memory could fail, find out before the first step."""
        if not self.config.use_compile and self.runtime.device.type != "cuda":
            return

        def step(num_rows: int) -> None:
            model.train()
            batch = rows.batch(rows.largest(num_rows))
            copies = 2 if num_rows == rows_of_step else 3
            held = torch.empty(copies * num_weights, device=self.runtime.device)
            num_targets = max(1, objective.num_targets(batch))
            with self.runtime.autocast():
                loss = objective.loss_sum(model, self.runtime.to_device(batch)) / num_targets
            loss.backward()
            del held
            if (
                validation and self.config.use_compile and self.runtime.validates_compiled
            ):  # better now than hours later
                for numbers in validation_batches(len(validation), num_rows, self.runtime)[:1]:
                    with torch.no_grad(), self.runtime.autocast():
                        objective.loss_sum(model.eval(), self.runtime.to_device(validation.batch(numbers)))

        # The optimizer makes its two moments of each weight in the first step, and all micro-batches but a step's first
        # one find gradients there: here their memory is held for them.
        rows_of_step = self.config.batch_size * self.config.accumulation_steps
        num_weights = sum(p.numel() for p in model.parameters()) if self.runtime.device.type == "cuda" else 0
        self.config = rehearse(
            self.config, model, step, self.runtime,
            free_to_choose=not self.run.train.batch_size, resuming=self.resume is not None,
        )  # fmt: skip

    def _token_cost(self) -> float:
        """A token's operations as a share of what all devices can do in a second; 0 where nobody knows that."""
        peak = known_peak(self.runtime.device, self.runtime.dtype)
        if peak is None:
            return 0.0
        return training_flops(self._shape(), row_length(self.data_manifest)) / (peak * self.runtime.world_size)

    def _validator(self, objective: Objective, rows: Rows | None) -> Callable[[nn.Module], dict[str, float]] | None:
        """A function that gives the validation loss, and bits per byte where a target is a token."""
        if rows is None or len(rows) == 0:
            self.say("no validation data beside the tensors: no validation loss will be shown")
            return None
        runtime = self.runtime
        batches = validation_batches(len(rows), self.config.batch_size, runtime)
        sizes = token_bytes(self.tokenizer).to(runtime.device)

        @torch.no_grad()
        def validate(model: nn.Module) -> dict[str, float]:
            model.eval()
            sums = torch.zeros(4, device=runtime.device)  # loss, targets; nats and bytes of the text among them
            with runtime.validating():
                for numbers in batches:
                    batch = rows.batch(numbers)
                    with runtime.autocast():
                        if isinstance(objective, NextToken):
                            sums[[0, 2, 3]] += objective.text_sums(model, runtime.to_device(batch), sizes)
                        else:
                            sums[0] += objective.loss_sum(model, runtime.to_device(batch))
                    sums[1] += objective.num_targets(batch)
            model.train()
            total, targets, nats, num_bytes = runtime.sum_over_ranks(sums).tolist()
            found = {"validation_loss": total / max(targets, 1.0)}
            return found | ({"validation_bits_per_byte": bits_per_byte(nats, num_bytes)} if num_bytes else {})

        return validate

    def _describe(self, model: MiniLLM, stream: BatchStream, num_steps: int) -> None:
        shape, config = model.config, self.config
        kind = f"MoE, {shape.num_experts} experts" if shape.use_moe else "dense"
        self.say(
            f"{self.run.stage}: {model.num_parameters():,} trainable parameters "
            f"(hidden {shape.hidden_size} x {shape.num_hidden_layers} layers, {kind}); {as_dict(config)['optimizer']}, "
            f"lr {config.learning_rate:g}; {len(stream.rows):,} rows, {stream.rows_per_step} a step "
            f"({config.accumulation_steps} x {config.batch_size}), {num_steps} steps; "
            f"{self.runtime.device}, {dtype_name(self.runtime.dtype)}, {torch.get_num_threads()} threads"
            + (", compiled" if config.use_compile else "")
            + (f", {self.runtime.world_size} processes" if self.runtime.world_size > 1 else "")
        )

    def _watch_signals(self) -> None:
        """Ctrl-C, SIGTERM and a terminal that is closed end the run after the step at hand; a second Ctrl-C ends it at once."""

        def handler(signum: int, frame: object) -> None:
            if self.stop.exit_code and signum == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop.exit_code = 128 + signum
            self.stop.reason = signal.Signals(signum).name

        def hung_up(signum: int, frame: object) -> None:
            signal.signal(signum, signal.SIG_IGN)  # the shell may send another one, which must not break off the save
            handler(signum, frame)
            silence_terminal()  # where nobody can read any more, a line would fail before the state is saved

        signal.signal(signal.SIGINT, handler)
        signal.signal(signal.SIGTERM, handler)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, hung_up)

    def say(self, text: str) -> None:
        """Print a line from the main process."""
        if self.runtime.is_main:
            print(text, file=sys.stderr, flush=True)


def ask_rules(run: TrainRun, start: Path | None, data: dict[str, Any] | None) -> dict[str, float]:
    """What a stage's rules give, before it is started. Args: start: weights to start from. data: its tensors' manifest."""
    shape = read_weights(start)[1] if start is not None and start.exists() else run.model
    require_memory(shape)
    return resolved_values(run.train, run.stage, shape, data, fresh=start is None and run.from_weight == "none")


def validation_batches(num_rows: int, size: int, runtime: Runtime) -> list[np.ndarray]:
    """Numbers of the rows in each batch of this process, `size` at most: VALIDATION_ROWS in all, evenly spread.

    A GPU compiles a kernel for each size that it meets, so there the batches are equal, at the price of a few rows.
    """
    count, world = min(VALIDATION_ROWS, num_rows), runtime.world_size
    if runtime.validates_compiled and count >= world:
        parts = math.ceil(count // world / size)
        size = count // world // parts
        count = parts * size * world
    numbers = np.linspace(0, num_rows - 1, count).round().astype(np.int64)
    mine = numbers[runtime.rank :: world]
    return [mine[start : start + size] for start in range(0, len(mine), size)]


def tensors_beside(records: Path, data: str) -> Path:
    """The tensor folder of a record file that was given in place of one."""
    return records.with_name(f"{Path(bare_name(records)).stem}_{tensor_folder(data)}")


def already_done(stage: Stage) -> bool:
    """Say so when there is nothing to train, and why."""
    if not stage.is_done():
        return False
    stage.say(
        f"{display(stage.weights_path)} is already the result of these settings, data and starting weights. "
        "Pass --from_resume 0 to train it again."
    )
    stage.state.clear()
    stage.runtime.close()
    return True
