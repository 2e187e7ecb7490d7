"""Helpers for event loops, threads and processes that know nothing of the rest."""
