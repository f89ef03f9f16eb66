"""Weights and resume state on disk: written atomically, loaded strictly, resumed exactly."""

import os
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.artifacts import atomic_write, sha256_file
from configs.load import from_mapping
from configs.paths import display, trainer_command
from configs.schema import ModelConfig, UserError, as_dict
from model.model_minillm import MiniLLM
from trainer.choices import CHOSEN

STATE_FILE = "state.pt"
STATE_PARTS = {
    "fingerprint": str, "family": str, "step": int, "num_steps": int, "model": dict, "optimizer": dict, "scaler": dict,
    "rng": dict, "tokens": float, "targets": float, "skipped": int, "overflows": int, "choices": dict,
}  # fmt: skip
"""What a resume state holds, with the types."""
MANIFEST_PARTS = {"stage": str, "profile": str, "tokenizer_sha256": str, "training_data": list, "settings": dict}
"""What others read in a weight file's manifest, with the types."""
CHOICE_PARTS = ("device", "machine", "dtype", "threads", "world_size", *CHOSEN)
KEPT_STATES = 2
"""Resume states kept of a stage: that of these settings, and the newest one of others."""


def save_weights(path: Path, model: MiniLLM, manifest: dict[str, Any]) -> None:
    """Write `{"model", "config", "manifest"}` in full precision, atomically."""
    state = {name: tensor.detach().to("cpu").clone() for name, tensor in model.state_dict().items()}
    _save(path, {"model": state, "config": as_dict(model.config), "manifest": manifest})


def require_finite(model: nn.Module, path: Path, when: str) -> None:
    """Refuse to write weights of NaN or infinity, with which nothing can be done; what was there before stays.

    Raises: UserError naming the file, the moment and the first such tensor.
    """
    if broken := _not_finite(model.state_dict()):
        raise UserError(
            f"{display(path)}: not written: {when}, {broken}; what was there before is kept. Lower --learning_rate or "
            "--grad_clip.",
            "权重里有 NaN 或无穷大，没有写入：请调低 --learning_rate 或 --grad_clip",
        )


def _not_finite(state: dict[str, Tensor]) -> str:
    """How many tensors hold NaN or infinity, and which is the first; empty where none does."""
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    count = f"{len(broken)} of {len(state)} tensors hold NaN or infinity"
    return f"{count} (the first is {broken[0]})" if broken else ""


def _save(path: Path, content: dict[str, Any]) -> None:
    """`torch.save`, atomically. Raises: UserError when the disk is full."""
    with atomic_write(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch complains about an archive without an end, after the failed write
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read_checkpoint(path: Path, remedy: str, chinese: str = "请换一个文件") -> dict[str, Any]:
    """Load a file written by `torch.save` that holds tensors and plain data; nothing in it is ever executed.

    Args: chinese: the remedy again. Raises: UserError with the remedy when the file is missing, cut short, or holds
    anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{display(path)}: no such file. {remedy}", f"找不到文件：{chinese}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{display(path)}: holds more than tensors and plain data, or is damaged; it was not executed. {remedy}",
            f"含有张量以外的内容或已损坏，未执行：{chinese}",
        ) from None
    except Exception as error:  # whatever a changed byte of a pickle leads to: KeyError, BadZipFile, OverflowError ...
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise UserError(
            f"{display(path)}: damaged or cut short ({reason}). {remedy}", f"文件损坏或不完整：{chinese}"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{display(path)}: not a MiniLLM file. {remedy}", f"不是 MiniLLM 的文件：{chinese}")
    return content


def _trainer_of(path: Path) -> str:
    """The command that trains the weights of a file by its name; empty where there is none."""
    return trainer_command(re.sub(r"_\d+(_moe)?\.pth$", "", path.name))


def _retraining(path: Path) -> str:
    command = _trainer_of(path)
    return f"Train it again: {command}; or give another path." if command else "Give another path."


def read_weights(path: Path) -> tuple[dict[str, Tensor], ModelConfig, dict[str, Any]]:
    """State dict, shape and manifest of a weight file.

    Raises: UserError when it is missing, damaged, or not a MiniLLM checkpoint.
    """
    content = read_checkpoint(path, _retraining(path), "请重新训练，或换一个路径")
    if not all(isinstance(content.get(key), dict) for key in ("model", "config", "manifest")):
        keys = ", ".join(sorted(map(str, content))[:3])
        raise UserError(
            f"{display(path)}: not a MiniLLM checkpoint (it has {len(content)} keys: {keys} ...). Give another path.",
            "不是 MiniLLM 的权重文件：请换一个路径",
        )
    wrong = [f"model: {name}" for name, tensor in content["model"].items() if not isinstance(tensor, Tensor)]
    wrong += [f"manifest: {name}" for name in MANIFEST_PARTS if not _fits(content["manifest"], name)]
    if wrong:
        raise UserError(
            f"{display(path)}: not as MiniLLM writes weights ({wrong[0]} is of another type). {_retraining(path)}",
            "不是 MiniLLM 写出的权重：请换路径或重新训练",
        )
    config = from_mapping(ModelConfig(), content["config"], display(path))
    return content["model"], config.resolve(), content["manifest"]


def _fits(manifest: dict[str, Any], name: str) -> bool:
    return isinstance(manifest.get(name, MANIFEST_PARTS[name]()), MANIFEST_PARTS[name])


def load_model(
    path: Path, *, device: torch.device | str = "cpu", rope_scaling_factor: float = 1.0
) -> tuple[MiniLLM, dict[str, Any]]:
    """The model of a weight file, and its manifest; with a factor above 1 YaRN stretches the context it can read.

    Raises: UserError, also when tensors do not fit the shape.
    """
    state, config, manifest = read_weights(path)
    model = MiniLLM(replace(config, rope_scaling_factor=rope_scaling_factor))
    load_strict(model, state, path)
    return model.to(device), manifest


def load_strict(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Copy a state dict into a model of exactly that shape. Raises: UserError naming the first differences."""
    wanted = model.state_dict()
    problems = [f"{name} is missing" for name in wanted.keys() - state.keys()]
    problems += [f"{name} is unknown" for name in state.keys() - wanted.keys()]
    problems += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:3])
        raise UserError(
            f"{display(path)}: weights of another shape ({len(problems)} tensors differ: {shown}). {_retraining(path)}",
            "权重与模型形状不符：请重新训练，或换一个路径",
        )
    if broken := _not_finite(state):
        raise UserError(
            f"{display(path)}: {broken}. {_retraining(path)} A lower --learning_rate may help.",
            "权重中有 NaN 或无穷大：请降低学习率重新训练",
        )
    model.load_state_dict(state, strict=True)


def check_tokenizer(path: Path, manifest: dict[str, Any], tokenizer_sha256: str, what: str) -> None:
    """Refuse weights made with another tokenizer than `what` (data or a folder). Raises: UserError."""
    of_weights = manifest.get("tokenizer_sha256", "")
    if of_weights != tokenizer_sha256:
        raise UserError(
            f"{display(path)}: made with another tokenizer ({of_weights[:8]}) than {what} ({tokenizer_sha256[:8]}). "
            "Make all with one tokenizer: bash scripts/run.sh; or pass --tokenizer_dir.",
            "分词器不一致：请用同一个分词器重做，或用 --tokenizer_dir 指定",
        )


def previous(path: Path) -> Path:
    """Where the weights that stood at `path` before are kept: `full_sft_192.previous.pth`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def keep_previous(path: Path, fingerprint: str) -> Path | None:
    """Give finished weights of other settings a second name, before the new ones take the first.

    The old file bears both names until then, so that at no moment there are no weights.
    Returns: the second name; None where there was nothing, or nothing else, to keep.
    """
    try:
        _, _, manifest = read_weights(path)
    except UserError:
        return None  # missing or damaged
    if manifest.get("fingerprint") == fingerprint:
        return None
    beside = previous(path)
    temporary = path.with_name(f".{beside.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links
        shutil.copyfile(path, temporary)
    temporary.replace(beside)
    return beside


def saved_states(stage_folder: Path) -> list[Path]:
    """The resume states of a stage, `STAGE/FINGERPRINT/state.pt`, the newest first."""
    return sorted(stage_folder.glob(f"*/{STATE_FILE}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


class ResumeState:
    """The resume state of one run in `OUT_DIR/checkpoints/STAGE/FINGERPRINT/`, beside those of other settings.

    One file, replaced at every save. Of all folders of the stage the newest two are kept.
    """

    def __init__(self, stage_folder: Path, fingerprint: str, family: str = "") -> None:
        """Args: family: the fingerprint but for the length of the run."""
        self.stage_folder, self.fingerprint, self.family = stage_folder, fingerprint, family
        self.folder = stage_folder / fingerprint[:16]
        self.path = self.folder / STATE_FILE

    def save(self, state: dict[str, Any]) -> list[Path]:
        """Replace the state atomically. Returns: older folders of other settings, which were removed."""
        _save(self.path, {"fingerprint": self.fingerprint, "family": self.family, **state})
        others = [path for path in self.stage_folder.iterdir() if path.is_dir() and path != self.folder]
        others.sort(key=_newest_change, reverse=True)
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
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                f"{display(self.path)}: the state of other settings or data. {_remedy(self.path)}",
                f"属于另一组设置或数据：{START_AGAIN}",
            )
        return state

    def others(self) -> Iterator[dict[str, Any]]:
        """The states of runs that differ from this one in their length alone, the newest first."""
        for path in saved_states(self.stage_folder):
            try:
                state = read_state(path) if path != self.path else {}
            except UserError:
                continue  # nobody asked for that one
            if state and self.family and state["family"] == self.family:
                yield state

    def clear(self) -> None:
        """Remove the state once the stage's weights are written; those of other settings stay."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.stage_folder.is_dir() and not any(self.stage_folder.iterdir()):
            self.stage_folder.rmdir()


def _newest_change(folder: Path) -> int:
    """When anything in a folder was last written, in ns."""
    return max(path.stat().st_mtime_ns for path in (folder, *folder.iterdir()))


def _remedy(path: Path) -> str:
    return f"Delete {display(path.parent)} to train this stage from its start."


START_AGAIN = "请删除该文件夹，从头训练此阶段"
"""The same remedy in Chinese."""


def read_state(path: Path) -> dict[str, Any]:
    """A resume state and, added to it, its `path`.

    Raises: UserError when it is damaged, or a part is missing or of another type.
    """
    state = read_checkpoint(path, _remedy(path), START_AGAIN)
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


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """While parts of a resume state are put back: what does not fit is told in one line. Raises: UserError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        reason = str(error).splitlines()[0].rstrip(" :") if str(error) else type(error).__name__
        raise UserError(
            f"{display(path)}: does not fit this run ({reason}). {_remedy(path)}", f"与本次训练不符：{START_AGAIN}"
        ) from None


def weights_fingerprint(path: Path) -> str:
    """SHA-256 of a weight file. Raises: UserError when it is missing."""
    if not path.is_file():
        command = _trainer_of(path)
        raise UserError(
            f"{display(path)}: no such weights. "
            + (f"Train them: {command}; or give another --from_weight." if command else "Give another --from_weight."),
            "没有这样的权重：请" + ("先运行该命令训练，或" if command else "") + "换 --from_weight",
        )
    return sha256_file(path)
