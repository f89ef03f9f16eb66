"""Bundled prose for pretraining: a program that tells stories, and the grammars it uses."""
