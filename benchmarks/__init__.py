"""Measurements that take too long for tests: speed, memory, settings compared. See README.md."""
