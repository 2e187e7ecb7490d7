"""Answers OpenAI-compatible HTTP requests, with JSON or server-sent events. Knows no engine and no worker's socket."""
