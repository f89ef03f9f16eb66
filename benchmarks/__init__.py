"""Measurements that take too long for tests: speed, memory, comparisons of settings. README.md lists them."""
