"""Lists every known request field and how it is treated."""
