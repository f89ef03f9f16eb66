"""Bundled questions about what the samples do not teach, each with an honest "I don't know"."""
