"""Trains the demo models that the package ships: ``python -m training.train`` and ``python -m training.audio.train``."""
