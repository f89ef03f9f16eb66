"""What a checkpoint was trained on: keys of records, the weights it started from, the mixture."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.artifacts import atomic_write, fingerprint, read_json
from configs.paths import ROOT, display, find_dataset, heldout_beside, trainer_command
from configs.schema import UserError
from configs.stage_table import STAGE_TABLE
from dataset.mix.write import MANIFEST_FILE, OUTPUTS
from dataset.records.keys import normalised_question, text_hash
from evaluation.baselines import TrainingExamples, text_key
from model.manifest import StartFile, TrainingFile, WeightsManifest
from model.model_lora import read_adapter
from model.weights import weights_sha256

KEYS_FOLDER = "trained_on"
"""A folder beside the weights, with the keys of what they were trained on: a later mix may replace
the training files."""
KEY_BYTES = len(text_hash(""))
"""Bytes of one key in such a file."""

BUNDLED = ("general", "knowledge")
"""Categories that must come from the bundled samples, or a model can't know what the first prompts
about facts, sums and feelings ask for."""

Sources = Sequence[TrainingFile]
"""A checkpoint's `training_data`."""


@dataclass(frozen=True)
class Trained:
    """What a checkpoint was trained on, as far as that can be told."""

    sources: Sources
    keys: Set[bytes]
    """Keys of its training questions, and after pretraining of its texts."""
    lacking: str = ""
    """Why some keys are lacking; empty if all are known."""


def trained_on(sources: Sources, examples: TrainingExamples, folder: Path, *, with_texts: bool) -> Trained:
    """The keys of a checkpoint's training records: from the training files, else from the file of
    keys that an earlier evaluation left in the weights' `folder`.

    Args: sources: the checkpoint's `training_data`. examples: what those files hold now.
    with_texts: whether the keys of raw texts are among them.
    """
    # The file of keys is named after the training files, so that weights trained on others, in the
    # same folder, have another one.
    name = fingerprint([[source.sha256 for source in sources], with_texts])[:16]
    path = folder / KEYS_FOLDER / f"{name}.keys"
    if not examples.is_partial:
        _keep(path, examples.seen)
        return Trained(sources, examples.seen)
    if kept := _kept(path):
        return Trained(sources, kept)
    return Trained(sources, examples.seen, examples.reason)


def _keep(path: Path, keys: Set[bytes]) -> None:
    """Write keys to a file, unless they are there already."""
    if path.exists():
        return
    try:
        with atomic_write(path, "wb") as file:
            file.write(b"".join(sorted(keys)))  # all keys have the same length
    except UserError:
        pass  # the folder can't be written to: then a later evaluation says that it can't tell


def _kept(path: Path) -> set[bytes]:
    """The keys in a file; none without one."""
    try:
        data = path.read_bytes()
    except OSError:
        return set()
    return {data[place : place + KEY_BYTES] for place in range(0, len(data), KEY_BYTES)}


def not_trained_on(records: Sequence[dict[str, Any]], seen: Set[bytes]) -> list[dict[str, Any]]:
    """The records that the model was not trained on. `seen`: `Trained.keys`.

    A record counts as trained on if its text is seen, or both its first and its last question are.
    The first one alone is not enough, because many conversations begin alike (在吗).
    """
    return [record for record in records if not _keys_of(record) <= seen]


def _keys_of(record: Mapping[str, Any]) -> set[bytes]:
    """The key of a text, or those of the first and last question of a conversation or a pair."""
    messages = record["conversations"] if "conversations" in record else record.get("chosen")
    if messages is None:
        return {text_key(str(record["text"]))}
    asked = [str(message["content"]) for message in messages if message["role"] == "user"] or [""]
    return {text_hash(normalised_question(turn)) for turn in (asked[0], asked[-1])}


# --- the weights ----------------------------------------------------------------------------------


def require_parts(path: Path, manifest: WeightsManifest, stage: str) -> None:
    """Raises: UserError if the manifest lacks what an evaluation must know, or has another type."""
    train, files = manifest.settings.train, manifest.training_data
    known = {
        "training_data": bool(files) and all(file.path and file.sha256 for file in files),
        "max_seq_len": _is_above_0(train.get("max_seq_len")),
    }
    if STAGE_TABLE[stage].data == "pairs":
        start = manifest.start or StartFile()
        known |= {"start": bool(start.path and start.sha256), "beta": _is_above_0(train.get("beta"))}
    if lacking := [name for name, is_known in known.items() if not is_known]:
        raise UserError(
            f"{display(path)}: its manifest doesn't say how it was trained ({lacking[0]!r}). Give another --checkpoint, or "
            f"train it again: {trainer_command(STAGE_TABLE[stage].weights)}.",
            "权重缺少训练信息：请重新训练或换 --checkpoint",
        )


def _is_above_0(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def reference_path(given: Path | None, checkpoint: Path, start: StartFile, stage: str) -> Path:
    """The weights that a checkpoint of DPO or an adapter started from: those that were given, else
    those beside it (beside the folder of adapters).

    Args: start: what its manifest says of them.
    Raises: UserError if they are gone or are other weights, with which it would mean nothing.
    """
    spec = STAGE_TABLE[stage]
    beside = checkpoint.parent.parent if spec.folder else checkpoint.parent
    path = find_dataset(given) if given else beside / start.path
    if not path.exists() or weights_sha256(path) != start.sha256:
        raise UserError(
            f"{display(path)}: not the weights that {display(checkpoint)} started from ({start.path}, SHA-256 "
            f"{start.sha256[:8]}). Give those with --reference, or train anew: python trainer/{spec.trainer}.",
            "不是它训练时的起始权重：请用 --reference 指定，或重新训练",
        )
    return path


def start_of_adapter(path: Path) -> StartFile:
    """The weights that an adapter was trained on. Raises: UserError if it does not say so."""
    start = read_adapter(path).manifest.start
    if start is None:
        raise UserError(
            f"{display(path)}: does not say which weights it was trained on. Give another --checkpoint.",
            "没有记录它的底座权重：请换 --checkpoint",
        )
    return start


def heldout_of_adapter(path: Path, training_data: Sources) -> Path:
    """The held-out file beside the records that an adapter was trained on.

    Args: path: the adapter. training_data: what it and its base have seen; its own records come
    last.
    Raises: UserError if there is none.
    """
    source = Path(training_data[-1].path)
    for place in (source, ROOT / source):
        if heldout := heldout_beside(place):
            return heldout
    raise UserError(
        f"{display(path)}: no held-out records lie beside those that it was trained on. Give some with --data_path.",
        "训练数据旁没有留出数据：请用 --data_path 指定",
    )


# --- the mixture ----------------------------------------------------------------------------------


def mixture_of(folder: Path, training_data: Sources) -> dict[str, Any] | None:
    """The manifest of the mix in a folder, if the checkpoint was trained on one of its files; else
    None."""
    manifest = _mix_in(folder)
    written = _written(manifest)
    return manifest if any(source.sha256 in written for source in training_data) else None


def is_held_out_by_a_mix(path: Path) -> bool:
    """Whether a file has the name of an output of the mix, and a manifest lies beside it."""
    return path.name in OUTPUTS.values() and (path.parent / MANIFEST_FILE).exists()


def is_of_the_same_mix(path: Path, training_data: Sources) -> bool:
    """Whether one mix wrote both this held-out file and all training data of a checkpoint.

    A mix never writes records with the same key to both sides. So the answer True means that the
    model was not trained on any key of this file. We know it even if the training files were
    deleted.
    """
    written = _written(_mix_in(path.parent))
    return is_held_out_by_a_mix(path) and all(source.sha256 in written for source in training_data)


def _mix_in(folder: Path) -> dict[str, Any]:
    """The manifest of the mix in a folder; empty without one that can be read."""
    try:
        manifest = read_json(folder / MANIFEST_FILE, "")
    except UserError:
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _written(manifest: Mapping[str, Any]) -> set[str]:
    """SHA-256 of the files that a mix has written."""
    try:
        return {output["sha256"] for output in manifest["outputs"].values()}
    except (KeyError, TypeError, AttributeError):
        return set()


def names_of(mixture: Mapping[str, Any] | None, otherwise: tuple[str, str]) -> tuple[str, str]:
    """The model's name and its author's, as the mix filled them in. If the identity records are the
    user's own: as those say them, or empty.

    Args: mixture: the manifest of the mix. otherwise: the names to take without one.
    """
    # Identity records of the user's own may say other names than the settings of the mix.
    settings = (mixture or {}).get("settings", {})
    filled = str(settings.get("name", otherwise[0])), str(settings.get("author", otherwise[1]))
    identity = (mixture or {}).get("identity") or {}
    if not identity.get("own"):
        return filled
    return str(identity.get("name") or ""), str(identity.get("author") or "")


def is_bundled(mixture: Mapping[str, Any] | None) -> bool:
    """Whether the mix took all its general talk and knowledge from the bundled samples."""
    sources = (mixture or {}).get("sources", [])
    return all(
        any(source["category"] == category for source in sources)
        and all(source["sample"] for source in sources if source["category"] == category)
        for category in BUNDLED
    )
