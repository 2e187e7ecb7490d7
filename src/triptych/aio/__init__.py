"""Helpers for event loops, threads, processes and memory. They know nothing of the rest of the project."""
