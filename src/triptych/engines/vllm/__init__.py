"""vLLM (``AsyncLLM``): token ids and pictures in, token deltas out; text is the frontend's business.

Verified with vLLM 0.32, on CPU with its CPU build.
"""

from triptych.engines.vllm.environment import prepare

# vLLM and torch read these variables while they are imported, so this comes first in every process.
prepare()
