"""Reads the headers of media files in Python, before a library in C sees a file, and decodes media."""
