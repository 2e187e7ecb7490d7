"""Chooses a worker for a request, by what workers hold and how busy they are. Pure: no sockets, no clock."""
