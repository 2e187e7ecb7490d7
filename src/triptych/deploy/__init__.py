"""Deployment: a graph file becomes local processes that are started, watched, restarted and stopped together.

``graph`` reads the file, ``commands`` turns it into command lines, ``supervisor`` keeps their processes.
"""
