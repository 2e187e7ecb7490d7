"""Compares a running deployment, over HTTP, with transformers' ``generate`` on a local checkpoint.

``cases`` makes the questions, ``reference`` knows the right answers, ``ask`` gets those of the deployment, ``compare``
finds differences, ``check`` runs all of it in order, and ``report`` writes the result.
"""
