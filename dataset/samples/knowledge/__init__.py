"""Bundled knowledge: questions about facts, follow-up questions, and claims, true and false."""
