"""Long-running processes: tasks and their owner, and the worker's life from start to drain."""
