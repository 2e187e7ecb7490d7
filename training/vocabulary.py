"""Makes the tokenizer and chat template of the demo models: byte-level BPE learned from the texts of their tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 640
"""The maximum size of the vocabulary; the few texts have fewer words."""
SYSTEM_PROMPT = "You are a helpful assistant."

# Roles as in every ChatML model; each medium becomes one placeholder, in the order of the
# content parts. No system message is added when the client sends none.
_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
MEDIA
{%- elif 'text' in part %}
{{- part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def chat_template(placeholders: dict[str, str]) -> str:
    """Returns the template. ``placeholders`` has the text for each kind of medium: image, video, audio."""
    branches = []
    for word, (kind, text) in zip(("if", *["elif"] * len(placeholders)), placeholders.items(), strict=False):
        url = f"{kind}_url"
        test = f"part['type'] in ('{kind}', '{url}') or '{kind}' in part or '{url}' in part"
        branches += [f"{{%- {word} {test} %}}", f"{{{{- '{text}' }}}}"]
    return _TEMPLATE.replace("MEDIA", "\n".join(branches))


def build_tokenizer(corpus: Iterable[str], special: Iterable[str]) -> PreTrainedTokenizerFast:
    """Returns a tokenizer for any text; frequent words of ``corpus`` and ``special`` ones are single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special_tokens = [*ENDS, *special]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    core.add_special_tokens(special_tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special_tokens[1:],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
