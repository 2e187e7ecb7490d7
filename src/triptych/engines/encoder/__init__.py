"""The span ``e`` without a language model's engine: a checkpoint's vision part alone, by transformers.

``engine`` takes requests, ``batcher`` and ``room`` order and bound them, ``encoder`` is what runs in threads,
``towers`` knows how each architecture is built and run, ``weights`` reads its tensors and no others.
"""
