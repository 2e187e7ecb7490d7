"""The demo model that hears: a very small Qwen2-Audio that knows beeps and nothing else."""
