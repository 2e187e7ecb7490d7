"""Fetches remote media: the guarded GET and what it does with URLs and encodings."""
