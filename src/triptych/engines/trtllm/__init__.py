"""TensorRT-LLM: so far its list of KV-cache events only."""
