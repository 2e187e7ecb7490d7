"""Turns a request into tokens: ``compose`` plans, ``request_state`` decides, ``attempt`` makes the calls of a plan."""
