"""Reads and decodes media in child processes, which may crash, hang or run out of memory without harm to the server."""
