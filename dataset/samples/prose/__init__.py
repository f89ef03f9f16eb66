"""Bundled prose for pretraining: a program that makes stories, and the grammars that it uses."""
