"""Makes the sounds of the demo model for sounds, a very small Qwen2-Audio that knows beeps and nothing else."""
