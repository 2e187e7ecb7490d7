"""Builds the vision or audio part of each architecture from a checkpoint, and runs it on a batch of media.

``registry`` lists them, ``base`` has what they share; each of the others is one family of architectures.
"""
