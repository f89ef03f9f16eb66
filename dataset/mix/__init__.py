"""The mix: from the user's files to training and held-out sets."""
