"""Keeps what all frontends must know alike. ``base`` is the port; ``memory``, ``local`` and ``nats`` are back ends."""
