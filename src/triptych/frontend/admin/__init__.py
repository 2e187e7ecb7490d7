"""Lets operators tell the workers of a model what to do: one route for each action of ``contracts.admin``."""
