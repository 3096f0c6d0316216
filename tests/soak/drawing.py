"""Cases drawn by one seed: a tiny random model, what is done to it, the file it lies in, the tokens, and the call."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

from tests.architectures import zoo
from tests.architectures.refusals import UNBUILT

SEED = 20
COUNT = 300
"""Cases of the long form."""

Weighted = dict[str, int]

OBJECTS: Weighted = {
    "module": 8,
    "trunk": 1,
    "compiled": 2,
    "lora": 2,
    "merged": 2,
    "watched": 2,
    "scaled by a hook": 2,
    "shifted by a hook": 2,
}
"""What is handed over, by how often: a bare trunk; adapters that are not merged, or are; hooks that read, or change."""
IN_FILES: Weighted = {"module": 6, "merged": 2, "trunk": 1}
DTYPES: Weighted = {"float32": 5, "float64": 4, "bfloat16": 2, "float16": 1}
FILES: Weighted = {
    "": 20,
    "safetensors": 4,
    "shards": 4,
    "bin": 3,
    "gguf": 8,
    "extra tensor": 2,
    "missing tensor": 2,
    "another shape": 2,
    "truncated": 2,
    "missing shard": 1,
}
DAMAGED = ("missing tensor", "another shape", "truncated", "missing shard")
"""Files that no model is read from."""
TOKENS: Weighted = {
    "plain": 40,
    "int32": 4,
    "uint8": 1,
    "left pads": 2,
    "outside": 1,
    "negative": 1,
    "empty": 1,
    "no windows": 1,
    "floats": 1,
    "one axis": 1,
}
NO_TOKENS = ("left pads", "outside", "negative", "empty", "no windows", "floats", "one axis")
"""Tokens that are refused."""
AROUND: Weighted = {"nothing": 10, "inference_mode": 2, "no_grad": 1, "autocast": 2, "threads": 2}

WRITTEN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "mixtral": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_moe": {"norm_topk_prob": True},
    "falcon": {},
    "phi3": {},
    "bloom": {},
    "stablelm": {},
    "gpt2": {},
    "starcoder2": {},
    "mamba": {},
    "falcon_mamba": {},
    "nemotron": {},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "layer_types": ["sliding_attention"] * 4},
    "lfm2": {"block_auto_adjust_ff_dim": False},
}
"""Types that `tests.plant.gguf_model` writes as GGUF files, with what such a file has no key for and means."""
WRITTEN_VARIANTS = ("attention_bias", "mlp_bias", "tie_word_embeddings", "one_key_head", "all_key_heads", "wide_heads")
"""Variants that such a file can state."""


@dataclass(frozen=True)
class Drawn:
    """One case.

    Attributes:
        number: Its place in the drawing.
        seed: Seed of the drawing.
        attempt: How many earlier draws of this number gave no module.
        type: The type; a variant of it behind a colon.
        object: One of `OBJECTS`.
        dtype: Dtype of the module, or of the weights in the file.
        file: One of `FILES`; "" for an object in memory.
        loaded: Dtype in which a file is loaded.
        tokens: One of `TOKENS`.
        around: One of `AROUND`.
        windows: Number of windows.
        length: Positions of a window.
        layer: The block whose Jacobian is asked for; taken modulo the number of blocks.
    """

    number: int
    seed: int
    attempt: int
    type: str
    object: str
    dtype: str
    file: str
    loaded: str
    tokens: str
    around: str
    windows: int
    length: int
    layer: int

    @property
    def name(self) -> str:
        """All that was drawn, in a line."""
        where = f"{self.file} as {self.loaded}" if self.file else "in memory"
        size = f"{self.windows} x {self.length}"
        return f"{self.type}, {self.object}, {self.dtype}, {where}, tokens {self.tokens} {size}, in {self.around}"


@functools.cache
def _variants(name: str) -> tuple[str, ...]:
    return tuple(zoo.variants(name))


def draw(number: int, seed: int = SEED, attempt: int = 0) -> Drawn:
    """Draw a case; the same arguments give the same case.

    Args:
        number: Number of the case.
        seed: Seed of the drawing.
        attempt: Raised where an earlier attempt gave no module.
    """
    rng = random.Random(f"{seed} {number} {attempt}")

    def one(weights: Weighted) -> str:
        return rng.choices(list(weights), list(weights.values()))[0]

    file = one(FILES)
    kinds = list(WRITTEN) if file == "gguf" else [name for name in zoo.types() if name not in UNBUILT]
    name = rng.choice(kinds)
    variants = [one for one in _variants(name) if file != "gguf" or one in WRITTEN_VARIANTS]
    if file == "gguf" and "query_pre_attn_scalar" in WRITTEN[name]:
        variants = [one for one in variants if one != "wide_heads"]  # the scalar is the width of a head
    if variants and rng.random() < 0.6:
        name = f"{name}:{rng.choice(variants)}"
    kind = one(IN_FILES if file else OBJECTS)
    tokens = one(TOKENS)
    if file == "gguf":  # its tokenizer has no pad token
        kind, tokens = kind.replace("trunk", "module"), tokens.replace("left pads", "plain")
    return Drawn(
        number=number,
        seed=seed,
        attempt=attempt,
        type=name,
        object=kind,
        dtype="float32" if file == "gguf" else one(DTYPES),
        file=file,
        loaded=one({"float32": 2, "float64": 1}),
        tokens=tokens,
        around=one(AROUND),
        windows=rng.randint(1, 3),
        length=rng.choice([1, 2, 5, 8, 10, 13]),
        layer=rng.randrange(4),
    )
