"""Knows the live workers: the models that can be served now, and what each worker holds."""
