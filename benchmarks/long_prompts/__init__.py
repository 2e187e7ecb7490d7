"""Measures frontends under prompts of 60,000 tokens: their rate, and what they cost other requests."""
