"""Runs the processes of a graph file on this machine: they are started, watched, restarted and stopped together.

``graph`` reads the file, ``commands`` turns it into command lines, ``supervisor`` keeps their processes.
"""
