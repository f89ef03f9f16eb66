"""The five parts of `on_gpu.py`, the most important first; the first four take eight minutes."""

from benchmarks.gpu.correctness import STEPS, TESTS
from benchmarks.gpu.pipeline import PIPELINE
from benchmarks.gpu.speeds import SHAPES, SPEED

PARTS = (TESTS, STEPS, PIPELINE, SPEED, SHAPES)
