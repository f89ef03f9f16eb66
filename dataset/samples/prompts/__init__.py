"""Bundled prompts for learning from rewards: sums, and sentences with given words and length."""
