"""Prompts of 60,000 tokens at the frontends: how many a second, and what they cost those beside them."""
