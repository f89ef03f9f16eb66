"""Runs of our trainer that fill a budget of seconds: how many steps fit, and of which size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.training.arms import Bench
from benchmarks.training.baseline import SAVE_SECONDS
from benchmarks.training.runs import Run, finished, once
from benchmarks.training.speed import Speed, measure_speed
from model.weights import load_model


def steps_within(seconds: float, startup_seconds: float, step_seconds: float) -> int:
    """Steps that fit a budget: start-up and the weights' writing taken off."""
    return max(1, math.floor((seconds - startup_seconds - SAVE_SECONDS) / step_seconds))


@dataclass(frozen=True, slots=True)
class Paced:
    """What our trainer does in a budget, as far as it must be known beforehand."""

    step_words: list[str]
    """Flags of the size of a step."""
    speed: Speed

    def steps(self, budget_seconds: float) -> int:
        """Steps that fit."""
        return steps_within(budget_seconds, self.speed.startup_seconds, self.speed.step_seconds)


def our_speed(bench: Bench, step_words: Sequence[str]) -> Speed:
    """Our speed in steps of a given size, noted so that a later call takes it from there.

    The steps of a run follow from it, and the journal finds a run only by its number of steps.
    """

    def make() -> Speed:
        return measure_speed(
            bench,
            lambda folder: bench.our_command(folder, bench.args.seeds[0], *step_words),
            seconds=60 * bench.args.calibrate_minutes,
            dtype=bench.run.train.dtype,
        )

    key = {"arm": "minillm", "minutes": bench.args.calibrate_minutes, "flags": [*bench.words, *step_words]}
    return once(bench, Speed, key, make)


def paced(bench: Bench, budget_seconds: float, first_guess: Sequence[str] = ()) -> Paced:
    """Our speed in steps of the size that the trainer chooses for the tokens of such a budget.

    Args: first_guess: flags of the size to begin with.
    """
    words = list(first_guess) or bench.step_words(0)
    tried = []
    while True:
        speed = our_speed(bench, words)
        tried.append(words)
        words = bench.step_words(speed.tokens_per_second * budget_seconds)
        if words in tried[:-1]:  # two sizes that call for each other: the later one, which was measured
            words = tried[-1]
        if words == tried[-1]:
            return Paced(words, speed)


def our_run(bench: Bench, seed: int, steps: int, step_words: Sequence[str] = ()) -> Run:
    """One run of our trainer."""

    def make() -> Run:
        return finished(
            bench,
            lambda folder: bench.our_command(folder, seed, *step_words, "--max_steps", str(steps)),
            lambda folder: load_model(bench.our_weights(folder))[0],
        )

    key = {"arm": "minillm", "seed": seed, "steps": steps, "flags": [*bench.words, *step_words]}
    return once(bench, Run, key, make)
