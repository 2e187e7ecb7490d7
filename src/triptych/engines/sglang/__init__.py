"""Supports SGLang; so far only its stream of KV-cache events."""
