"""Trains the demo model for sounds."""
