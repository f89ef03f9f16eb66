"""Bundled questions about what was never taught, each with an honest "I don't know"."""
