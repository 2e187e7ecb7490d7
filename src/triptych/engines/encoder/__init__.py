"""Hosts the span ``e`` without a language model: runs the vision or audio part of a checkpoint alone, by transformers.

``engine`` starts and stops it, ``encode`` is its ability. ``planner`` and ``plan`` compute the shape and the memory of
a medium's embedding, ``embedder`` runs the model in batches (``batcher``), ``encoder`` contains the functions that run
in threads, ``towers`` builds and runs each architecture, and ``weights`` reads only the tensors that are needed.
"""
