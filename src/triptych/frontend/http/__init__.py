"""Serves HTTP: the server, its connections and their limits, and the parts of ASGI that the application uses."""
