"""Scoring moved to `evaluation/`. These names can still be imported from here."""

from evaluation.answers import is_right
from evaluation.questions import Question

__all__ = ["Question", "is_right"]
