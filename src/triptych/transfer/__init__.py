"""Moves tensors between workers by handle: the port (``base``) and its back ends ``inproc``, ``shm`` and
``nixl``."""
