"""Bundled data sets outside the mix: each trains an optional stage. Written to DATA_DIR by name."""

import json
from pathlib import Path

from configs.artifacts import atomic_write
from dataset.samples.exam import without_exam
from dataset.samples.generators import generated

SAMPLE_SETS = {
    "lora_identity": "adapters.identity",
    "lora_medical": "adapters.medical",
    "reasoning": "reasoning.questions",
    "reward_sums": "preference.sums",
    "prompts_sums": "prompts.sums",
    "prompts_words": "prompts.sentences",
}
"""Name of a set, as for `--data_path` -> its generator, as for `generated`."""


def write_set(name: str, folder: Path) -> Path:
    """Write a set: `NAME.jsonl`, and beside it `NAME_heldout.jsonl` with the records that have a
    `split`. Files that hold just this are kept as they are.

    Returns: the first file.
    """
    records = list(without_exam(generated(SAMPLE_SETS[name])))
    paths = folder / f"{name}.jsonl", folder / f"{name}_heldout.jsonl"
    for path, is_heldout in zip(paths, (False, True), strict=True):
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in records if ("split" in one) is is_heldout)
        text = "".join(lines)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            with atomic_write(path) as file:
                file.write(text)
    return paths[0]
