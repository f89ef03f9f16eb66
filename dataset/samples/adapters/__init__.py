"""Bundled data sets for adapters: another name for the model, and everyday health."""
