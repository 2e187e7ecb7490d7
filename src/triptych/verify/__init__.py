"""Compares a running deployment, over HTTP, with transformers' ``generate`` on a local checkpoint.

``cases`` makes the questions, ``reference`` makes the right answers, ``ask`` gets the deployment's answers, ``compare``
finds differences, ``check`` runs these steps in order, and ``report`` writes the result.
"""
