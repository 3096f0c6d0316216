"""What a GGUF file says is what is loaded, whatever its architecture, or it is refused in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as hf

from probe import weights
from probe.errors import InputError
from probe.model import load_model
from probe.model.gguf import facts
from probe.model.gguf.tensors import gguf_model
from tests.plant import refusing
from tests.plant.gguf_model import error, made, write

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
FALCON = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
STATE = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
WINDOWED = {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
LARGEST = {**WINDOWED, "head_dim": 32, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
LARGEST |= {"num_key_value_heads": 1}
FACTORS = np.linspace(1, 5, 8).astype(np.float32)
SHORT, LONG = FACTORS.tolist(), (2 * FACTORS).tolist()


def rope(kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **more}}


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))


def plain() -> Any:
    return made(hf.LlamaForCausalLM, **SIZES)


def refused(path: Path, *words: str) -> None:
    for read in (load_model, weights.open_weights):
        refusing.refused(partial(read, path), *words)
    assert not list((path.parent / "cache").rglob("*.safetensors"))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": plain,
    "llama tied": lambda: made(hf.LlamaForCausalLM, **SIZES, tie_word_embeddings=True),
    "llama biased": lambda: made(hf.LlamaForCausalLM, **SIZES, attention_bias=True, mlp_bias=True),
    "llama half biased": lambda: made(hf.LlamaForCausalLM, **SIZES, mlp_bias=True),
    "llama of wide heads": lambda: made(hf.LlamaForCausalLM, **SIZES, head_dim=32),
    "mistral": lambda: made(hf.MistralForCausalLM, **SIZES, sliding_window=16),
    "mixtral": lambda: made(hf.MixtralForCausalLM, **SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": lambda: made(hf.Qwen2ForCausalLM, **SIZES),
    "qwen2moe": lambda: made(hf.Qwen2MoeForCausalLM, **SIZES, **EXPERTS, shared_expert_intermediate_size=40),
    "qwen3": lambda: made(hf.Qwen3ForCausalLM, **SIZES, head_dim=32),
    "qwen3moe": lambda: made(hf.Qwen3MoeForCausalLM, **SIZES, **EXPERTS, head_dim=32, norm_topk_prob=True),
    "falcon 7b": lambda: made(hf.FalconForCausalLM, **FALCON),
    "falcon 40b": lambda: made(hf.FalconForCausalLM, **FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon 11b": lambda: made(
        hf.FalconForCausalLM, **FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1
    ),
    "phi3": lambda: made(hf.Phi3ForCausalLM, **SIZES, eos_token_id=0),
    "phi3 partly rotated": lambda: made(
        hf.Phi3ForCausalLM, **SIZES, eos_token_id=0, sliding_window=16, **rope(partial_rotary_factor=0.75)
    ),
    "bloom": lambda: made(hf.BloomForCausalLM, vocab_size=300, hidden_size=64, n_layer=2, n_head=4),
    "stablelm": lambda: made(hf.StableLmForCausalLM, **SIZES, use_qkv_bias=True, **rope(partial_rotary_factor=0.5)),
    "stablelm parallel": lambda: made(hf.StableLmForCausalLM, **SIZES, use_parallel_residual=True),
    "gpt2": lambda: made(
        hf.GPT2LMHeadModel, vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=0
    ),
    "starcoder2": lambda: made(hf.Starcoder2ForCausalLM, **SIZES, bos_token_id=0, eos_token_id=0, **rope()),
    "mamba": lambda: made(hf.MambaForCausalLM, **STATE, use_bias=True),
    "falcon mamba": lambda: made(hf.FalconMambaForCausalLM, **STATE, tie_word_embeddings=False),
    "nemotron": lambda: made(hf.NemotronForCausalLM, **SIZES, **rope(partial_rotary_factor=0.5)),
    "gemma2": lambda: made(hf.Gemma2ForCausalLM, **WINDOWED, attn_logit_softcapping=20.0, final_logit_softcapping=10.0),
    "gemma3": lambda: made(hf.Gemma3ForCausalLM, **WINDOWED | {"num_hidden_layers": 7}),
    "lfm2": lambda: made(
        hf.Lfm2ForCausalLM, **SIZES, block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention"]
    ),
    "qwen35": lambda: made(
        hf.Qwen3_5ForCausalLM,
        **SIZES | {"num_hidden_layers": 4},
        head_dim=16,
        linear_key_head_dim=8,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        **rope(mrope_section=[2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.5),
    ),
}


@pytest.mark.guards(
    "a GGUF file of each architecture that is read gives the model that was converted",
    when="a file is read",
    gives="logits equal within 1e-6, the head to the bit",
)
@pytest.mark.parametrize("name", MODELS)
def test_a_file_gives_the_model_that_was_converted(name: str, tmp_path: Path) -> None:
    module = MODELS[name]()
    write(tmp_path / "model.gguf", module)
    loaded: Any = load_model(tmp_path / "model.gguf").module
    assert type(loaded) is type(module)
    assert error(module, loaded) < 1e-6
    assert torch.equal(loaded.get_output_embeddings().weight, module.get_output_embeddings().weight)


@pytest.mark.parametrize(("kind", "layers"), [(hf.Gemma2ForCausalLM, 46), (hf.Gemma3ForCausalLM, 62)])
def test_the_largest_gemmas_scale_queries_by_the_width_of_the_model(kind: Any, layers: int, tmp_path: Path) -> None:
    """Their converters write no scale: 4608 / 32 and 5376 / 32 in the configurations of Gemma 2 and 3 27B."""
    for count, scalar in ((layers, 16), (layers - 1, 32)):
        write(tmp_path / "model.gguf", made(kind, **LARGEST | {"num_hidden_layers": count}))
        assert gguf_model(tmp_path / "model.gguf").config.query_pre_attn_scalar == scalar


def linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(1024)


def longrope(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_orig_ctx_len(100)
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(4) / math.log(100)))


def local(writer: gguf.GGUFWriter) -> None:
    linear(writer)
    writer.add_final_logit_softcapping(3.0)
    writer.add_sliding_window_pattern([True, False])
    writer.add_float32("gemma3.rope.freq_base_swa", 2e4)
    writer.add_float32("gemma3.attention.scale", 0.2)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}
SCALED: dict[str, tuple[Callable[[], Any], Callable[[gguf.GGUFWriter], object], dict[str, list[float]]]] = {
    "linear": (lambda: made(hf.LlamaForCausalLM, **SIZES, **rope("linear", factor=4.0)), linear, {}),
    "linear without its type": (
        lambda: made(hf.Qwen3ForCausalLM, **SIZES, head_dim=16, **rope("linear", factor=4.0)),
        lambda writer: writer.add_rope_scaling_factor(4.0),
        {},
    ),
    "yarn": (
        lambda: made(hf.Qwen2ForCausalLM, **SIZES, max_position_embeddings=4096, **rope("yarn", **YARN)),
        yarn,
        {},
    ),
    "llama 3": (
        lambda: made(hf.LlamaForCausalLM, **SIZES, max_position_embeddings=16384, **rope("llama3", **LLAMA3)),
        lambda _: None,
        {"rope_freqs": [1, 1, 1, 1, 2.6945305, 8, 8, 8]},
    ),
    "long factors": (
        lambda: made(
            hf.Phi3ForCausalLM,
            **SIZES,
            eos_token_id=0,
            max_position_embeddings=400,
            original_max_position_embeddings=100,
            **rope("longrope", short_factor=SHORT, long_factor=LONG),
        ),
        longrope,
        {"rope_factors_short": SHORT, "rope_factors_long": LONG},
    ),
    "gemma 3's own": (
        lambda: made(
            hf.Gemma3ForCausalLM,
            **WINDOWED | {"query_pre_attn_scalar": 25},
            layer_types=["sliding_attention", "full_attention"],
            final_logit_softcapping=3.0,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            },
        ),
        local,
        {},
    ),
}


@pytest.mark.guards(
    "the rotary scalings, soft caps and windows that a GGUF file states",
    when="a file is read",
    gives="the model has them",
)
@pytest.mark.parametrize("name", SCALED)
def test_the_scalings_that_a_file_states_are_taken(name: str, tmp_path: Path) -> None:
    build, keys, factors = SCALED[name]
    module = build()
    extra = {f"{factor}.weight": np.array(values, dtype=np.float32) for factor, values in factors.items()}
    write(tmp_path / "model.gguf", module, keys=keys, extra=extra)
    assert error(module, load_model(tmp_path / "model.gguf").module) < 2e-6
    write(tmp_path / "without.gguf", module)
    assert error(module, load_model(tmp_path / "without.gguf").module) > 1e-3


def test_factors_of_no_known_rule_are_taken_as_they_are(tmp_path: Path) -> None:
    module = plain()
    extra = {"rope_freqs.weight": FACTORS}
    write(tmp_path / "model.gguf", module, extra=extra, keys=lambda writer: writer.add_rope_scaling_factor(2.0))
    module.model.rotary_emb.inv_freq /= torch.from_numpy(FACTORS) * 2
    assert error(module, load_model(tmp_path / "model.gguf").module) < 2e-6


def test_a_bias_that_no_block_has_is_zero(tmp_path: Path) -> None:
    module = made(hf.LlamaForCausalLM, **SIZES, attention_bias=True)
    for block in module.model.layers:
        block.self_attn.o_proj.bias.data.zero_()
    write(tmp_path / "model.gguf", module, without=[f"blk.{block}.attn_output.bias" for block in range(2)])
    assert error(module, load_model(tmp_path / "model.gguf").module) < 1e-6


def test_a_head_that_is_stored_beside_a_tied_architecture_is_taken(tmp_path: Path) -> None:
    module = MODELS["falcon 7b"]()
    head = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    write(tmp_path / "model.gguf", module, extra={"output.weight": head})
    loaded: Any = load_model(tmp_path / "model.gguf").module
    assert torch.equal(loaded.lm_head.weight, torch.from_numpy(head))
    assert torch.equal(loaded.transformer.word_embeddings.weight, module.transformer.word_embeddings.weight)


# Files in parts


@pytest.mark.guards(
    "a GGUF file is one of several parts",
    when="a file is read",
    gives="all parts are read, whichever is named",
)
def test_all_parts_are_read_whichever_is_named(tmp_path: Path) -> None:
    module = plain()
    write(tmp_path / "model.gguf", module, parts=3)
    for number in (1, 3):
        loaded = load_model(tmp_path / f"model-{number:05d}-of-00003.gguf")
        assert error(module, loaded.module) < 1e-6
        assert loaded.encode("he") == [257]
    opened = weights.open_weights(tmp_path / "model-00002-of-00003.gguf")
    assert torch.equal(opened.matrix(1, "q"), module.model.layers[1].self_attn.q_proj.weight.double())


@pytest.mark.guards(
    "all parts of a GGUF file lie beside each other",
    when="a file is read",
    says="a GGUF file must be whole, and … is one of … parts of which …… not beside it: fetch …",
)
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_part_alone_is_refused(kept: int, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", plain(), parts=3)
    for number in {1, 2, 3} - {kept}:
        (tmp_path / f"model-{number:05d}-of-00003.gguf").unlink()
    refused(tmp_path / f"model-{kept:05d}-of-00003.gguf", "one of 3 parts", "fetch model-0000")


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", plain(), parts=2)
    (tmp_path / "model-00001-of-00002.gguf").rename(tmp_path / "model.gguf")
    refused(tmp_path / "model.gguf", "2 parts", "give the parts their names back")


@pytest.mark.guards(
    "the parts are of one file",
    when="a file is read",
    says="part … of … of a GGUF file must say so, and … says … of …: fetch the parts again",
)
def test_parts_of_two_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", plain(), parts=2)
    write(tmp_path / "other.gguf", plain(), parts=2)
    (tmp_path / "other-00001-of-00002.gguf").rename(tmp_path / "model-00002-of-00002.gguf")
    refused(tmp_path / "model-00001-of-00002.gguf", "part 2 of 2", "fetch the parts again")


# Files that are not the model's


@pytest.mark.guards(
    "every tensor of the model is in the GGUF file",
    when="a file is read",
    says="a GGUF file must hold every tensor of its model, and … lacks … of … (… ...): fetch it again",
)
@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_up.weight", "blk.0.attn_norm.weight"])
def test_a_file_that_lacks_a_tensor_is_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", plain(), without=[name])
    refused(tmp_path / "model.gguf", "every tensor of its model", "fetch it again")


def test_a_bias_that_only_some_blocks_have_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", made(hf.Qwen2ForCausalLM, **SIZES), without=["blk.1.attn_q.bias"])
    refused(tmp_path / "model.gguf", "q_proj.bias")


@pytest.mark.guards(
    "every tensor of a GGUF file is used",
    when="a file is read",
    says=(
        "every tensor of a GGUF file must have a place in transformers' model, and … of … have "
        "none in … (… ...): load the model from its original weights"
    ),
)
@pytest.mark.parametrize("name", ["blk.1.ffn_up.scale", "blk.0.attn_q_norm.weight", "blk.2.attn_q.weight", "odd"])
def test_a_tensor_without_a_place_is_refused_by_name(name: str, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", plain(), extra={name: np.ones((64, 64), dtype=np.float32)})
    refused(tmp_path / "model.gguf", name, "llama")


def test_factors_without_rotation_have_no_place(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", MODELS["gpt2"](), extra={"rope_freqs.weight": FACTORS})
    refused(tmp_path / "model.gguf", "rope_freqs.weight", "gpt2")


@pytest.mark.guards(
    "every key of a GGUF file that moves the output is taken",
    when="a file is read",
    says=(
        "a GGUF file must say nothing that transformers' model does not take, and … states …… = … "
        "where it has …: load the model from its original weights"
    ),
)
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "llama.logit_scale", 2.0),
        ("llama", "llama.final_logit_softcapping", 30.0),
        ("llama", "llama.attention.scale", 0.5),
        ("llama", "llama.rope.scaling.alpha", 2.0),
        ("llama half biased", "llama.embedding_scale", 12.0),
        ("qwen2", "qwen2.attention.clamp_kqv", 8.0),
        ("bloom", "bloom.attention.max_alibi_bias", 4.0),
        ("qwen3moe", "qwen3moe.expert_weights_scale", 2.5),
        ("lfm2", "lfm2.rope.scaling.factor", 4.0),
        ("mamba", "mamba.anything", 1.0),
    ],
)
def test_a_key_that_is_not_taken_is_refused_by_name(name: str, key: str, value: float, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", MODELS[name](), keys=lambda writer: writer.add_float32(key, value))
    refused(tmp_path / "model.gguf", f"{key} = ", "original weights")


def test_keys_that_say_what_the_model_does_anyhow_pass(tmp_path: Path) -> None:
    module = plain()

    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_causal_attention(value=True)
        writer.add_attention_scale(0.25)
        writer.add_rope_scaling_finetuned(value=False)
        writer.add_string("quantize.imatrix.file", "imatrix.dat")

    write(tmp_path / "model.gguf", module, keys=keys)
    assert error(module, load_model(tmp_path / "model.gguf").module) < 1e-6


@pytest.mark.guards(
    "the sizes that a GGUF file states are those of its tensors",
    when="a file is read",
    says=(
        "the tensors of a GGUF file must have the sizes that its keys state, and … holds … where … "
        "is …: load the model from its original weights"
    ),
)
def test_sizes_that_disagree_with_the_tensors_are_refused(tmp_path: Path) -> None:
    wrong = np.ones((100, 64), dtype=np.float32)
    write(tmp_path / "model.gguf", plain(), extra={"blk.0.ffn_up.weight": wrong})
    refused(tmp_path / "model.gguf", "blk.0.ffn_up.weight (100, 64)", "(128, 64)")
    turned = np.ones((64, 128), dtype=np.float32)
    write(tmp_path / "model.gguf", plain(), extra={"blk.0.ffn_up.weight": turned})
    with pytest.raises(InputError, match="sizes"):
        load_model(tmp_path / "model.gguf")


@pytest.mark.guards(
    "the architecture of a GGUF file is one that is read",
    when="a file is read",
    says=(
        "a GGUF file must be a language model of …, and … is of …, which is not read from GGUF "
        "(transformers …): load the model from its original weights"
    ),
)
@pytest.mark.parametrize("architecture", ["gemma", "deepseek2", "gpt-oss", "t5", "made-up"])
def test_an_architecture_that_is_not_read_is_named(architecture: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    writer.add_tensor("token_embd.weight", np.ones((4, 4), dtype=np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    refused(tmp_path / "model.gguf", f"architecture '{architecture}'", "not read from GGUF", hf.__version__)


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", plain(), keys=lambda writer: writer.add_type("adapter"))
    refused(tmp_path / "model.gguf", "type 'adapter'")


def test_sizes_that_transformers_does_not_take_are_not_called_damage(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", plain())
    file = gguf_model(tmp_path / "model.gguf").file
    with pytest.raises(InputError, match=r"\(llama\) are not \(.*heads") as caught, facts.taken(file):
        hf.LlamaConfig(hidden_size=63, num_attention_heads=4)
    assert "\n" not in str(caught.value)


def test_opening_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model.gguf", plain())
    monkeypatch.setattr(gguf.quants, "dequantize", lambda *_: pytest.fail("read"))
    assert gguf_model(tmp_path / "model.gguf").config.hidden_size == 64
