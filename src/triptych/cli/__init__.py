"""Puts the parts together: the command line is the only place that names back ends."""
