"""Fetches media from URLs: remote ones through a guarded GET, local files, and ``data:`` URLs."""
