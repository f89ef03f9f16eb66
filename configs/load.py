"""YAML profiles and flags -> checked configs. Imports no torch, so that `run.sh` can ask what a stage depends on."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from configs.paths import CONFIG_DIR
from configs.schema import MixConfig, Profile, UserError

Config = TypeVar("Config")


def from_mapping(base: Config, values: Mapping[str, Any], where: str) -> Config:
    """A copy of `base` with `values` put in: types checked, unknown keys refused, nested configs merged.

    Raises: UserError with `where` and the key.
    """
    known = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(
                f"{where}: unknown key {key!r}. Known: {', '.join(known)}.", "没有这个配置项：请用列出的名称"
            )
        current = known[key]
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}: {key} must be a block of keys, not {value!r}.", "此处应是一组配置项")
            changes[key] = from_mapping(current, value, f"{where}: {key}")
        else:
            changes[key] = _checked(value, current, f"{where}: {key}")
    try:
        return dataclasses.replace(base, **changes)  # type: ignore[type-var]
    except UserError as error:
        raise UserError(f"{where}: {error}", error.chinese) from None


def _checked(value: Any, current: Any, where: str) -> Any:
    wanted = bool if current is None else type(current)  # a switch that nobody has set yet
    if wanted is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        hint = " (YAML reads 3e-4 as text: write 3.0e-4)" if wanted is float and isinstance(value, str) else ""
        raise UserError(f"{where} = {value!r}: must be of type {wanted.__name__}{hint}.", "值的类型不对")
    return value


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a block: all but the last value would be ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, key in enumerate(keys):
            if key in keys[:number] and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises: UserError when it is missing, malformed, or no mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file. Profiles there are: {', '.join(profile_names())}.", "没有这个配置：请用列出的名称"
        ) from None
    except Exception as error:  # PyYAML lets through what int, float and datetime raise: `2024-13-45` is a ValueError
        raise UserError(
            f"{path}: can't be read as YAML ({' '.join(str(error).split())}). Fix it there.", "不是合法的 YAML：请修正"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold `key: value` lines.", "每行应是 键: 值")
    return values


def profile_names() -> list[str]:
    """The profiles that ship, by name."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.yaml") if path.stem != "mixture")


def load_profile(name: str) -> Profile:
    """The profile `configs/NAME.yaml`, or the YAML file of that path; its mix starts from `mixture.yaml`."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIG_DIR / f"{name}.yaml"
    base = Profile(profile=path.stem, mix=load_mixture())
    return from_mapping(base, read_yaml(path), str(path))


def load_mixture() -> MixConfig:
    """Targets and names of `configs/mixture.yaml`, whose `files` block belongs to `dataset/mix/sources.py`."""
    path = CONFIG_DIR / "mixture.yaml"
    values = {key: value for key, value in read_yaml(path).items() if key != "files"}
    return from_mapping(MixConfig(), values, str(path))


def load_file_categories() -> dict[str, str]:
    """File name patterns of `configs/mixture.yaml` and their categories, in the order of the file."""
    path = CONFIG_DIR / "mixture.yaml"
    files = read_yaml(path).get("files", {})
    if not isinstance(files, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in files.items()):
        raise UserError(f"{path}: files must hold `name pattern: category` lines.", "files 下每行应是 文件名: 类别")
    return files
