"""Bundled requests that no such model can fulfil, such as the time or the weather."""
