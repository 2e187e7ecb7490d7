"""Simulates an engine without a model: it repeats the prompt, at the speed that its flags give.

The answer is the prompt's own tokens (placeholders of media left out), then the end of sequence; with ``ignore_eos`` or
``min_tokens`` it starts again from the first. With a temperature above 0, the answer starts at a place drawn by the
seed. Media are decoded for real, so damaged ones are refused as a real engine would refuse them.

With ``--pace`` its times are those of a modelled engine (``pace.py``).

Stages hand over real data as well. An embedding is made of its medium's content hash, and checked by the worker that
gets it. A KV cache consists of the prompt's tokens; the decode worker reads it from the prefill worker and compares it.
"""
