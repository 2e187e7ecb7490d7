"""The requests of the OpenAI API: how their bodies are decoded, and what bounds them."""
