"""The report of a run: facts from its files, its answers, rules about both, and one page."""
