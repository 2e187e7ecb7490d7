"""Calls that are answered by a stream. ``base`` is the port; ``tcp`` and ``inproc`` are back ends."""
