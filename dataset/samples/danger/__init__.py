"""Bundled conversations in which a life is in danger, and harmless ones in similar words."""
