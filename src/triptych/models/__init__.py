"""Model families: what the rest must know of a checkpoint, read from its own files.

Adding a family is one module with a ``ModelFamily`` in it and one line in ``registry``.
"""
