"""Decides what happens to one generation: events in, decisions out. Knows no socket, no clock and no worker."""
