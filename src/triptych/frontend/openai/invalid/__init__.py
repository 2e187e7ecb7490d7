"""Explains what is wrong with a request body: its JSON, its types, and fields that are refused."""
