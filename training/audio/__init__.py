"""Trains the demo model that hears."""
