"""Parity of a running deployment, asked over HTTP, with transformers' ``generate`` on a local checkpoint.

``cases`` are the questions, ``reference`` knows the answers, ``ask`` gets them from the deployment, ``compare`` tells
where two part, ``check`` goes through all of it in order, ``report`` says how it went.
"""
