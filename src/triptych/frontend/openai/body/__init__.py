"""Decodes request bodies, large ones in pieces, and says what is wrong with a bad one."""
