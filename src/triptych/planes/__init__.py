"""How processes find and call each other: ``discovery`` and ``request``, each a port and its back ends."""
