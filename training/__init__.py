"""Trains the demo models that the package ships.

``python -m training.train`` makes the one that sees, ``python -m training.audio.train`` the one that hears.
"""
