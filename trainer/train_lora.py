"""LoRA: teach something new by small matrices beside frozen weights.
低秩适配：冻结原权重，只训练旁路的小矩阵。

python trainer/train_lora.py --profile cpu
python trainer/train_lora.py --data_path my_chats.jsonl --lora_name my_model --from_weight full_sft

Trained: A and B of h = W x + (alpha / r) B A dropout(x) beside each linear layer of the blocks (Hu
et al. 2021, arXiv:2106.09685, eq. 3). W is frozen. Minimised: the loss of SFT.
Data: conversations, packed in rows. Half of the rows of each step are old ones, from the mix
(trainer/replay.py): without them the model would say its new name everywhere.
Start: the weights of SFT. The file of the result holds A and B alone, and the fingerprint of those
weights.
Settings: `lora` of the profile.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.cli import run
from configs.schema import UserError
from configs.stage_settings import AdapterConfig
from configs.train_run import parse_run
from dataset.lm_dataset import SFTDataset
from model.manifest import WeightsManifest
from model.model_lora import Adapter, LoraConfig, adapter_state, attach, base_fingerprint, save_adapter
from model.model_minillm import MiniLLM
from trainer.facts import gather
from trainer.objectives import NextToken
from trainer.recipe import begin, is_done
from trainer.replay import find_replay
from trainer.validation import validation_rows


def main(argv: Sequence[str] | None = None) -> int:
    """Flags -> `OUT_DIR/lora/NAME_HIDDEN.pth`."""
    facts, replay = find_replay(gather(parse_run("lora", __doc__ or "", argv)))
    if facts.start is None:
        raise UserError(
            "--from_weight none: an adapter needs weights that it changes. Name them, such as full_sft.",
            "适配器需要底座权重：请指定，例如 full_sft",
        )
    if is_done(facts):
        return 0
    settings = facts.config
    assert isinstance(settings, AdapterConfig)
    adapter = lora_config(settings).resolve(facts.shape)

    def put_on(model: MiniLLM) -> None:
        attach(model, adapter)

    def save(path: Path, model: MiniLLM, manifest: WeightsManifest) -> None:
        state, base = adapter_state(model), base_fingerprint(model)
        save_adapter(path, Adapter(state=state, config=adapter, manifest=manifest, base=base))

    new = SFTDataset(facts.tensors_path)
    rows = replay.beside(new) if replay else new
    return begin(facts, put_on, save).fit(rows, NextToken(), validation_rows(SFTDataset, facts.tensors_path))


def lora_config(settings: AdapterConfig) -> LoraConfig:
    """What the settings say of the adapter itself. Raises: UserError for a value out of range."""
    return LoraConfig(
        r=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        target_modules=tuple(name.strip() for name in settings.target_modules.split(",") if name.strip()),
        use_rslora=settings.use_rslora,
    )


if __name__ == "__main__":
    run(main)
