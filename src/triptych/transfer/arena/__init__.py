"""Divides one bounded range of memory into buffers."""
