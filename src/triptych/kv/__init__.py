"""Names, translates, indexes and logs KV-cache blocks, for every engine and for routing."""
