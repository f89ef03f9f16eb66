"""Bundled questions about the model itself: its name, its maker, what it can and can't do."""
