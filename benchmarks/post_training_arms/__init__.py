"""The methods that post_training.py measures, a module each, and what these share."""
