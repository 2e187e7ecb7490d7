"""Makes calls that a stream answers. ``base`` is the port; ``tcp_client`` and ``tcp_server`` are the ends over TCP."""
