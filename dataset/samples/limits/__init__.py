"""Bundled requests that no such model can fulfil, for example the time or the weather."""
