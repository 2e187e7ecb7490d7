"""Byte-bounded stores, and work shared by those who ask for the same thing at the same time."""
