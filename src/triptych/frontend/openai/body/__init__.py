"""Decodes request bodies, large ones in pieces, and explains what is wrong with an invalid body."""
