"""OpenAI-compatible HTTP in, server-sent events out. Knows no engine, no socket of a worker."""
