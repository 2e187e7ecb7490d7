"""Trains the demo models that the package ships.

``python -m training.train`` makes the one for pictures and videos, ``python -m training.audio.train`` the one for
sounds.
"""
