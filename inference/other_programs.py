"""Other programs that read an exported model, each behind one interface (`Reader`)."""

import importlib.util
import json
import os
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.hardware import num_cores
from configs.paths import display
from configs.schema import UserError
from dataset.chat import Message
from inference.verify import Reader, until_end
from model.export import read_hugging_face
from model.gguf import OPENS_A_THOUGHT, our_names, read_gguf, rounded
from model.model_lora import attach_adapter, merge
from model.model_minillm import MiniLLM
from model.peft_export import read_peft

CONTEXT = 2048
"""Tokens that llama.cpp reserves memory for."""
TIMEOUT_SECONDS = 120


class HuggingFaceFolder:
    """What all programs that read a Hugging Face folder share: transformers' tokenizer."""

    def __init__(self, folder: Path) -> None:
        """Raises: UserError when transformers is missing."""
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is to be looked up in the net
        try:
            import transformers
        except ImportError:
            raise UserError(
                'the package transformers is missing. Run: pip install "transformers>=4.51"',
                "缺少 transformers：请运行所列命令安装",
            ) from None
        transformers.utils.logging.disable_progress_bar()
        self.folder, self.transformers = folder, transformers
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        file = folder / "chat_template.jinja"
        copies = [self.tokenizer.chat_template, values.get("chat_template"), file.read_text(encoding="utf-8")]
        self.chat_templates = [template for template in copies if template is not None]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """As `Reader`."""
        return [self.tokenizer(text, split_special_tokens=True)["input_ids"] for text in texts]

    def has_weights(self, model: MiniLLM) -> bool:
        """As `Reader`: every bit."""
        state = read_hugging_face(self.folder)[0]
        ours = model.state_dict()
        return state.keys() == ours.keys() and all(torch.equal(tensor, ours[name]) for name, tensor in state.items())

    def held(self, model: MiniLLM) -> MiniLLM:
        """As `Reader`: nothing was rounded."""
        return model

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


class Transformers(HuggingFaceFolder):
    """A folder in transformers, in float32 on the CPU."""

    name = "transformers"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.version: str = self.transformers.__version__
        self.model = self.transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

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


class Peft(Transformers):
    """A folder in transformers, with an adapter that peft puts on it."""

    name = "peft"

    def __init__(self, base: Path, adapter: Path) -> None:
        """Raises: UserError when peft is missing."""
        super().__init__(base)
        try:
            import peft
        except ImportError:
            raise UserError(
                "the package peft is missing. Run: pip install peft", "缺少 peft：请运行所列命令安装"
            ) from None
        self.version: str = peft.__version__
        self.adapter = adapter
        self.model = peft.PeftModel.from_pretrained(self.model, adapter).eval()

    def has_weights(self, model: MiniLLM) -> bool:
        """As `Reader`: both folders give every bit of the merged weights."""
        held = MiniLLM(model.config)
        held.load_state_dict(read_hugging_face(self.folder)[0])
        attach_adapter(held, read_peft(self.adapter), self.adapter, self.folder)
        merge(held)
        return all(torch.equal(tensor, held.state_dict()[name]) for name, tensor in model.state_dict().items())


class Mlx(HuggingFaceFolder):
    """A folder in MLX, through mlx-lm, in float32."""

    name = "mlx"

    def __init__(self, folder: Path) -> None:
        """Raises: ImportError when mlx-lm is missing, UserError when it can't read the folder."""
        import mlx.core
        import mlx_lm
        from mlx_lm.models.cache import make_prompt_cache

        super().__init__(folder)
        self.version: str = mlx_lm.__version__
        self.arrays, self.new_cache = mlx.core, make_prompt_cache
        try:
            self.model, words = mlx_lm.load(str(folder))[:2]
        except ValueError as error:  # mlx-lm 0.29 knows no mixture whose output matrix is its embedding
            raise UserError(
                f"{display(folder)}: mlx-lm {self.version} can't read it ({str(error).splitlines()[-1]}). "
                "Run: pip install --upgrade mlx-lm",
                "此版本的 mlx-lm 无法读取：请升级",
            ) from None
        self.ends = set(words.eos_token_ids)

    def _logits(self, ids: Tensor, cache: Any = None) -> Tensor:
        """(B, T) -> (B, T, V)."""
        logits = self.model(self.arrays.array(ids.numpy()), cache=cache)
        return torch.from_numpy(np.array(logits.astype(self.arrays.float32)))

    def scores(self, prompts: Tensor) -> Tensor:
        """As `Reader`: logits."""
        return self._logits(prompts)

    def greedy(self, prompts: Tensor, num_tokens: int) -> list[list[int]]:
        """As `Reader`; where to stop it knows from the folder."""
        cache, ids, columns = self.new_cache(self.model), prompts, []
        for _ in range(num_tokens):
            ids = self._logits(ids, cache)[:, -1].argmax(dim=-1)[:, None]  # (B, 1)
            columns.append(ids)
        return [until_end(row, self.ends) for row in torch.cat(columns, dim=1).tolist()]


def readers_of_folder(folder: Path) -> list[Reader]:
    """transformers, and MLX where it is installed."""
    found: list[Reader] = [Transformers(folder)]
    if importlib.util.find_spec("mlx_lm") is not None:
        found.append(Mlx(folder))
    return found


class LlamaCpp:
    """A GGUF file in llama.cpp: the wheel `xllamacpp` runs its server inside this process.

    Flash attention and a cache in float16, both usual there, would change log-probabilities by
    0.004: they are turned off.
    """

    name = "llama.cpp"

    def __init__(self, path: Path, kind: str) -> None:
        """Args: kind: the type of the file, of model.gguf.KINDS. Raises: UserError when the package
        is missing or can't read the file."""
        try:
            import xllamacpp
        except ImportError:
            raise UserError(
                "the package xllamacpp is missing. Run: pip install xllamacpp", "缺少 xllamacpp：请运行所列命令安装"
            ) from None
        self.version: str = xllamacpp.__version__
        self.kind = kind
        self.tensors, self.header = read_gguf(path)
        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_parallel, settings.n_ctx, settings.cpuparams.n_threads = 1, CONTEXT, num_cores()
        settings.warmup = settings.cache_prompt = settings.prefill_assistant = settings.ui = False
        settings.cache_ram_mib, settings.verbosity = 0, -1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self.server = xllamacpp.Server(settings)
        except RuntimeError as error:
            raise UserError(
                f"{display(path)}: llama.cpp can't read it ({error}).", "llama.cpp 无法读取该文件"
            ) from None

    def _ask(self, question: str, **values: Any) -> Any:
        """One request to the server in this process."""
        body = json.dumps(values).encode()
        request = urllib.request.Request(
            f"{self.server.listening_address}/{question}", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.loads(answer.read())

    def _continue(self, prompt: Tensor, num_tokens: int, **values: Any) -> Any:
        """The likeliest tokens after a prompt (T,)."""
        return self._ask("completion", prompt=prompt.tolist(), n_predict=num_tokens, temperature=0.0, **values)

    def scores(self, prompts: Tensor) -> Tensor:
        """As `Reader`: log-probabilities of the next token."""
        size = len(self.header["tokenizer.ggml.tokens"])
        found = torch.full((len(prompts), 1, size), float("nan"))
        for row, prompt in zip(found, prompts, strict=True):
            answer = self._continue(prompt, 1, n_probs=size, post_sampling_probs=False)
            for place in answer.get("completion_probabilities", [])[:1]:
                told = place["top_logprobs"]
                row[0, torch.tensor([token["id"] for token in told])] = torch.tensor([t["logprob"] for t in told])
        return found

    def greedy(self, prompts: Tensor, num_tokens: int) -> list[list[int]]:
        """As `Reader`."""
        ends = {self.header["tokenizer.ggml.eos_token_id"], self.header["tokenizer.ggml.eom_token_id"]}
        return [until_end(self._continue(prompt, num_tokens, return_tokens=True)["tokens"], ends) for prompt in prompts]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """As `Reader`."""
        return [self._tokens(text, marks=False) for text in texts]

    def _tokens(self, text: str, *, marks: bool) -> list[int]:
        ids: list[int] = self._ask("tokenize", content=text, add_special=False, parse_special=marks)["tokens"]
        return ids

    def has_weights(self, model: MiniLLM) -> bool:
        """As `Reader`: every bit after rounding."""
        wanted = rounded(model.state_dict(), self.kind)
        return wanted.keys() == self.tensors.keys() and all(
            torch.equal(tensor, self.tensors[name]) for name, tensor in wanted.items()
        )

    def held(self, model: MiniLLM) -> MiniLLM:
        """As `Reader`."""
        held = MiniLLM(model.config).eval()
        held.load_state_dict(our_names(self.tensors, model.state_dict()))
        return held

    def has_merges(self, merges: Sequence[tuple[str, str]]) -> bool:
        """As `Reader`."""
        return [tuple(pair.split(" ")) for pair in self.header["tokenizer.ggml.merges"]] == list(merges)

    def templates(self, messages: Sequence[Message], **options: Any) -> list[list[int]]:
        """As `Reader`. llama.cpp takes tools beside the messages, and says `enable_thinking = true`
        where nobody says anything."""
        thinking = options.get("enable_thinking")
        if thinking and not self.thinks:
            return []
        if thinking is None and self.thinks and options.get("add_generation_prompt"):
            return []
        tools = [tool for message in messages for tool in message.get("tools", [])]
        text = self._ask(
            "apply-template",
            messages=[as_in_openai(message) for message in messages],
            add_generation_prompt=bool(options.get("add_generation_prompt")),
            chat_template_kwargs={} if thinking is None else {"enable_thinking": thinking},
            **({"tools": tools} if tools else {}),
        )["prompt"]
        return [self._tokens(text, marks=True)]

    @property
    def thinks(self) -> bool:
        """Whether the template of the file opens a thought."""
        return OPENS_A_THOUGHT in self.header["tokenizer.chat_template"]


def as_in_openai(message: Message) -> dict[str, Any]:
    """A message as programs with OpenAI's interface take it: the arguments of calls are text."""
    given = {key: value for key, value in message.items() if key not in {"tools", "tool_calls"}}
    calls = [call.get("function") or call for call in message.get("tool_calls", [])]
    if calls:
        given["tool_calls"] = [
            {
                "type": "function",
                "id": f"call_{number}",
                "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
            }
            for number, call in enumerate(calls)
        ]
    return given
