"""Connects to NATS, with its credentials, and explains its failures."""
