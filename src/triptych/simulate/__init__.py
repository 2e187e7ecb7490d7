"""A deployment in virtual time: a model of an engine, workers of it, and the router that serves choosing among them."""
