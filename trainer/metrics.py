"""What a run reports: a progress bar, metrics as JSONL, TensorBoard, wandb or swanlab."""

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
"""Characters of another program's error that are shown."""


class Listener(Protocol):
    """A program that also keeps the metrics, such as TensorBoard or wandb."""

    name: str
    """How a warning names it."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values of a step."""
        ...

    def finish(self, failed: bool) -> None:
        """Write what is left and end the run. `failed`: an exception ended the training."""
        ...


class Metrics:
    """Writes the metrics of one run: `TF_DIR/metrics/STAGE_FINGERPRINT.jsonl`, and the listeners.

    A resumed run computes some steps again, so their lines are dropped first. An error while our
    own file is written ends the run. A listener that fails is named once, and training continues.
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
        # The tracker starts before anything is written: where it fails, the old metrics stay.
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
            # Each start is a new run of the tracker, so it is told the earlier steps too.
            for line in kept:
                values = {name: value for name, value in line.items() if name not in ("step", "texts")}
                self._guard(tracker, tracker.log, int(line["step"]), values)

    def _keep_until(self, step: int) -> list[dict[str, float]]:
        """Drop the lines of later steps from the file. Returns: the others."""
        kept = []
        if step and self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    values = json.loads(line)
                    if values["step"] <= step:
                        kept.append(values)
                except ValueError:
                    break  # torn by a power cut: what follows is computed and written again
        with atomic_write(self.path) as file:
            file.writelines(json.dumps(values) + "\n" for values in kept)
        return kept

    def progress(self, **shown: str) -> None:
        """Move the bar by one step, with these figures beside it."""
        self.bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in shown.items()))
        self.bar.update(1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step in our file and in all listeners.

        Values that are not finite are left out: JSON has no NaN.
        """
        values = {key: value for key, value in values.items() if math.isfinite(value)}
        append_line(self.path, {"step": step, **values})
        for listener in self.listeners:
            self._guard(listener, listener.log, step, values)

    def log_texts(self, step: int, texts: list[dict[str, Any]]) -> None:
        """Keep texts of a step, such as sampled answers, in our file. The listeners take numbers
        alone."""
        append_line(self.path, {"step": step, "texts": texts})

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        self.bar.say(text)

    def close_bar(self) -> None:
        """End the bar, so that the next line stands below it."""
        self.bar.close()

    def close(self) -> None:
        """End the bar and the listeners; while an exception is handled, the run has failed."""
        failed = sys.exc_info()[0] is not None
        self.bar.close()
        for listener in self.listeners:
            self._guard(listener, listener.finish, failed)

    def _guard(self, listener: Listener, call: Callable[..., None], *arguments: Any) -> None:
        """Call a listener. Whatever it raises becomes a warning."""
        try:
            call(*arguments)
        except Exception as error:
            self._warn(listener.name, error)

    def _warn(self, name: str, error: Exception) -> None:
        """Name a listener that failed, once in a run."""
        if name not in self.failing:
            self.failing.add(name)
            self.say(
                warning(
                    f"{name} failed ({_reason(error)}); training goes on, its metrics are in {self.path.name}",
                    "该记录工具出错，训练继续，指标仍写入此文件",
                )
            )


def _reason(error: BaseException) -> str:
    """One short line about an error of another program, whose message may have many lines."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:REASON_CHARS] if text else type(error).__name__


class TensorBoard:
    """Event files that `tensorboard --logdir tf_dir/tensorboard` shows.

    Raises: ImportError where it is not installed.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides what an interrupted run wrote from this step on. It is written again.
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record values of a step."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()  # a killed run loses its buffer, and may resume after these steps

    def finish(self, failed: bool) -> None:
        """Close the file. TensorBoard does not record how a run ended."""
        self.writer.close()


# --- trackers -------------------------------------------------------------------------------------


# Each start of a training is a new run in the tracker. All of them have the same name and group. A
# new one first gets the earlier steps from our metrics file. So the last run is complete, even if a
# killed one lost something. Its steps are also in order: trackers refuse a step that goes back.


class Wandb:
    """A run of Weights & Biases, set up by variables such as WANDB_MODE and WANDB_PROJECT.

    Its own step counts the calls of `log`. Our step is one of the values, and the axis that the
    others are drawn over.
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
    """An experiment of SwanLab. It reads SWANLAB_MODE, SWANLAB_LOG_DIR and similar variables."""

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
    """A started run of wandb where it is installed, else of swanlab.

    Raises: UserError where neither is installed, or the one that is can't start.
    """
    kinds: tuple[type[Wandb] | type[SwanLab], ...] = (Wandb, SwanLab)
    for kind in kinds:
        try:
            with _no_questions():
                return kind(tf_dir, name, settings)
        except ModuleNotFoundError as error:
            # Where the package itself is missing, the next one is tried. Where it is there and a
            # package that it needs is missing, the user should know.
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
    """Give a tracker an empty standard input.

    Where it would ask for a key it fails at once. Otherwise a pipeline could wait all night for
    somebody to type one.
    """
    stdin = sys.stdin
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = stdin


def _folder(path: Path) -> str:
    """The path of a folder, which is made where it is missing."""
    path.mkdir(parents=True, exist_ok=True)
    return str(path)
