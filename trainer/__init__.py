"""Logits to better weights: a page for each stage, one loop, losses, optimizers, resume states."""
