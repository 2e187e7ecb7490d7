"""vLLM (``AsyncLLM``): token ids and pictures in, token deltas out; text is the frontend's business.

Verified with vLLM 0.32, on CPU with its CPU build. Importing this package imports neither vLLM nor torch.
"""
