"""Lets processes find each other, call each other and share state: one folder for each plane, with a port and its back
ends.
"""
