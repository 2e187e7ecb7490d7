"""Calls that are answered by a stream. ``base`` is the port, ``tcp_client`` and ``tcp_server`` are TCP's two ends."""
