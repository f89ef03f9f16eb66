"""Logits -> better weights: recipes around one loop, losses, optimizers, checkpoints."""
