"""Makes ``sglang_kv_events.json``: what a real SGLang says of its KV cache while it is asked a few things.

    python tests/data/sglang_kv_events.py CHECKPOINT sglang_kv_events.json

``CHECKPOINT`` is a tiny Qwen2-VL as ``tests/support/reference.py`` makes it, with ``vision_config.in_chans`` 3 added.
Made with SGLang 0.5.23 on CPU (``SGLANG_USE_CPU_ENGINE=1``, torch 2.13), in an environment of its own, with
stand-ins for what only CUDA has: the kernel that assigns slots, the copy between tiers, pinned memory, streams. All
decisions about blocks, and all events, are SGLang's. Nothing here runs in the tests.
"""

import hashlib
import json
import sys
from pathlib import Path

PAGE = 16
TOKENS = 512
"""Of its KV cache: few, so that blocks are evicted ..."""
HOST_TIMES = 1.5
"""... to its host memory, which has room for so many times as much."""
EVENTS = "tcp://127.0.0.1:5557"
LORA = ("q_proj", "k_proj", "v_proj")
PREFIX = list(range(20, 70))
ASKED = {
    # name: (token ids, or a text with pictures; seeds of pictures; adapter)
    "a prefix": (PREFIX, [], ""),
    "the prefix again, and more": (PREFIX + list(range(100, 150)), [], ""),
    "the prefix for an adapter": (PREFIX, [], "fox"),
    "a picture": ("Look at this: {}and say what it is, please.", [1], ""),
    "the picture, another question": ("Look at this: {}and count the corners in it, please.", [1], ""),
    "another picture, the same question": ("Look at this: {}and say what it is, please.", [2], ""),
    "a picture twice": ("{}{}Are these two the same?", [1, 1], ""),
    "two pictures": ("{}{}Are these two the same?", [1, 2], ""),
    **{f"filling {n}": (list(range(n, n + 150)), [], "") for n in range(70, 95, 8)},
    "the prefix, after that": (PREFIX, [], ""),
    "the picture, after that": ("Look at this: {}and say what it is, please.", [1], ""),
    **{f"filling {n}": (list(range(n, n + 150)), [], "") for n in range(102, 127, 8)},
    "the prefix, later": (PREFIX, [], ""),
    "the picture, later": ("Look at this: {}and say what it is, please.", [1], ""),
}


def picture(seed, side=112):
    from PIL import Image

    colours = bytes(hashlib.shake_128(bytes([seed])).digest(3 * 64))
    return Image.frombytes("RGB", (8, 8), colours).resize((side, side), Image.NEAREST)


def content_hash(image):
    return hashlib.sha256(image.tobytes()).hexdigest()


def adapter(folder, checkpoint):
    """A LoRA of rank 4 on queries, keys and values."""
    import torch
    from safetensors.torch import save_file

    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": list(LORA), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    width, tensors = text["hidden_size"], {}
    keys = width // text["num_attention_heads"] * text["num_key_value_heads"]
    for layer in range(text["num_hidden_layers"]):
        for module in LORA:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(4, width) / 10
            tensors[f"{name}.lora_B.weight"] = torch.randn(width if module == "q_proj" else keys, 4) / 10
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


def expanded(processor, text, images, placeholder):
    """The prompt's token ids, and (first token, tokens, content hash) of each picture."""
    ids = processor(text=[text], images=images or None)["input_ids"][0]
    ids, media = [int(one) for one in ids], []
    for at, one in enumerate(ids):
        if one == placeholder and ids[at - 1] != placeholder:
            end = next(after for after in range(at, len(ids)) if ids[after] != placeholder)
            media.append((at, end - at, content_hash(images[len(media)])))
    return ids, media


def main(checkpoint, out):
    import sglang
    import zmq
    from transformers import AutoProcessor

    subscriber = zmq.Context().socket(zmq.SUB)
    subscriber.subscribe(b"")
    subscriber.connect(EVENTS)
    config = json.loads((checkpoint / "config.json").read_text())
    placeholder = config["image_token_id"]
    processor = AutoProcessor.from_pretrained(checkpoint)
    engine = sglang.Engine(
        model_path=str(checkpoint), device="cpu", dtype="float32", page_size=PAGE, max_total_tokens=TOKENS,
        attention_backend="torch_native", sampling_backend="pytorch", mm_attention_backend="sdpa",
        grammar_backend="none", enable_multimodal=True, disable_cuda_graph=True, disable_overlap_schedule=True,
        mem_fraction_static=0.05, log_level="warning", random_seed=1,
        enable_lora=True, lora_paths={"fox": adapter(out.parent / "fox", checkpoint)}, max_lora_rank=4,
        lora_target_modules=list(LORA), lora_backend="torch_native",
        enable_hierarchical_cache=True, hicache_ratio=HOST_TIMES, hicache_io_backend="direct",
        hicache_mem_layout="layer_first", hicache_write_policy="write_through",
        kv_events_config=json.dumps({"publisher": "zmq", "endpoint": EVENTS, "bind": True}),
    )  # fmt: skip
    said = []

    def messages():
        found = []
        while subscriber.poll(1000):
            _, _, payload = subscriber.recv_multipart()
            found.append(payload.hex())
        return found

    said.append({"asked": "nothing", "messages": messages()})
    for name, (prompt, seeds, lora) in ASKED.items():
        images = [picture(seed) for seed in seeds]
        sampling = {"max_new_tokens": 2, "temperature": 0, "ignore_eos": True}
        settings = {"sampling_params": sampling, "lora_path": lora or None}
        if isinstance(prompt, str):
            pads = ["<|vision_start|><|image_pad|><|vision_end|>"] * len(images)
            text = prompt.format(*pads)
            ids, media = expanded(processor, text, images, placeholder)
            hashes = [content_hash(one) for one in images]
            answer = engine.generate(prompt=text, image_data=images, mm_hashes=hashes, **settings)
        else:
            ids, media = prompt, []
            answer = engine.generate(input_ids=prompt, **settings)
        info = answer["meta_info"]
        assert info["prompt_tokens"] == len(ids), (name, info, len(ids))
        said.append(
            {
                "asked": name,
                "token_ids": ids,
                "media": media,
                "adapter": lora,
                "cached_tokens": info["cached_tokens"],
                "of_which": info.get("cached_tokens_details"),
                "messages": messages(),
            }
        )
    engine.flush_cache()
    said.append({"asked": "to clear", "messages": messages()})
    described = {"engine": f"sglang {sglang.__version__}", "page_size": PAGE, "placeholder": placeholder}
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in said)
    out.write_text(json.dumps(described)[:-1] + ', "said": [\n' + lines + "\n]}\n")
    engine.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
