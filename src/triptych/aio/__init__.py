"""Helpers around an event loop: threads that compute beside it."""
