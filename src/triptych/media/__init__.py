"""The media path: fetch, check and name at the edge; decode in the worker.

The edge (``loader`` and what it uses) reads headers only and imports neither Pillow nor an engine; the
worker's side is ``image``.
"""
