"""Bundled everyday talk: single turns, series such as jokes, memory, and long conversations."""
