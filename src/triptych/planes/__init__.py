"""Lets processes find each other, call each other and share state.

Each plane has a folder with its port and its back ends.
"""
