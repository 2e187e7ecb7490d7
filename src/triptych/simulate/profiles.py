"""Defines how fast an engine is and how much it holds: named profiles, with the sources of their numbers.

Time is counted in whole picoseconds, so that many equal steps taken at once end at the very instant at which they
would end one by one.
"""

from __future__ import annotations

import msgspec

from triptych.contracts.errors import ConfigError
from triptych.contracts.suggest import or_all

MICROSECOND = 10**6
MILLISECOND = 10**9
SECOND = 10**12


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of work, in picoseconds."""

    step: int
    """The fixed cost of each step: reading the weights, launching, scheduling."""
    prefill_token: int
    prefill_pair: int
    """The cost of attention between one prefilled token and one token of its context."""
    decode_sequence: int
    """The cost of one token of a decoding sequence, without its context."""
    kv_token: int
    """The cost of reading one token of a decoding sequence's context."""
    encode_call: int
    encode_token: int
    """The cost of each token that a medium takes in the prompt."""
    transfer_call: int
    """The time until the first byte arrives at another worker."""
    bytes_per_s: int
    kv_token_bytes: int
    embedding_token_bytes: int

    def prefilling(self, tokens: int, context: int) -> int:
        """Returns the cost of prefilling ``tokens`` after a context of so many."""
        return self.prefill_token * tokens + self.prefill_pair * (tokens * context + tokens * (tokens + 1) // 2)

    def decoding(self, sequences: int, context: int, steps: int) -> int:
        """Returns the cost of ``steps``, in the first of which ``sequences`` read ``context`` tokens together, without
        the cost of the step itself.
        """
        grown = sequences * steps * (steps - 1) // 2
        return self.decode_sequence * sequences * steps + self.kv_token * (context * steps + grown)

    def encoding(self, tokens: int) -> int:
        return self.encode_call + self.encode_token * tokens

    def moving(self, size_bytes: int) -> int:
        return self.transfer_call + size_bytes * SECOND // self.bytes_per_s


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One engine: its rates, its memory and the limits of its scheduler."""

    name: str
    about: str
    rates: Rates
    kv_tokens: int
    max_num_batched_tokens: int
    max_num_seqs: int
    embedding_cache_tokens: int
    """Capacity for embeddings, in tokens of media, of an engine that encodes."""
    host_kv_tokens: int = 0
    """Capacity of host memory for evicted blocks, in tokens. They are read back as fast as from another worker."""


LLAMA_8B_H100 = Profile(
    name="llama-8b-h100",
    about="Llama 3.1 8B in FP8 (KV cache in FP8) on one H100 80GB",
    # Least squares over the ten points of "Llama 3.1 8B", column H100 TP1 (FP8), of TensorRT-LLM's performance overview
    # (github.com/NVIDIA/TensorRT-LLM, docs/source/performance/perf-overview.md, 00f37686): output tokens/s under full
    # load for inputs of 128 to 20,000 and outputs of 128 to 4,096 tokens. Of full batches, at most 1,024 sequences and
    # the KV cache below, it leaves at most 1.5 % on any point; ``benchmarks/engine_fit.py`` makes it again. Two checks:
    # one step alone is as long as the inter-token latency that NVIDIA publishes for NIM's Llama-3.1-8B at one request
    # (4.6 ms, docs.nvidia.com/nim/benchmarking/llm/1.0.0/performance), and a KV token costs what reading its 65,536
    # bytes does (32 layers of 8 heads of 128, keys and values) at the 3.35 TB/s of the data sheet: 19.6 ns.
    # Not published for it, therefore assumed: the encoder (that of Qwen2-VL: 675 M parameters, 4 patches a token, at
    # 40 % of the data sheet's 989 TFLOP/s; 5 ms of launching), and a 400 Gb/s network at 80 %, with 1 ms to begin.
    rates=Rates(
        step=4530 * MICROSECOND,
        prefill_token=13_260_000,
        prefill_pair=400,
        decode_sequence=13_490_000,
        kv_token=21_400,
        encode_call=5 * MILLISECOND,
        encode_token=13_650_000,
        transfer_call=1 * MILLISECOND,
        bytes_per_s=40 * 10**9,
        kv_token_bytes=65_536,
        embedding_token_bytes=8192,
    ),
    kv_tokens=1_000_000,  # (95 % of 80 GB, less 9 GB of weights and buffers) / 65,536 bytes
    max_num_batched_tokens=8192,
    max_num_seqs=1024,
    embedding_cache_tokens=100_000,
)

DEMO_CPU = Profile(
    name="demo-cpu",
    about="a Qwen2-VL of 1.4 M parameters on vLLM 0.32, two CPU cores",
    # Measured with prompts of 128 and answers of 64 tokens: a TTFT of 11 ms at one request; 215, 2,100 to 2,600 and
    # 3,500 to 5,200 tokens/s at 1, 16 and 64 at once. These rates give 11 ms, and 220, 2,260 and 4,350. Contexts are
    # too short to be told from the rest. Assumed: the encoder, and the way between workers. The bytes are the model's
    # own (4 layers and a width of 128, in float32).
    rates=Rates(
        step=4500 * MICROSECOND,
        prefill_token=50 * MICROSECOND,
        prefill_pair=0,
        decode_sequence=60 * MICROSECOND,
        kv_token=0,
        encode_call=3 * MILLISECOND,
        encode_token=30 * MICROSECOND,
        transfer_call=1 * MILLISECOND,
        bytes_per_s=10**9,
        kv_token_bytes=4096,
        embedding_token_bytes=512,
    ),
    kv_tokens=65_536,
    max_num_batched_tokens=2048,
    max_num_seqs=256,
    embedding_cache_tokens=8192,
)

PROFILES = {one.name: one for one in (LLAMA_8B_H100, DEMO_CPU)}


def profile_named(name: str) -> Profile:
    """Returns a profile by name. Raises ConfigError that lists the known profiles."""
    if name not in PROFILES:
        raise ConfigError(f"unknown profile {name}{or_all(name, PROFILES)}")
    return PROFILES[name]
