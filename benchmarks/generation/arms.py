"""The arms of generation_speed.py: each generates in a process of its own.

    python -m benchmarks.generation.arms JOB

JOB is a `Job` as JSON. Each line of stdin is a number of rows. For each, a line of stdout tells the
CPU seconds of one step: a new token for every row, after all prompts were read.
"""

import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import configs  # noqa: F401  # before torch: it says what to do where that is missing

# isort: split

import torch

from configs.cli import Parser, run
from configs.schema import UserError
from inference.benchmark import Load, floor_of, run_once
from inference.engine import Engine
from inference.loading import open_model
from inference.sampling import Sampling
from model.model_minillm import MiniLLM
from model.quantize import KINDS, NONE
from model.weights import load_model

CPU = torch.device("cpu")
OURS = ("float32", *KINDS)
GGUF_KINDS = ("f32", "f16", "q8_0", "q4_0")
FLOOR, TRANSFORMERS = "floor", "transformers"
ARMS = (FLOOR, *(f"ours {kind}" for kind in OURS), TRANSFORMERS, *(f"llama.cpp {kind}" for kind in GGUF_KINDS))
"""The floor is every matrix of a step through `F.linear`, in float32."""
WEIGHTS, FOLDER = "model.pth", "hf"
WARM_TOKENS = 4
"""Tokens that are generated before anything is timed: matrices are packed, memory is taken."""
TIMEOUT_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an arm is to do."""

    arm: str
    """One of ARMS."""
    folder: str
    """Where `generation_speed.py` put the model in every format."""
    threads: int
    most_rows: int
    """The largest number of rows that will be asked for."""
    prompt_tokens: int
    new_tokens: int

    @property
    def weights(self) -> Path:
        """Our weight file."""
        return Path(self.folder) / WEIGHTS


class Arm(Protocol):
    """A program that generates greedily and goes on at end tokens."""

    version: str

    def step_seconds(self, rows: int, new_tokens: int) -> float:
        """CPU seconds of all threads for one step, the mean of `new_tokens` of them."""


class Floor:
    """The matrix products of a step alone."""

    version: str = torch.__version__

    def __init__(self, job: Job) -> None:
        self.model: MiniLLM = load_model(job.weights, device=CPU)[0]

    def step_seconds(self, rows: int, new_tokens: int) -> float:
        """As `Arm`."""
        products = floor_of(self.model, rows)
        products()
        start = time.process_time()
        for _ in range(new_tokens):  # as long as the others take, so that it meets as much disturbance
            products()
        return (time.process_time() - start) / new_tokens


class Ours:
    """Our engine, with one kind of weights."""

    version: str = torch.__version__

    def __init__(self, job: Job) -> None:
        self.job, kind = job, job.arm.split()[1]
        opened = open_model(job.weights, device=CPU, quantize=NONE if kind == "float32" else kind)
        self.engine = Engine(opened.model, opened.tokenizer, max_batch_size=job.most_rows)

    @torch.no_grad()
    def step_seconds(self, rows: int, new_tokens: int) -> float:
        """As `Arm`. The prompts are the same each time, so that they are read only once."""
        # Prompts are read beside the first answers. So that all rows run together for
        # `new_tokens` steps, the first ones get more tokens.
        extra = rows * self.job.prompt_tokens // 64 + 1
        load = Load(prompt_tokens=self.job.prompt_tokens, new_tokens=new_tokens + extra, batch_size=rows)
        steps = run_once(self.engine, load, Sampling(max_new_tokens=load.new_tokens), seed=rows)[1][:new_tokens]
        return sum(steps) / len(steps)


class Transformers:
    """`generate` of transformers, with its cache, in float32."""

    def __init__(self, job: Job) -> None:
        """Raises: UserError where the package is missing."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        try:
            import transformers
        except ImportError:
            raise UserError('the package transformers is missing. Run: pip install "transformers>=4.51"') from None
        self.version: str = transformers.__version__
        self.prompt_tokens = job.prompt_tokens
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            Path(job.folder) / FOLDER, dtype=torch.float32
        ).eval()
        self.model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def step_seconds(self, rows: int, new_tokens: int) -> float:
        """As `Arm`."""
        times: list[float] = []

        def note(ids: torch.Tensor, scores: Any, **rest: Any) -> torch.Tensor:
            times.append(time.process_time())  # after each step
            return torch.zeros(len(ids), dtype=torch.bool)

        prompts = random_prompts(rows, self.prompt_tokens, self.model.config.vocab_size)
        self.model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(rows, self.prompt_tokens, dtype=torch.long),
            do_sample=False,
            max_new_tokens=new_tokens + 1,
            pad_token_id=0,
            stopping_criteria=[note],
        )
        return (times[-1] - times[0]) / (len(times) - 1)


class LlamaCpp:
    """llama.cpp's server (the wheel `xllamacpp`), with its own defaults: a cache in float16 and
    flash attention where it wants them."""

    def __init__(self, job: Job) -> None:
        """Raises: UserError where the package is missing."""
        try:
            import xllamacpp
        except ImportError:
            raise UserError("the package xllamacpp is missing. Run: pip install xllamacpp") from None
        self.version = f"{xllamacpp.__version__} ({' '.join(xllamacpp.get_system_info().split())})"
        self.prompt_tokens, self.vocab_size = (
            job.prompt_tokens,
            load_model(job.weights, device=CPU)[0].config.vocab_size,
        )
        settings = xllamacpp.CommonParams()
        settings.model.path = str(Path(job.folder) / f"{job.arm.split()[1]}.gguf")
        # A place for each token, and some to spare: a full slot would end an answer.
        settings.n_parallel, settings.n_ctx = job.most_rows, job.most_rows * (job.prompt_tokens + job.new_tokens + 64)
        settings.kv_unified = False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = job.threads
        settings.warmup = settings.ui = False
        settings.cache_ram_mib, settings.verbosity = 0, -1
        self.server = xllamacpp.Server(settings)

    def step_seconds(self, rows: int, new_tokens: int) -> float:
        """As `Arm`. The prompts are read first and stay in the cache."""
        prompts = random_prompts(rows, self.prompt_tokens, self.vocab_size)
        self._complete(prompts, 1)
        start = time.process_time()
        told = self._complete(prompts, new_tokens)
        spent = time.process_time() - start
        read = [answer["timings"]["prompt_n"] for answer in told]
        made = [answer["timings"]["predicted_n"] for answer in told]
        if max(read) > 1 or min(made) < new_tokens:
            raise UserError(f"llama.cpp: read {max(read)} tokens again, made {min(made)} of {new_tokens}.")
        return spent / new_tokens

    def _complete(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[dict[str, Any]]:
        """All prompts at the same time, each in its own slot."""
        told: dict[int, dict[str, Any]] = {}

        def ask(slot: int) -> None:
            values = {
                "prompt": prompts[slot], "n_predict": num_tokens, "id_slot": slot, "cache_prompt": True,
                "temperature": 0.0, "samplers": ["temperature"], "ignore_eos": True,
            }  # fmt: skip
            request = urllib.request.Request(
                f"{self.server.listening_address}/completion",
                json.dumps(values).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                told[slot] = json.loads(answer.read())

        threads = [threading.Thread(target=ask, args=(slot,)) for slot in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(told) < len(prompts):
            raise UserError(f"llama.cpp: {len(told)} of {len(prompts)} answers came.")
        return [told[slot] for slot in range(len(prompts))]


def random_prompts(rows: int, num_tokens: int, vocab_size: int) -> list[list[int]]:
    """Prompts of random tokens, always the same."""
    generator = torch.Generator().manual_seed(rows)
    ids: list[list[int]] = torch.randint(vocab_size - 64, (rows, num_tokens), generator=generator).tolist()
    return ids


def arm_of(job: Job) -> Arm:
    """The arm that a job names, with the model loaded. Raises: UserError."""
    program = job.arm.split()[0]
    kinds: dict[str, type[Floor | Ours | Transformers | LlamaCpp]] = {
        FLOOR: Floor, "ours": Ours, TRANSFORMERS: Transformers, "llama.cpp": LlamaCpp,
    }  # fmt: skip
    return kinds[program](job)


def main(argv: Sequence[str] | None = None) -> int:
    """Answer each line of stdin until it ends."""
    parser = Parser(description=__doc__)
    parser.add_argument("job", metavar="JOB", help="what to do, as JSON 任务")
    job = Job(**json.loads(parser.parse_args(argv).job))
    # Libraries that print something must not disturb the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(job.threads)
    arm = arm_of(job)
    print(json.dumps({"version": arm.version}), file=answers, flush=True)
    warm = set()
    for line in sys.stdin:
        rows = int(line)
        if rows not in warm:
            arm.step_seconds(rows, WARM_TOKENS)
            warm.add(rows)
        print(json.dumps({"step": arm.step_seconds(rows, job.new_tokens)}), file=answers, flush=True)
    return 0


def as_json(job: Job) -> str:
    """For the command line."""
    return json.dumps(asdict(job))


if __name__ == "__main__":
    run(main)
