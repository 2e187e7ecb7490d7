"""Defines ``POST /v1/chat/completions``: its schema, its prompt, its answers and their stream events."""
