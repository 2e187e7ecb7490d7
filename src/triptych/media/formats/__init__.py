"""File formats read in Python: what a header says, before a library in C sees the file."""
