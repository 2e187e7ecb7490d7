"""The span ``e`` without a language model's engine: a checkpoint's vision part alone, by transformers.

``engine`` is its life and ``encode`` its ability. ``planner`` and ``plan`` tell what a medium will become, ``embedder``
runs the model in batches (``batcher``), ``encoder`` is what runs in threads, ``towers`` knows how each architecture is
built and run, and ``weights`` reads its tensors and no others.
"""
