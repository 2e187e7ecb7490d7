"""Contains the media path: the frontend fetches, checks and names media; workers decode them.

The frontend's part (``loader`` and what it uses) reads headers only and imports neither Pillow nor an engine. The
workers' part is ``decoder``.
"""
