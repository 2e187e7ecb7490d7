"""Holds the configuration: frozen models, one for each concern, and the only reader of the environment.

A field's annotation carries its help text; ``cli/options.py`` makes the command-line flags from it, so that
``--help``, the graph file and the models cannot drift apart.
"""
