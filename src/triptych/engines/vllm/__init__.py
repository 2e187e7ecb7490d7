"""Hosts spans on vLLM (``AsyncLLM``), which gets token ids and media, and returns token deltas without text.

Verified with vLLM 0.32, on CPU with its CPU build. Importing this package imports neither vLLM nor torch.
"""
