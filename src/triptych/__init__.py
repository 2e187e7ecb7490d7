"""Triptych: multimodal language models served with encode, prefill and decode together or apart.

The tree reads as a request's path: ``frontend`` -> ``processor`` -> ``stages`` -> ``planes`` -> ``runtime``
-> ``engines``. Importing this package imports nothing else, so that a process pays only for its own part.
"""

from triptych._version import __version__

__all__ = ["__version__"]
