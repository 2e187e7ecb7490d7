"""Lines that vLLM logs while it starts, at the level INFO, and the phases that begin with them."""

from __future__ import annotations

PHASES = (
    ("Initializing a V1 LLM engine", "making the model's executor"),
    ("Starting to load model", "loading the weights"),
    ("Loading weights took", "making the KV cache"),
    ("Model loading took", "measuring the memory that is left"),
    ("Encoder cache will be initialized", "measuring the memory that is left"),
    ("Available KV cache memory", "making the KV cache"),
    ("KV cache size:", "making the KV cache"),
    ("Warming up model", "warming up"),
    ("Compile and warming up model", "warming up"),
    ("Graph capturing finished", "warming up"),
    ("init engine (profile, create kv cache, warmup model) took", "connecting to the engine"),
)
