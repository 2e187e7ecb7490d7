"""Defines the types that cross a boundary between processes or folders: spans, cards, requests, deltas, errors.

Every wire type is a msgspec Struct. New fields go last and have defaults, so that workers of neighbouring versions
understand each other. This folder imports nothing else of Triptych.
"""
