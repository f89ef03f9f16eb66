"""Bundled arithmetic: sums, stories, claims, and honest lines about what is too hard."""
