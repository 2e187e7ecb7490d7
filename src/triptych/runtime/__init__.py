"""Runs a worker from its start to its drain, and owns its long-running tasks."""
