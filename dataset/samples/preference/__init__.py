"""Bundled preference pairs: a right answer beside a bad one."""
