"""Knows who is alive: the models that can be served now, and what each worker holds."""
