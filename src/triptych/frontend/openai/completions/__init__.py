"""Defines ``POST /v1/completions``: its schema, its prompts, its answers and their stream events."""
