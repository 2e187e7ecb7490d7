"""Finds the workers that are alive.

``base`` is the port, ``local`` the back end for one machine, ``nats`` the one for several.
"""
