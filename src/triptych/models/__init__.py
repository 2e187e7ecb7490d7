"""Describes model families: the facts about a checkpoint that other packages need, read from its own files.

To add a family, write a module with a ``ModelFamily`` in it and add a line to ``registry``.
"""
