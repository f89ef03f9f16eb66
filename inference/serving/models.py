"""The models that a server has, each with an engine and a thread of its own."""

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from configs.messages import warn
from configs.schema import UserError
from configs.stage_table import continues_text
from dataset.tokenizer import RustBPETokenizer
from inference.conversation import context_tokens
from inference.engine import MAX_BATCH_SIZE, Engine
from inference.loading import OpenModel
from inference.processors import model_logprobs
from inference.sampling import TokenLogprob
from inference.serving.errors import ApiError, invalid
from inference.serving.fields import shown
from inference.serving.protocol import Ask, Reader
from inference.serving.worker import Delta, EngineThread, Job
from model.model_minillm import MiniLLM

SCORED_TOKENS = 256
"""Tokens of a prompt whose logits exist at once."""


class Served:
    """One model, under the name that clients use."""

    def __init__(
        self,
        name: str,
        model: MiniLLM,
        tokenizer: RustBPETokenizer,
        *,
        completes: bool = False,
        created: int = 0,
        max_batch_size: int = MAX_BATCH_SIZE,
        max_queue: int = 64,
    ) -> None:
        """Args: completes: see `Reader`. created: when the weights were written, in Unix seconds.
        max_batch_size: answers at once. max_queue: further answers that may wait."""
        self.name, self.model, self.created = name, model, created
        self.max_batch_size, self.max_queue = max_batch_size, max_queue
        self.reader = Reader(tokenizer, context_tokens(model), completes)
        self.jobs: set[Job] = set()
        """Jobs that somebody waits for."""
        self.thread: EngineThread | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start its thread, whose results go to this loop."""

        def make_engine() -> Engine:
            return Engine(self.model, self.reader.tokenizer, max_batch_size=self.max_batch_size)

        self.thread = EngineThread(make_engine, self.prompt_scores, loop, self.name)
        self.thread.start()

    @torch.inference_mode()
    def prompt_scores(self, prompt: Sequence[int], k: int) -> list[TokenLogprob]:
        """How likely the tokens of a prompt are, each after those before it; none for the first.

        Args: k: so many of the likeliest tokens are named.
        """
        hidden, _ = self.model.hidden_states(torch.tensor([list(prompt)], device=self.model.device))  # (1, T, C)
        scores = []
        # Never all logits at once: with a large vocabulary they would not fit into memory.
        for start in range(0, len(prompt) - 1, SCORED_TOKENS):
            targets = prompt[start + 1 : start + 1 + SCORED_TOKENS]
            rows = self.model.logits(hidden[0, start : start + len(targets)]).float().cpu()  # (n, V)
            for row, token in zip(rows, targets, strict=True):
                logprob, top = model_logprobs(row, token, k)
                scores.append(TokenLogprob(token, logprob, 0.0, top))
        return scores

    def close(self) -> None:
        """End its thread."""
        if self.thread is not None:
            self.thread.close()
            self.thread.join()

    def submit(self, ask: Ask) -> Job:
        """Begin what is asked for. Raises: ApiError if too much is asked, or too many wait."""
        assert self.thread is not None
        if ask.num_answers > self.max_batch_size:
            raise invalid(
                "n",
                f"{ask.num_answers} answers: at most {self.max_batch_size} at once.",
                f"最多同时 {self.max_batch_size} 个",
            )
        scores_prompts = ask.echo is not None and ask.sampling.logprobs is not None
        job = Job(ask.prompts, ask.sampling, ask.n, scores_prompts, generates=ask.max_tokens > 0)
        if not job.generates and not scores_prompts:
            for index in range(ask.num_answers):
                job.put(Delta(index, "", [], [], "length", 0))
            return job
        unfinished = sum(len(other.open) for other in self.jobs)
        if unfinished + ask.num_answers > self.max_batch_size + self.max_queue:
            seconds = max(1, math.ceil(unfinished / self.max_batch_size))
            raise ApiError(
                429,
                "queue_full",
                f"{unfinished} answers run or wait; the queue is full. Try again in {seconds} s.",
                "排队已满，请稍后再试",
                headers={"Retry-After": str(seconds)},
            )
        self.jobs.add(job)
        self.thread.submit(job)
        return job

    def leave(self, job: Job) -> None:
        """Nobody waits for a job any more."""
        self.jobs.discard(job)
        if job.open and self.thread is not None:
            job.open.clear()
            self.thread.abort(job)

    def end_all(self) -> None:
        """End all answers; whoever waits for one is told."""
        for job in list(self.jobs):
            for index in list(job.open):
                job.put(Delta(index, "", [], [], "abort", 0))
            if self.thread is not None:
                self.thread.abort(job)


class Models:
    """All models of a server, by name."""

    def __init__(self, served: Sequence[Served]) -> None:
        """Args: served: at least one, each with a name of its own."""
        self.by_name = {one.name: one for one in served}

    def find(self, name: str | None) -> Served:
        """The model that a client names; without a name the first. Raises: ApiError: 404."""
        if name is None:
            return next(iter(self.by_name.values()))
        if name not in self.by_name:
            raise ApiError(
                404,
                "model_not_found",
                f"the model {shown(name)} is not served here. There are: {', '.join(self.by_name)}.",
                "没有这个模型",
                param="model",
            )
        return self.by_name[name]

    def listed(self) -> list[dict[str, object]]:
        """The models as `/v1/models` shows them."""
        return [
            {
                "id": one.name,
                "object": "model",
                "created": one.created,
                "owned_by": "minillm",
                "max_model_len": one.reader.room,
            }
            for one in self.by_name.values()
        ]

    @property
    def num_running(self) -> int:
        """Answers that have a slot."""
        return sum(one.thread.num_running for one in self.by_name.values() if one.thread)

    @property
    def num_waiting(self) -> int:
        """Answers that wait for a slot."""
        return sum(one.thread.num_waiting for one in self.by_name.values() if one.thread)


def open_models(
    paths: Sequence[Path],
    adapters: Sequence[str],
    open_one: Callable[[Path, str | None], OpenModel],
    *,
    max_batch_size: int,
    max_queue: int,
) -> Models:
    """Open all weights, each also with those adapters that were made for it.

    Names: `WEIGHT`, the stem of the file or the name of the folder; with an adapter `WEIGHT+NAME`.
    Args: adapters: names or paths. open_one: opens weights, with an adapter or without.
    Raises: UserError if a file can't be opened, an adapter fits none of the weights, or two models
    have one name.
    """
    names = [path.name if path.is_dir() else path.stem for path in paths]
    opened = {name: open_one(path, None) for name, path in zip(names, paths, strict=True)}
    if len(opened) < len(paths):
        raise _same_name()
    for adapter in adapters:
        name, found, refusals = Path(adapter).stem, {}, []
        for base, path in zip(names, paths, strict=True):
            try:
                found[f"{base}+{name}"] = open_one(path, adapter)
            except UserError as error:
                refusals.append(error)
        if not found:
            raise refusals[0]
        if refusals:
            others = "the other" if len(refusals) == 1 else f"{len(refusals)} others"
            warn(
                f"{adapter}: serves {', '.join(found)} alone; {others} can't use it ({refusals[0]})",
                f"其余 {len(refusals)} 个权重不能用它（{refusals[0].chinese}）",
            )
        if found.keys() & opened.keys():
            raise _same_name()
        opened |= found
    return Models(
        [
            Served(
                name,
                one.model,
                one.tokenizer,
                completes=continues_text(one.manifest.stage),
                created=int(one.path.stat().st_mtime),
                max_batch_size=max_batch_size,
                max_queue=max_queue,
            )
            for name, one in opened.items()
        ]
    )


def _same_name() -> UserError:
    return UserError(
        "two of the weights or adapters have one name. Rename one of the files, since clients choose by it.",
        "有两个权重或适配器同名：请改名，客户端按名称选择",
    )
