"""The manifest in a weight file: how, and from what, the weights were made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from configs.artifacts import optional_part

FORMAT = 1
"""Version of the manifest's layout."""
CHECKED_PARTS: dict[str, type] = {
    "stage": str, "profile": str, "tokenizer_sha256": str, "training_data": list, "settings": dict,
}  # fmt: skip
"""Parts that other programs trust, with their types. A file may lack them, because other programs
and older versions write less. But a part of another type means that the file was altered."""


IMPORTED = "imported"
"""The stage of weights that another program made. Nothing is known about their training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFile:
    """A record file that weights were trained on, or that the weights before them were."""

    path: str = ""
    records: int = 0
    sha256: str = ""
    """Hash of its content at that time: the file may have changed since."""

    @classmethod
    def from_plain(cls, content: object) -> "TrainingFile":
        """What a manifest says of the file."""
        return cls(
            path=optional_part(content, "path", ""),
            records=optional_part(content, "records", 0),
            sha256=optional_part(content, "sha256", ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFile:
    """The weights that a training started from."""

    path: str = ""
    """The file's name; it lay beside the new weights, or where `--from_weight` said."""
    sha256: str = ""

    @classmethod
    def from_plain(cls, content: object) -> "StartFile | None":
        """What a manifest says of the file; None where it names none."""
        if not isinstance(content, dict):
            return None
        return cls(path=optional_part(content, "path", ""), sha256=optional_part(content, "sha256", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedSettings:
    """The settings of a training that change its result."""

    stage: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ModelConfig."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig. An older file may lack some."""

    @classmethod
    def from_plain(cls, content: object) -> "TrainedSettings":
        """What a manifest says of the settings."""
        return cls(
            stage=optional_part(content, "stage", ""),
            model=optional_part(content, "model", {}),
            train=optional_part(content, "train", {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsManifest:
    """How, and from what, weights were made (docs/formats.md).

    What a file does not say has the default, which is empty.
    """

    stage: str = ""
    profile: str = ""
    """Name of the profile; empty: none."""
    fingerprint: str = ""
    """Hash of all that the weights depend on."""
    recipe_version: int = 0
    """`RECIPE_VERSION` of the stage."""
    settings: TrainedSettings = field(default_factory=TrainedSettings)
    resolved: Mapping[str, float] = field(default_factory=dict)
    """What the rules gave on every machine: rates, and the tokens of a step."""
    tokenizer_sha256: str = ""
    tensors: str = ""
    """Fingerprint of the token tensors."""
    training_data: tuple[TrainingFile, ...] = ()
    """All that the weights have seen, that of earlier stages too."""
    start: StartFile | None = None
    """None: random weights."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What else they depend on, such as a teacher: name -> SHA-256."""
    choices: Mapping[str, Any] = field(default_factory=dict)
    """What the machine decided: device, dtype, threads, micro-batch, compiling."""
    reward_accuracy: Mapping[str, Any] = field(default_factory=dict)
    """Of a reward model: its length-matched accuracy on the validation pairs (`value`, `n`,
    `ci95`). Empty: not known, or no reward model."""
    torch: str = ""
    """Version of torch."""

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> "WeightsManifest":
        """The manifest of a weight file. Its CHECKED_PARTS must have the right types."""
        files: list[object] = optional_part(content, "training_data", [])
        return cls(
            stage=optional_part(content, "stage", ""),
            profile=optional_part(content, "profile", ""),
            fingerprint=optional_part(content, "fingerprint", ""),
            recipe_version=optional_part(content, "recipe_version", 0),
            settings=TrainedSettings.from_plain(content.get("settings")),
            resolved=optional_part(content, "resolved", {}),
            tokenizer_sha256=optional_part(content, "tokenizer_sha256", ""),
            tensors=optional_part(content, "tensors", ""),
            training_data=tuple(map(TrainingFile.from_plain, files)),
            start=StartFile.from_plain(content.get("start")),
            inputs=optional_part(content, "inputs", {}),
            choices=optional_part(content, "choices", {}),
            reward_accuracy=optional_part(content, "reward_accuracy", {}),
            torch=optional_part(content, "torch", ""),
        )

    def as_plain(self) -> dict[str, Any]:
        """The same as plain data, which a weight file may hold."""
        return {"format": FORMAT} | asdict(self) | {"training_data": [asdict(file) for file in self.training_data]}


def wrong_parts(content: Mapping[str, Any]) -> list[str]:
    """Names of the CHECKED_PARTS that have another type in a weight file."""
    return [name for name, kind in CHECKED_PARTS.items() if not isinstance(content.get(name, kind()), kind)]
