"""Supports TensorRT-LLM; so far only its list of KV-cache events."""
