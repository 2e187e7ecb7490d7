"""SGLang: so far its stream of KV-cache events only."""
