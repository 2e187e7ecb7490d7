"""Draws pictures of coloured shapes, and asks questions about them."""
