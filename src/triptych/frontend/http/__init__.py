"""HTTP in and out: the server and its connections, and what the application needs of ASGI."""
