"""How the vision or audio part of each architecture is built from a checkpoint, and run on a batch of media.

``registry`` lists them, ``base`` has what they share; each of the others is one family of architectures.
"""
