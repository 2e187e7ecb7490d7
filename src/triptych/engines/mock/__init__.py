"""A deterministic engine without a model: it repeats the prompt, as fast or as slowly as its flags say.

The answer is the prompt's own tokens (placeholders of media left out), then the end of sequence; with ``ignore_eos`` or
``min_tokens`` it starts again from the first. With a temperature above 0, the answer starts at a place drawn by the
seed. Media are decoded for real, so damaged ones are refused as a real engine would refuse them.

With ``--pace`` its times are those of a modelled engine (``pace.py``).

Stages hand over for real as well: an embedding is made of its medium's content name and checked where it arrives, and a
KV cache is the prompt's tokens, read from the worker that prefilled it and compared.
"""
