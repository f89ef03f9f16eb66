"""One thread that owns an engine. Work goes in and comes out through queues alone."""

import asyncio
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from inference.engine import Engine
from inference.request import FinishReason, Request
from inference.sampling import Sampling, TokenLogprob

FLUSH_SECONDS = 0.02
"""What a stream gains in this time is sent at once. At a thousand tokens a second a message for
each would cost more than the tokens. The first token and the end never wait."""
FLUSH_STREAMS = 16
"""So many streams at once double that time, so that they leave the engine its share of the CPU."""


class Delta(NamedTuple):
    """What an answer has gained."""

    answer: int
    """Which answer of its job."""
    text: str
    ids: Sequence[int]
    logprobs: Sequence[TokenLogprob]
    finish_reason: FinishReason | Literal["crash"] | None
    """None: it goes on. `crash`: the engine failed."""
    cached_tokens: int
    prompt_logprobs: Sequence[TokenLogprob] = ()
    """Of the tokens of the prompt but for the first, if the job asks for them; before all else."""


PromptScores = Callable[[Sequence[int], int], list[TokenLogprob]]
"""Prompt, k -> log-probabilities of its tokens but for the first, with the k likeliest."""


@dataclass(eq=False)
class Job:
    """`n` answers to each of some prompts, as one client waits for them."""

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    n: int
    scores_prompts: bool = False
    """Whether the log-probabilities of the prompts are wanted too."""
    generates: bool = True
    """Whether answers are wanted; else only what the prompts score."""
    deltas: "asyncio.Queue[Delta | None]" = field(default_factory=asyncio.Queue)
    """What comes out. The queue belongs to the event loop. None: whoever waits has waited long."""
    open: set[int] = field(default_factory=set)
    """Answers that are not finished. Only the event loop reads and writes it."""

    def __post_init__(self) -> None:
        self.open = set(range(self.n * len(self.prompts)))

    def put(self, delta: Delta) -> None:
        """Give the client what an answer has gained."""
        if delta.answer in self.open:
            if delta.finish_reason is not None:
                self.open.discard(delta.answer)
            self.deltas.put_nowait(delta)


@dataclass(eq=False)
class _Tracked:
    """A request of the engine, and how much of it was given out."""

    job: Job
    index: int
    num_sent: int = 0


class EngineThread(threading.Thread):
    """Runs an engine. `submit` and `abort` may be called from the event loop."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        prompt_scores: PromptScores,
        loop: asyncio.AbstractEventLoop,
        name: str,
    ) -> None:
        """Args: make_engine: called here, and again if the engine fails."""
        super().__init__(name=f"engine {name}", daemon=True)
        self._make, self._prompt_scores, self._loop = make_engine, prompt_scores, loop
        self._engine = make_engine()
        self._commands: queue.SimpleQueue[tuple[Literal["add", "abort", "close"], Job | None]] = queue.SimpleQueue()
        self._tracked: dict[Request, _Tracked] = {}
        self._changed: dict[Request, _Tracked] = {}
        self._flushed = 0.0
        self.num_running = 0
        """Answers that have a slot."""
        self.num_waiting = 0
        """Answers that wait for one."""

    def submit(self, job: Job) -> None:
        """Begin the answers of a job."""
        self._commands.put(("add", job))

    def abort(self, job: Job) -> None:
        """Nobody waits for a job any more: its slots are free before the next step."""
        self._commands.put(("abort", job))

    def close(self) -> None:
        """End the thread; what runs is left."""
        self._commands.put(("close", None))

    # --- in the thread ----------------------------------------------------------------------------

    def run(self) -> None:
        """Take work, make a step, give out what came of it; for ever."""
        while self._obey():
            if not self._engine.has_work:
                continue
            try:
                touched = self._engine.step()
            except Exception:
                traceback.print_exc(file=sys.stderr)
                self._start_again()
                continue
            self._note(touched)
        self._tracked.clear()

    def _obey(self) -> bool:
        """Do what was asked for; wait for it if there is nothing else to do. False: the end."""
        wait = not self._engine.has_work
        while True:
            try:
                verb, job = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if verb == "close" or job is None:
                return False
            if verb == "abort":
                self._abort(job)
            else:
                try:
                    self._add(job)
                except Exception:  # as too little memory for the scores of a long prompt
                    traceback.print_exc(file=sys.stderr)
                    self._abort(job)
                    self._send([(job, _crash(answer)) for answer in range(job.n * len(job.prompts))])
            self._count()
            wait = False

    def _add(self, job: Job) -> None:
        if job.scores_prompts:
            self._score_prompts(job)
        for number, prompt in enumerate(job.prompts if job.generates else ()):
            for place, request in enumerate(self._engine.add(prompt, job.sampling, job.n)):
                self._tracked[request] = _Tracked(job, number * job.n + place)

    def _score_prompts(self, job: Job) -> None:
        """Answers that run wait for it: as long as it takes to read these prompts."""
        end: Literal["length"] | None = None if job.generates else "length"
        deltas = []
        for number, prompt in enumerate(job.prompts):
            scores = self._prompt_scores(prompt, job.sampling.logprobs or 0)
            deltas += [Delta(number * job.n + place, "", [], [], end, 0, scores) for place in range(job.n)]
        self._send([(job, delta) for delta in deltas])

    def _abort(self, job: Job) -> None:
        for request in [request for request, tracked in self._tracked.items() if tracked.job is job]:
            self._engine.abort(request)
            del self._tracked[request]
            self._changed.pop(request, None)

    def _note(self, touched: Sequence[Request]) -> None:
        """Remember who has gained something, and give it out if it is time."""
        urgent = []
        for request in touched:
            if tracked := self._tracked.get(request):
                self._changed[request] = tracked
                if request.finished or tracked.num_sent == 0:
                    urgent.append(request)
        now = time.monotonic()
        if now - self._flushed >= FLUSH_SECONDS * (1 + len(self._changed) / FLUSH_STREAMS):
            self._flushed = now
            self._give_out(list(self._changed))
        elif urgent:
            self._give_out(urgent)
        self._count()

    def _give_out(self, requests: Sequence[Request]) -> None:
        deltas = []
        for request in requests:
            tracked = self._changed.pop(request)
            start, tracked.num_sent = tracked.num_sent, len(request.ids)
            ids, logprobs = request.ids[start:], request.logprobs[start:]
            delta = Delta(
                tracked.index, request.new_text(), ids, logprobs, request.finish_reason, request.cached_tokens
            )
            deltas.append((tracked.job, delta))
            if request.finished:
                del self._tracked[request]
        self._send(deltas)

    def _start_again(self) -> None:
        """The engine failed: all answers end, and a new engine takes its place."""
        failed = [(tracked.job, _crash(tracked.index)) for tracked in self._tracked.values()]
        self._tracked.clear()
        self._changed.clear()
        self._engine = self._make()
        self._count()
        self._send(failed)

    def _count(self) -> None:
        """How many answers run and how many wait, for everybody to read."""
        self.num_running = sum(slot.request is not None for slot in self._engine.scheduler.slots)
        self.num_waiting = max(0, len(self._tracked) - self.num_running)

    def _send(self, deltas: Sequence[tuple[Job, Delta]]) -> None:
        """Hand results to the event loop, all in one call."""

        def put() -> None:
            for job, delta in deltas:
                job.put(delta)

        try:
            self._loop.call_soon_threadsafe(put)
        except RuntimeError:  # the loop is closed: nobody is left to read them
            self.close()


def _crash(answer: int) -> Delta:
    """The end of an answer whose engine failed."""
    return Delta(answer, "", [], [], "crash", 0)
