"""Answers the requests of the OpenAI API: decodes and limits them, and generates their answers."""
