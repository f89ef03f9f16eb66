"""Weights and resume state on disk: written atomically, loaded strictly, resumed exactly."""

import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from configs.artifacts import atomic_write, sha256_file
from configs.load import from_mapping
from configs.paths import display, trainer_command
from configs.schema import ModelConfig, UserError, as_dict
from model.model_minillm import MiniLLM

STATE_FILE = "state.pt"


def save_weights(path: Path, model: MiniLLM, manifest: dict[str, Any]) -> None:
    """Write `{"model", "config", "manifest"}` in full precision, atomically."""
    state = {name: tensor.detach().to("cpu").clone() for name, tensor in model.state_dict().items()}
    _save(path, {"model": state, "config": as_dict(model.config), "manifest": manifest})


def require_finite(model: nn.Module, path: Path, when: str) -> None:
    """Refuse to write weights of NaN or infinity, with which nothing can be done; what was there before stays.

    Raises: UserError naming the file, the moment and the first such tensor.
    """
    state = model.state_dict()
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"{display(path)}: not written, since {len(broken)} of {len(state)} tensors hold NaN or infinity {when} (the first "
            f"is {broken[0]}); what was there before is kept. Lower --learning_rate or --grad_clip."
        )


def _save(path: Path, content: dict[str, Any]) -> None:
    """`torch.save`, atomically. Raises: UserError when the disk is full."""
    with atomic_write(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch complains about an archive without an end, after the failed write
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read_checkpoint(path: Path, remedy: str) -> dict[str, Any]:
    """Load a file written by `torch.save` that holds tensors and plain data; nothing in it is ever executed.

    Raises: UserError with `remedy` when it is missing, cut short, or holds anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{display(path)}: no such file. {remedy}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{display(path)}: holds more than tensors and plain data, or is damaged; it was not executed. {remedy}"
        ) from None
    except (RuntimeError, EOFError, BadZipFile, OSError, ValueError) as error:
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise UserError(f"{display(path)}: damaged or cut short ({reason}). {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{display(path)}: not a MiniLLM file. {remedy}")
    return content


def read_weights(path: Path) -> tuple[dict[str, Tensor], ModelConfig, dict[str, Any]]:
    """State dict, shape and manifest of a weight file.

    Raises: UserError when it is missing, damaged, or not a MiniLLM checkpoint.
    """
    content = read_checkpoint(path, "Train that stage again, or give another path.")
    if not all(isinstance(content.get(key), dict) for key in ("model", "config", "manifest")):
        keys = ", ".join(sorted(map(str, content))[:3])
        raise UserError(
            f"{display(path)}: not a MiniLLM checkpoint (it has {len(content)} keys: {keys} ...). Give another path."
        )
    config = from_mapping(ModelConfig(), content["config"], display(path))
    return content["model"], config, content["manifest"]


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
            f"{display(path)}: weights of another shape ({len(problems)} tensors differ: {shown}). "
            "Train the stage before again, or leave the shape to the checkpoint."
        )
    model.load_state_dict(state, strict=True)


def check_tokenizer(path: Path, manifest: dict[str, Any], tokenizer_sha256: str, what: str) -> None:
    """Refuse weights made with another tokenizer than `what` (data or a folder). Raises: UserError."""
    of_weights = manifest.get("tokenizer_sha256", "")
    if of_weights != tokenizer_sha256:
        raise UserError(
            f"{display(path)}: made with another tokenizer ({of_weights[:8]}) than {what} ({tokenizer_sha256[:8]}). "
            "Rerun export_embeddings.py and the stage before with one tokenizer, or pass --tokenizer_dir."
        )


class ResumeState:
    """The resume state of one stage in `OUT_DIR/checkpoints/STAGE/`: one file, replaced at every save."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self.path = folder / STATE_FILE

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state atomically."""
        _save(self.path, {"fingerprint": self.fingerprint, **state})

    def load(self) -> dict[str, Any] | None:
        """The state of this very run, or None when there is none or it belongs to other settings or data.

        Raises: UserError when the file is damaged.
        """
        if not self.path.exists():
            return None
        remedy = f"Delete {display(self.folder)} to train this stage from its start."
        state = read_checkpoint(self.path, remedy)
        if state.get("fingerprint") != self.fingerprint:
            return None
        return state

    def clear(self) -> None:
        """Remove the state once the stage's weights are written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def weights_fingerprint(path: Path) -> str:
    """SHA-256 of a weight file. Raises: UserError when it is missing."""
    if not path.is_file():
        command = trainer_command(re.sub(r"_\d+(_moe)?\.pth$", "", path.name))
        remedy = f"Train them: {command}; or give another --from_weight." if command else "Give another --from_weight."
        raise UserError(f"{display(path)}: no such weights. {remedy}")
    return sha256_file(path)
