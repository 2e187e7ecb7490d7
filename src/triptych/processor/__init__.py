"""From messages to token ids and checked media, and from token ids back to text.

Runs in the frontend's process; imports neither torch nor an engine nor transformers.
"""
