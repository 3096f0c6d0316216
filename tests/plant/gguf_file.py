"""A small Llama as a GGUF file, quantised to 4 bit (Q4_1), and the weights that it must give back."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from torch import Tensor

from tests.plant.tiny import LAYERS, WIDTH, tiny_module, tiny_tokenizer

HEADS, GROUPS = 4, 2
MERGED = 259
"""The token "ab", the only one of two bytes."""
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Write the file; gives what each matrix and gain is after quantisation, by its Hugging Face name.

    The test is skipped where transformers is of the lowest version, which reads no such file.
    """
    pytest.importorskip("transformers.integrations.gguf")
    module = tiny_module("llama", seed=seed, intermediate_size=64, tie_word_embeddings=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_vocab_size(264)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    _add_tokenizer(writer)
    expected = {}
    for name, tensor in module.state_dict().items():
        if name == "lm_head.weight":
            continue
        expected[name] = _add_tensor(writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Tensor) -> np.ndarray:
    values = tensor.numpy().astype(np.float32)
    stem = name.removesuffix(".weight")
    prefix = ""
    if stem.startswith("model.layers."):
        _, _, layer, stem = stem.split(".", 3)
        prefix = f"blk.{layer}."
    heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": GROUPS}.get(stem)
    stored = values if heads is None else _rotary_order(values, heads)
    if values.ndim == 1:
        writer.add_tensor(f"{prefix}{_NAMES[stem]}.weight", stored)
        return values
    kind = gguf.GGMLQuantizationType.Q4_1
    packed = gguf.quants.quantize(stored, kind)
    writer.add_tensor(f"{prefix}{_NAMES[stem]}.weight", packed, raw_dtype=kind)
    # Rows are quantised one by one, so quantising commutes with their order.
    return gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)


def _rotary_order(values: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two halves of a rotary pair side by side."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokenizer = tiny_tokenizer()
    by_id = {index: piece for piece, index in tokenizer.get_vocab().items()}
    pieces = [by_id.get(index, f"<unused{index}>") for index in range(264)]
    pieces[MERGED] = "ab"
    control = {256, 257, 258}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if index in control else 1 for index in range(264)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_pad_token_id(258)
