"""The weight file (.pth): written whole, read strictly, never executed.

Wherever a weight file is read, the folder of another model may stand in its place
(`model/export.py`).

It holds `{"model", "config", "manifest"}`: the tensors, the shape of the network, and how and from
what the weights were made.
"""

import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.artifacts import atomic_write, fingerprint, sha256_file
from configs.load import from_mapping
from configs.paths import display, trainer_command
from configs.schema import ModelConfig, UserError
from model.export import CONFIG, read_hugging_face
from model.manifest import WeightsManifest, wrong_parts
from model.model_minillm import MiniLLM

REWARD_HEAD = "reward_head.weight"
"""The tensor that a reward model has besides (model/heads.py)."""

# --- any file of tensors and plain data -----------------------------------------------------------


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """`torch.save`, atomically. Raises: UserError when the disk is full."""
    with atomic_write(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch complains about an archive without an end, after the failed write
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read_checkpoint(path: Path, remedy: str, chinese: str = "请换一个文件") -> dict[str, Any]:
    """Load a file of `torch.save` that holds tensors and plain data; nothing in it is executed.

    Args: chinese: the remedy again. Raises: UserError with the remedy when the file is missing, cut
    short, or holds anything else.
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


# --- weights --------------------------------------------------------------------------------------


def save_weights(path: Path, model: MiniLLM, manifest: WeightsManifest) -> None:
    """Write `{"model", "config", "manifest"}` in full precision, atomically."""
    state = {name: tensor.detach().to("cpu").clone() for name, tensor in model.state_dict().items()}
    write_checkpoint(path, {"model": state, "config": asdict(model.config), "manifest": manifest.as_plain()})


def read_weights(path: Path) -> tuple[dict[str, Tensor], ModelConfig, WeightsManifest]:
    """State dict, shape of the network, and manifest of a weight file or a Hugging Face folder.

    Raises: UserError when it is missing, damaged, or not a MiniLLM checkpoint.
    """
    if path.is_dir():
        return read_hugging_face(path)
    content = _read_parts(path)
    if "target_modules" in content["config"]:
        raise UserError(
            f"{display(path)}: an adapter, no whole weights. Give the weights that it belongs to, and this as --lora_name.",
            "这是适配器，不是完整权重：请给出它的底座，并用 --lora_name 指定它",
        )
    config = from_mapping(ModelConfig(), content["config"], display(path))
    return content["model"], config.resolve(), WeightsManifest.from_plain(content["manifest"])


def read_made(path: Path) -> WeightsManifest:
    """How any file that a trainer wrote was made: weights, an adapter, a network with a head.

    Raises: UserError when it is missing, damaged, or none of these.
    """
    return WeightsManifest.from_plain(_read_parts(path)["manifest"])


def _read_parts(path: Path) -> dict[str, Any]:
    """`{"model", "config", "manifest"}` of a file that a trainer wrote. Raises: UserError."""
    content = read_checkpoint(path, _retraining(path), "请重新训练，或换一个路径")
    if not all(isinstance(content.get(key), dict) for key in ("model", "config", "manifest")):
        keys = ", ".join(sorted(map(str, content))[:3])
        raise UserError(
            f"{display(path)}: not a MiniLLM checkpoint (it has {len(content)} keys: {keys} ...). Give another path.",
            "不是 MiniLLM 的权重文件：请换一个路径",
        )
    wrong = [f"model: {name}" for name, tensor in content["model"].items() if not isinstance(tensor, Tensor)]
    wrong += [f"manifest: {name}" for name in wrong_parts(content["manifest"])]
    if wrong:
        raise UserError(
            f"{display(path)}: not as MiniLLM writes weights ({wrong[0]} is of another type). {_retraining(path)}",
            "不是 MiniLLM 写出的权重：请换路径或重新训练",
        )
    return content


def load_model(
    path: Path, *, device: torch.device | str = "cpu", rope_scaling_factor: float = 1.0
) -> tuple[MiniLLM, WeightsManifest]:
    """The model of a weight file or a Hugging Face folder, and its manifest.

    Args: rope_scaling_factor: above 1, YaRN stretches the context that the model can read. A folder
    may have a factor of its own.
    Raises: UserError, also when tensors do not fit the shape.
    """
    state, config, manifest = read_weights(path)
    if rope_scaling_factor != 1.0:
        config = replace(config, rope_scaling_factor=rope_scaling_factor)
    model = MiniLLM(config)
    load_strict(model, state, path)
    return model.to(device), manifest


def load_strict(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Copy a state dict into a model of exactly that shape.

    Raises: UserError naming the first differences, or the first tensor of NaN or infinity.
    """
    check_state(model.state_dict(), state, path)
    model.load_state_dict(state, strict=True)


def check_state(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a state dict of other names or shapes than the wanted one, or with NaN or infinity.

    Args: wanted: only its names and shapes count. path: where the state is from.
    Raises: UserError naming the first differences, or the first tensor of NaN or infinity; for a
    reward model where none is wanted.
    """
    if REWARD_HEAD in state and REWARD_HEAD not in wanted:
        raise UserError(
            f"{display(path)}: a reward model, which scores answers and writes none. Give the weights that it started from.",
            "这是奖励模型，只能打分，不能对话：请给出它的起始权重",
        )
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


def check_tokenizer(path: Path, manifest: WeightsManifest, tokenizer_sha256: str, what: str) -> None:
    """Refuse weights made with another tokenizer than `what`, which is data or a folder.

    Raises: UserError.
    """
    of_weights = manifest.tokenizer_sha256
    if of_weights != tokenizer_sha256:
        raise UserError(
            f"{display(path)}: made with another tokenizer ({of_weights[:8]}) than {what} ({tokenizer_sha256[:8]}). "
            "Make all with one tokenizer: bash scripts/run.sh; or pass --tokenizer_dir.",
            "分词器不一致：请用同一个分词器重做，或用 --tokenizer_dir 指定",
        )


def require_finite(model: nn.Module, path: Path, when: str) -> None:
    """Refuse to write weights of NaN or infinity; what was there before stays.

    Raises: UserError naming the file, the moment and the first such tensor.
    """
    if broken := _not_finite(model.state_dict()):
        raise UserError(
            f"{display(path)}: not written: {when}, {broken}; what was there before is kept. Lower --learning_rate or "
            "--grad_clip.",
            "权重里有 NaN 或无穷大，没有写入：请调低 --learning_rate 或 --grad_clip",
        )


def _not_finite(state: Mapping[str, Tensor]) -> str:
    """How many tensors hold NaN or infinity, and which is the first; empty if none does."""
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    count = f"{len(broken)} of {len(state)} tensors hold NaN or infinity"
    return f"{count} (the first is {broken[0]})" if broken else ""


def _retraining(path: Path) -> str:
    """What to do about weights that can't be used."""
    command = trainer_command(path.name)
    return f"Train it again: {command}; or give another path." if command else "Give another path."


def weights_fingerprint(path: Path) -> str:
    """Hash of a weight file or a folder. Raises: UserError when it is missing."""
    if not path.exists():
        command = trainer_command(path.name)
        raise UserError(
            f"{display(path)}: no such weights. "
            + (f"Train them: {command}; or give another --from_weight." if command else "Give another --from_weight."),
            "没有这样的权重：请" + ("先运行该命令训练，或" if command else "") + "换 --from_weight",
        )
    return weights_sha256(path)


def weights_sha256(path: Path) -> str:
    """SHA-256 of a weight file; of a folder, a hash of the files that decide its weights."""
    if not path.is_dir():
        return sha256_file(path)
    return fingerprint({file.name: sha256_file(file) for file in [path / CONFIG, *path.glob("*.safetensors")]})


# --- the weights of before ------------------------------------------------------------------------


def previous(path: Path) -> Path:
    """Where the weights that stood at `path` before are kept: `full_sft_192.previous.pth`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def keep_previous(path: Path, fingerprint: str) -> Path | None:
    """Give finished weights of other settings a second name, before the new ones take the first.

    The old file has both names until then, so that there are weights at every moment.
    Returns: the second name; None if there were no weights to keep, or they have this fingerprint.
    """
    try:
        manifest = read_made(path)
    except UserError:
        return None  # missing or damaged
    if manifest.fingerprint == fingerprint:
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
