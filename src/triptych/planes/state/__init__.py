"""Keeps entries on which all frontends agree. ``base`` is the port; ``memory``, ``local`` and ``nats`` implement it."""
