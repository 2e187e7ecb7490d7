"""Caches and limits on memory, both bounded in bytes, and work that callers at the same time share."""
