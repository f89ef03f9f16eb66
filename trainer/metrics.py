"""What a run tells: the progress bar, a JSONL of metrics always, TensorBoard and wandb or swanlab where wanted."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from configs.artifacts import append_line, atomic_write
from configs.messages import warning
from configs.progress import progress_bar
from configs.schema import UserError

REASON_CHARS = 300
"""So much of another program's error is shown."""


class Listener(Protocol):
    """A program that keeps metrics besides our own file."""

    name: str

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values of a step."""
        ...

    def finish(self, failed: bool) -> None:
        """Write what is left and end the run."""
        ...


class Metrics:
    """Writes the metrics of one stage. Lines behind the step that a run resumes from are dropped first.

    Our own file must be written. A listener that fails is named once, and training goes on.
    Raises: UserError when a tracker that was asked for can't start.
    """

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
        tracker = _tracker(tf_dir, name, settings) if use_wandb else None
        kept = self._keep_until(first_step)
        self.bar = progress_bar(num_steps, initial=first_step, desc=stage, unit="steps")
        self.failing: set[str] = set()
        self.listeners: list[Listener] = []
        try:
            self.listeners.append(TensorBoard(tf_dir / "tensorboard" / name, first_step))
        except ImportError:
            pass  # optional: pip install "minillm[tensorboard]"
        except Exception as error:
            self._warn(TensorBoard.name, error)
        if tracker is not None:
            self.listeners.append(tracker)
            for line in kept:
                self._guard(tracker, tracker.log, int(line.pop("step")), line)

    def _keep_until(self, step: int) -> list[dict[str, float]]:
        """Drop the lines behind a step; returns the others."""
        kept = []
        if step and self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    values = json.loads(line)
                    if values["step"] <= step:
                        kept.append(values)
                except ValueError:
                    break  # torn by a power cut: what follows is written again
        with atomic_write(self.path) as file:
            file.writelines(json.dumps(values) + "\n" for values in kept)
        return kept

    def progress(self, **shown: str) -> None:
        """One more step is done."""
        self.bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in shown.items()))
        self.bar.update(1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the finite values of a step everywhere; JSON knows no others."""
        values = {key: value for key, value in values.items() if math.isfinite(value)}
        append_line(self.path, {"step": step, **values})
        for listener in self.listeners:
            self._guard(listener, listener.log, step, values)

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        self.bar.say(text)

    def close_bar(self) -> None:
        """Leave the bar, so that the next line stands below it."""
        self.bar.close()

    def close(self) -> None:
        """Flush and end; within the handling of an exception the run counts as failed."""
        failed = sys.exc_info()[0] is not None
        self.bar.close()
        for listener in self.listeners:
            self._guard(listener, listener.finish, failed)

    def _guard(self, listener: Listener, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            self._warn(listener.name, error)

    def _warn(self, name: str, error: Exception) -> None:
        if name not in self.failing:
            self.failing.add(name)
            self.say(
                warning(
                    f"{name} failed ({_reason(error)}); training goes on, its metrics are in {self.path.name}",
                    "该记录工具出错，训练继续，指标仍写入此文件",
                )
            )


def _reason(error: BaseException) -> str:
    """One line about an error of another program, whose message may have many."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:REASON_CHARS] if text else type(error).__name__


class TensorBoard:
    """Event files that `tensorboard --logdir tf_dir/tensorboard` shows. Raises: ImportError where it is not installed."""

    name = "TensorBoard"

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an interrupted run wrote from this step on is hidden: it is written again.
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values of a step."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()  # a killed run's state may be newer than what it would leave in a buffer

    def finish(self, failed: bool) -> None:
        """Close the file; there is no place for how the run ended."""
        self.writer.close()


# --- trackers ---------------------------------------------------------------------------------------------------------


# Each start is a run of its own, named and grouped like the others of the same training, and is first told what the
# metrics file says of the steps before. So the last one is whole, whatever an earlier one lost when it was killed, and
# none of its steps is behind another: trackers refuse those.


class Wandb:
    """A run of Weights & Biases, which reads WANDB_MODE, WANDB_PROJECT, WANDB_DIR and more of that kind.

    Its own step counts the calls; ours is a value among the others, and the axis that they are drawn over.
    """

    name = "wandb"
    login = "wandb login"
    offline = "WANDB_MODE=offline"

    def __init__(self, tf_dir: Path, name: str, settings: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "MiniLLM"),
            name=name,
            group=name,
            config=settings,
            dir=os.environ.get("WANDB_DIR") or _folder(tf_dir),
        )
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values of a step."""
        self.run.log({**values, "step": step})

    def finish(self, failed: bool) -> None:
        """Upload what is left and end the run."""
        self.run.finish(exit_code=int(failed))


class SwanLab:
    """An experiment of SwanLab, which reads SWANLAB_MODE, SWANLAB_LOG_DIR and more of that kind."""

    name = "swanlab"
    login = "swanlab login"
    offline = "SWANLAB_MODE=offline"

    def __init__(self, tf_dir: Path, name: str, settings: dict[str, Any]) -> None:
        import swanlab

        self.run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT") or os.environ.get("WANDB_PROJECT", "MiniLLM"),
            name=name,
            group=name,
            config=settings,
            log_dir=os.environ.get("SWANLAB_LOG_DIR") or _folder(tf_dir / "swanlab"),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values of a step."""
        self.run.log(values, step=step)

    def finish(self, failed: bool) -> None:
        """Upload what is left and end the experiment."""
        if failed:
            self.run.finish(state="crashed", error=_reason(sys.exc_info()[1] or Exception("unknown")))
        else:
            self.run.finish()


def _tracker(tf_dir: Path, name: str, settings: dict[str, Any]) -> Listener:
    """A started run of wandb where it is installed, else of swanlab."""
    kinds: tuple[type[Wandb] | type[SwanLab], ...] = (Wandb, SwanLab)
    for kind in kinds:
        try:
            with _no_questions():
                return kind(tf_dir, name, settings)
        except ModuleNotFoundError as error:
            if error.name != kind.name:
                raise _not_started(kind.name, kind.login, kind.offline, error) from error
        except UserError:
            raise
        except Exception as error:
            raise _not_started(kind.name, kind.login, kind.offline, error) from error
    raise UserError(
        "--use_wandb: neither wandb nor swanlab is installed. Run python -m pip install wandb (or swanlab), or leave the "
        "flag out.",
        "wandb 和 swanlab 都没有安装：请安装其一，或去掉该选项",
    )


def _not_started(name: str, login: str, offline: str, error: Exception) -> UserError:
    return UserError(
        f"--use_wandb: {name} did not start ({_reason(error)}). Log in with `{login}`, "
        f"or set {offline} to keep its files here, or leave the flag out.",
        "没能启动：请先登录，或改为离线，或去掉该选项",
    )


@contextmanager
def _no_questions() -> Iterator[None]:
    """Without a standard input a tracker fails where it would ask for a key, and no pipeline waits at night for one."""
    stdin = sys.stdin
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = stdin


def _folder(path: Path) -> str:
    path.mkdir(parents=True, exist_ok=True)
    return str(path)
