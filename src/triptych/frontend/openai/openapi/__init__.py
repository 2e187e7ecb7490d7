"""Writes the OpenAPI document of all routes."""
