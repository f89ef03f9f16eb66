"""Other programs that read an exported model, each behind the same four questions (`Reader`)."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.schema import UserError
from dataset.chat import Message
from inference.verify import until_end
from model.export import read_hugging_face
from model.model_minillm import MiniLLM


class Transformers:
    """A Hugging Face folder in transformers, in float32 on the CPU."""

    name = "transformers"

    def __init__(self, folder: Path) -> None:
        """Raises: UserError when transformers is missing or can't read the folder."""
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is to be looked up in the net
        try:
            import transformers
        except ImportError:
            raise UserError(
                'the package transformers is missing. Run: pip install "transformers>=4.51"',
                "缺少 transformers：请运行所列命令安装",
            ) from None
        transformers.utils.logging.disable_progress_bar()
        self.folder = folder
        self.version: str = transformers.__version__
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        file = folder / "chat_template.jinja"
        self.chat_templates = [self.tokenizer.chat_template, values["chat_template"], file.read_text(encoding="utf-8")]

    @torch.inference_mode()
    def scores(self, prompts: Tensor) -> Tensor:
        """As `Reader`: logits."""
        logits: Tensor = self.model(prompts).logits.float()
        return logits

    @torch.inference_mode()
    def greedy(self, prompts: Tensor, num_tokens: int) -> list[list[int]]:
        """As `Reader`; where to stop it knows from generation_config.json."""
        rows = self.model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=num_tokens
        )
        ends = set(self.model.generation_config.eos_token_id)
        return [until_end(row, ends) for row in rows[:, prompts.shape[1] :].tolist()]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """As `Reader`."""
        return [self.tokenizer(text, split_special_tokens=True)["input_ids"] for text in texts]

    def has_weights(self, model: MiniLLM) -> bool:
        """As `Reader`: every bit."""
        state = read_hugging_face(self.folder)[0]
        ours = model.state_dict()
        return state.keys() == ours.keys() and all(torch.equal(tensor, ours[name]) for name, tensor in state.items())

    def has_merges(self, merges: Sequence[tuple[str, str]]) -> bool:
        """As `Reader`."""
        used = json.loads(self.tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in used] == list(merges)

    def templates(self, messages: Sequence[Message], **options: Any) -> list[list[int]]:
        """As `Reader`: the template as transformers found it, and both files."""
        render: Any = self.tokenizer.apply_chat_template  # its types differ between versions
        given = [dict(message) for message in messages]
        return [
            list(render(given, chat_template=template, tokenize=True, return_dict=False, **options))
            for template in self.chat_templates
        ]
