"""Bundled conversations in which a life is in danger, beside harmless ones in similar words."""
