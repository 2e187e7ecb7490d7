"""Reads embeddings that a client computed, and checks them."""
