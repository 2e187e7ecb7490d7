"""Lists every known request field and what becomes of it."""
