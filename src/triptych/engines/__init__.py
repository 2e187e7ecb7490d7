"""Contains the engines that host spans. ``base`` defines the interface, ``abilities`` what an engine can do.

Each folder contains one engine.
"""
