"""Weights -> words: a model is opened, the next token is chosen, prompts are answered."""
