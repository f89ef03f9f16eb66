"""Bundled reasoning: problems of two and three steps, with a short line of thought for each."""
