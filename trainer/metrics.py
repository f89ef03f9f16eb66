"""What a run tells: the progress bar, a JSONL of metrics always, TensorBoard and wandb or swanlab where wanted."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs.artifacts import append_line, atomic_write
from configs.schema import UserError


class Metrics:
    """Writes the metrics of one stage. Lines behind the step that a run resumes from are dropped first."""

    def __init__(
        self,
        tf_dir: Path,
        stage: str,
        fingerprint: str,
        *,
        num_steps: int,
        first_step: int,
        use_wandb: bool,
        settings: dict[str, Any],
    ) -> None:
        name = f"{stage}_{fingerprint[:8]}"
        self.path = tf_dir / "metrics" / f"{name}.jsonl"
        self._keep_until(first_step)
        self.bar = tqdm(
            total=num_steps, initial=first_step, desc=stage, unit="step", dynamic_ncols=True, mininterval=0.5,
            file=sys.stderr,
        )  # fmt: skip
        self.board = _tensorboard(tf_dir / "tensorboard" / name, first_step)
        self.tracker = _tracker(name, settings) if use_wandb else None

    def _keep_until(self, step: int) -> None:
        kept = []
        if step and self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except ValueError:
                    break  # torn by a power cut: what follows is written again
        with atomic_write(self.path) as file:
            file.writelines(line + "\n" for line in kept)

    def progress(self, **shown: str) -> None:
        """One more step is done."""
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values of a step everywhere."""
        append_line(self.path, {"step": step, **values})
        if self.board is not None:
            for key, value in values.items():
                self.board.add_scalar(key, value, step)
        if self.tracker is not None:
            self.tracker.log(values, step=step)

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flush and end."""
        self.bar.close()
        if self.board is not None:
            self.board.close()
        if self.tracker is not None:
            self.tracker.finish()


def _tensorboard(folder: Path, first_step: int) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None  # optional: pip install "minillm[tensorboard]"
    return SummaryWriter(str(folder), purge_step=first_step)


def _tracker(name: str, settings: dict[str, Any]) -> Any:
    """A started run of wandb, else of swanlab; both know `log` and `finish`."""
    project = os.environ.get("WANDB_PROJECT", "MiniLLM")
    try:
        import wandb

        return wandb.init(project=project, name=name, config=settings)
    except ImportError:
        pass
    try:
        import swanlab

        swanlab.init(project=project, experiment_name=name, config=settings)
        return swanlab
    except ImportError:
        raise UserError(
            "--use_wandb: neither wandb nor swanlab is installed. pip install wandb (or swanlab), or leave the flag out."
        ) from None
