"""Checks the JSON schemas and patterns that an answer must follow, before any engine compiles them."""
