"""The resume state of a run on disk: where it lies, how it is written, how it is checked."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from configs.paths import display
from configs.schema import UserError
from model.weights import read_checkpoint, write_checkpoint
from trainer.autoconfig import CHOSEN

STATE_FILE = "state.pt"
"""Name of the file in a run's folder."""
STATE_PARTS = {
    "fingerprint": str, "family": str, "step": int, "num_steps": int, "model": dict, "optimizer": dict, "scaler": dict,
    "rng": dict, "tokens": float, "targets": float, "skipped": int, "overflows": int, "choices": dict,
}  # fmt: skip
"""What a resume state holds, and of which type."""
CHOICE_PARTS = ("device", "machine", "dtype", "threads", "world_size", *CHOSEN)
"""What `choices` of a resume state holds: see `chosen_values` in trainer/autoconfig.py."""
KEPT_STATES = 2
"""How many resume states of a stage are kept: the one of this run, and the newest of the others."""


def saved_states(stage_folder: Path) -> list[Path]:
    """Paths of a stage's resume states, `STAGE/FINGERPRINT/state.pt`, the newest first."""
    return sorted(stage_folder.glob(f"*/{STATE_FILE}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


class ResumeState:
    """The resume state of one run, in `OUT_DIR/checkpoints/STAGE/FINGERPRINT/`.

    It is one file, which every save replaces as a whole: a kill while it is written leaves the one
    before. States of other settings lie in folders beside it. Of all these folders the newest
    KEPT_STATES are kept.
    """

    def __init__(self, stage_folder: Path, fingerprint: str, family: str = "") -> None:
        """Args: family: the fingerprint without the length of the run (trainer/facts.py)."""
        self.stage_folder, self.fingerprint, self.family = stage_folder, fingerprint, family
        self.folder = stage_folder / fingerprint[:16]
        self.path = self.folder / STATE_FILE

    def save(self, state: dict[str, Any]) -> list[Path]:
        """Replace the state as a whole.

        Args: state: all of STATE_PARTS but fingerprint and family, which are added here.
        Returns: the older folders of other settings that were removed.
        """
        write_checkpoint(self.path, {"fingerprint": self.fingerprint, "family": self.family, **state})
        others = [path for path in self.stage_folder.iterdir() if path.is_dir() and path != self.folder]
        others.sort(key=_newest_change, reverse=True)
        # The run that saves always keeps its own folder, so one place less is left for the others.
        for path in others[KEPT_STATES - 1 :]:
            shutil.rmtree(path, ignore_errors=True)
        return others[KEPT_STATES - 1 :]

    def load(self) -> dict[str, Any] | None:
        """The state of this very run, with its `path`; None when there is none.

        Raises: UserError when the file is damaged, of another version, or of another run.
        """
        if not self.path.exists():
            return None
        state = read_state(self.path)
        # Folders have only the first 16 digits in their name, and people move files.
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                f"{display(self.path)}: the state of other settings or data. {_remedy(self.path)}",
                f"属于另一组设置或数据：{START_AGAIN}",
            )
        return state

    def others(self) -> Iterator[dict[str, Any]]:
        """States of runs that differ from this one only in their length, the newest first.

        Damaged ones are passed over.
        """
        for path in saved_states(self.stage_folder):
            try:
                state = read_state(path) if path != self.path else {}
            except UserError:
                continue  # the user did not ask for that one
            if state and self.family and state["family"] == self.family:
                yield state

    def clear(self) -> None:
        """Remove the state: the weights are written. States of other settings stay."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.stage_folder.is_dir() and not any(self.stage_folder.iterdir()):
            self.stage_folder.rmdir()


def _newest_change(folder: Path) -> int:
    """When anything in a folder was last written, in nanoseconds."""
    return max(path.stat().st_mtime_ns for path in (folder, *folder.iterdir()))


def _remedy(path: Path) -> str:
    """What to do about a state that can't be used."""
    return f"Delete {display(path.parent)} to train this stage from its start."


START_AGAIN = "请删除该文件夹，从头训练此阶段"
"""The same remedy in Chinese."""


def read_state(path: Path) -> dict[str, Any]:
    """A resume state, with its `path` added.

    Raises: UserError when it is damaged, or a part is missing or of another type.
    """
    state = read_checkpoint(path, _remedy(path), START_AGAIN)
    # A file of another version may load without an error, so each part is looked at.
    wrong = [name for name, kind in STATE_PARTS.items() if not isinstance(state.get(name), kind)]
    if not wrong:
        wrong = [f"choices.{name}" for name in CHOICE_PARTS if name not in state["choices"]]
        wrong += [] if 0 < state["step"] <= state["num_steps"] else ["step"]
    if wrong:
        raise UserError(
            f"{display(path)}: no resume state of this version ({wrong[0]} is missing or of another type). {_remedy(path)}",
            f"不是此版本的续训状态：{START_AGAIN}",
        )
    return state | {"path": path}


def frozen_state(model: nn.Module) -> dict[str, Tensor]:
    """The part of a model's state that no step changes: the weights under an adapter, for example.

    A resume state leaves it out.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in frozen}


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Wrap the lines that put parts of a resume state back.

    Raises: UserError, one line, in place of the errors that a part which does not fit causes.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        reason = str(error).splitlines()[0].rstrip(" :") if str(error) else type(error).__name__
        raise UserError(
            f"{display(path)}: does not fit this run ({reason}). {_remedy(path)}", f"与本次训练不符：{START_AGAIN}"
        ) from None
