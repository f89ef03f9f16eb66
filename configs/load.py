"""Profiles: what one describes, and how `configs/NAME.yaml` becomes checked settings.

It does not import torch, so that `run.sh` can quickly ask what a stage depends on.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from configs.knobs import kind_of
from configs.paths import CONFIG_DIR
from configs.schema import EvalConfig, MixConfig, ModelConfig, TrainConfig, UserError
from configs.stage_table import STAGE_TABLE

DEFAULT_PROFILE = "default"


def _settings_of_stages() -> dict[str, TrainConfig]:
    """Stage -> its settings with all defaults."""
    return {stage: spec.settings() for stage, spec in STAGE_TABLE.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """The settings of a whole pipeline: `configs/NAME.yaml`, in which each stage has a block."""

    profile: str = DEFAULT_PROFILE
    model: ModelConfig = field(default_factory=ModelConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    stages: Mapping[str, TrainConfig] = field(default_factory=_settings_of_stages)
    """Stage -> its settings."""
    evaluate: EvalConfig = field(default_factory=EvalConfig)


Config = TypeVar("Config")


# --- values -> settings ---------------------------------------------------------------------------


def from_mapping(base: Config, values: Mapping[str, Any], where: str) -> Config:
    """A copy of a settings object in which `values` replace fields.

    Raises: UserError, with `where` and the key, for an unknown key or a value of a wrong type.
    """
    before = {one.name: getattr(base, one.name) for one in fields(base)}  # type: ignore[arg-type]
    changes = merged(before, get_type_hints(type(base)), values, where)
    try:
        return replace(base, **changes)  # type: ignore[type-var]
    except UserError as error:
        raise UserError(f"{where}: {error}", error.chinese) from None


def merged(
    before: Mapping[str, Any], hints: Mapping[str, Any], values: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """`values` with the types of their hints. A block of keys becomes a settings object.

    Args: before: name -> value of each known key; a block replaces fields of its value here. hints:
    name -> type.
    Raises: UserError, with `where` and the key, for an unknown key or a value of a wrong type.
    """
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in before:
            raise UserError(
                f"{where}: unknown key {key!r}. Known: {', '.join(before)}.", "没有这个配置项：请用列出的名称"
            )
        if not is_dataclass(before[key]):
            changes[key] = _checked(value, kind_of(hints[key]), f"{where}: {key}")
        elif isinstance(value, Mapping):
            changes[key] = from_mapping(before[key], value, f"{where}: {key}")
        else:
            raise UserError(f"{where}: {key} must be a block of keys, not {value!r}.", "此处应是一组配置项")
    return changes


def _checked(value: Any, wanted: type, where: str) -> Any:
    """The value, as a float if one is wanted. Raises: UserError for another type.

    For Python True is a whole number, so it is refused by hand.
    """
    if wanted is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        hint = " (YAML reads 3e-4 as text: write 3.0e-4)" if wanted is float and isinstance(value, str) else ""
        raise UserError(f"{where} = {value!r}: must be of type {wanted.__name__}{hint}.", "值的类型不对")
    return value


# --- files -> values ------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Refuses a key that is twice in a block. PyYAML would ignore all but the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, key in enumerate(keys):
            if key in keys[:number] and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises: UserError when it is missing, malformed, or no mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file. Profiles there are: {', '.join(profile_names())}.", "没有这个配置：请用列出的名称"
        ) from None
    except Exception as error:  # PyYAML also raises errors of int, float and datetime: `2024-13-45` is a ValueError
        raise UserError(
            f"{path}: can't be read as YAML ({' '.join(str(error).split())}). Fix it there.", "不是合法的 YAML：请修正"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold `key: value` lines.", "每行应是 键: 值")
    return values


def profile_names() -> list[str]:
    """The names of the profiles in `configs/`."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.yaml") if path.stem != "mixture")


def load_profile(name: str | None) -> Profile:
    """The profile `configs/NAME.yaml`, or the YAML file with this path; None: the default profile.

    Its `mix` block overrides `mixture.yaml`.
    Raises: UserError as `read_yaml` and `merged`.
    """
    name = name or DEFAULT_PROFILE
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIG_DIR / f"{name}.yaml"
    stages, mix = _settings_of_stages(), load_mixture()
    blocks: dict[str, Any] = {
        "profile": path.stem,
        "model": ModelConfig(),
        "mix": mix,
        **stages,
        "evaluate": EvalConfig(),
    }
    parts: dict[str, Any] = blocks | merged(blocks, {"profile": str}, read_yaml(path), str(path))
    stages = {stage: parts.pop(stage) for stage in stages}
    return Profile(stages=stages, **parts)


def load_mixture() -> MixConfig:
    """The settings of `configs/mixture.yaml`, without its `files` block. Raises: UserError."""
    path = CONFIG_DIR / "mixture.yaml"
    values = {key: value for key, value in read_yaml(path).items() if key != "files"}
    return from_mapping(MixConfig(), values, str(path))


def load_file_categories() -> dict[str, str]:
    """The `files` block of `configs/mixture.yaml`: name pattern -> category, in its order.

    Raises: UserError when it is malformed.
    """
    path = CONFIG_DIR / "mixture.yaml"
    files = read_yaml(path).get("files", {})
    if not isinstance(files, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in files.items()):
        raise UserError(f"{path}: files must hold `name pattern: category` lines.", "files 下每行应是 文件名: 类别")
    return files
