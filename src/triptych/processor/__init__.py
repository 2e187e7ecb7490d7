"""Turns messages into token ids and checked media, and token ids back into text.

Runs in the frontend's process; imports neither torch nor an engine nor transformers.
"""
