"""Layouts found by running: the stream, its blocks, what they add, what follows; each against the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from probe.errors import InputError
from probe.model import HuggingFaceModel, load_model
from probe.model.looking import look
from probe.model.tracing import TOKENS, probe_tokens
from probe.stream import watch
from tests.architectures import zoo

BASE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
GROUPED = {"num_key_value_heads": 2}
GEMMA4 = {
    **GROUPED,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 0,
    "head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
FALCON_H1 = {
    **GROUPED,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "head_dim": 8,
    "ssm_out_multiplier": 0.5,
    "attention_out_multiplier": 0.25,
    "lm_head_multiplier": 0.125,
}


def module_of(kind: str, **settings: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**BASE, **settings})).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.2)
            for name, buffer in module.named_buffers():
                if name.endswith("layer_scalar"):
                    buffer.fill_(1.25)
    return module


def model_of(kind: str, dtype: torch.dtype = torch.float32, **settings: Any) -> HuggingFaceModel:
    model = load_model(module_of(kind, **settings).to(dtype))
    assert isinstance(model, HuggingFaceModel)
    return model


ADDED = {
    "granite": ({**GROUPED, "residual_multiplier": 0.3, "logits_scaling": 3.0}, ("hook_attn_out", "hook_mlp_out")),
    "cohere": (GROUPED, ("hook_attn_out", "hook_mlp_out")),
    "gemma4_text": (GEMMA4, ("hook_attn_out",)),
    "falcon_h1": (FALCON_H1, ("hook_mixer_out", "hook_attn_out", "hook_mlp_out")),
    "lfm2": ({**GROUPED, "layer_types": ["conv", "full_attention"]}, ("hook_attn_out", "hook_mlp_out")),
    "mamba": ({"state_size": 4}, ("hook_mixer_out",)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ADDED)
def test_what_a_block_adds_is_found_in_every_number_format(kind: str, dtype: torch.dtype) -> None:
    settings, names = ADDED[kind]
    model = model_of(kind, dtype, **settings)
    tokens = torch.arange(20, 32)[None]  # not those of the pass in which the sites were found
    with torch.no_grad(), watch(model, model.sites) as seen:
        model.forward(tokens)
    seen = {name: state.float() for name, state in seen.items()}
    for layer in range(model.n_layers):
        laid_out = model.at(layer)
        assert laid_out.added == names
        added = sum(seen[f"blocks.{layer}.{name}"] for name in names)
        end = "hook_resid_post" if "hook_mlp_out" in names or len(names) > 1 else "hook_resid_mid"
        end = end if f"blocks.{layer}.{end}" in seen else "hook_resid_post"
        rounding = 0.03 if dtype is torch.bfloat16 else 1e-5
        whole = seen[f"blocks.{layer}.hook_resid_pre"] + added
        torch.testing.assert_close(whole, seen[f"blocks.{layer}.{end}"], rtol=rounding, atol=rounding)


def test_factors_are_those_of_the_configuration_or_the_block() -> None:
    granite = model_of("granite", **ADDED["granite"][0])
    assert [granite.at(1).sites[name].factor for name in ("hook_attn_out", "hook_mlp_out")] in (
        [0.3, 0.3],
        ["residual_multiplier", "residual_multiplier"],
    )
    assert model_of("gemma4_text", **GEMMA4).at(0).scale == 1.25


@pytest.mark.guards(
    "what follows the last block: norm, head, factors, soft caps",
    when="a model is loaded",
    gives="logits of the last state are those of the module",
)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("granite", {**GROUPED, "logits_scaling": 3.0}),
        ("cohere", {**GROUPED, "logit_scale": 0.2}),
        ("gemma2", {**GROUPED, "head_dim": 8, "final_logit_softcapping": 2.0}),
        (
            "recurrent_gemma",
            {"num_key_value_heads": 1, "lru_width": 32, "num_hidden_layers": 3, "logits_soft_cap": 2.5},
        ),
        ("falcon_h1", FALCON_H1),
        (
            "minicpm3",
            {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
        ),
        ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
        ("mamba", {"state_size": 4}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_computed_as_the_module_computes_them(
    kind: str, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    model = model_of(kind, dtype, **settings)
    tokens = torch.arange(20, 32)[None]
    with torch.no_grad(), watch(model, [f"blocks.{model.n_layers - 1}.hook_resid_post"]) as seen:
        logits = model.forward(tokens)
        found = model.unembed(*seen.values())
    assert found.dtype == logits.dtype
    torch.testing.assert_close(found, logits, rtol=0.02 if dtype is torch.bfloat16 else 1e-5, atol=1e-4)


REFUSED = {
    "deepseek_v4": ({}, "several columns"),
    "hrm_text": ({}, "more than once"),
    "xlnet": ({"d_model": 32, "n_head": 4, "n_layer": 2, "d_inner": 48}, "positions, windows"),
}


@pytest.mark.guards(
    "the stream is one: each block adds to what the one before it gave",
    when="a model is loaded",
    says="a model must be a chain of blocks that add to one residual stream, and … has …: use another model",
)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_chain_of_blocks_on_one_stream_is_refused_in_one_true_line(kind: str) -> None:
    settings, word = REFUSED[kind]
    with pytest.raises(InputError, match=word) as caught:
        load_model(module_of(kind, **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.guards(
    "there is a head",
    when="a model is loaded",
    says="a model must give logits, and … is a trunk without a head: pass the causal language model around it",
)
def test_a_trunk_without_a_head_is_refused() -> None:
    with pytest.raises(InputError, match="without a head"):
        load_model(module_of("llama").base_model)


def test_the_model_is_left_as_it_was() -> None:
    module = module_of("gemma2", **GROUPED, head_dim=8)
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    look(module)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.guards("a module is wrapped by torch.compile", when="a model is loaded", gives="the module inside")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_compiled_model_is_opened() -> None:
    module = module_of("llama")
    compiled = torch.compile(module)
    assert isinstance(compiled, nn.Module)
    assert load_model(compiled).module is module


@pytest.mark.guards(
    "inference_mode or autocast surround the loading",
    when="a model is loaded",
    gives="the sites and matrices of a plain load",
)
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("mimo_v2_flash", torch.inference_mode),
        ("mimo_v2_flash", lambda: torch.autocast("cpu", torch.bfloat16)),
        ("xmod", lambda: torch.autocast("cpu", torch.bfloat16)),
    ],
)
def test_a_model_is_laid_out_alike_whatever_mode_surrounds(kind: str, mode: Callable[[], Any]) -> None:
    module = zoo.tiny(kind, layers=2)
    expected = load_model(module)
    with mode():
        found = load_model(module)
    assert found.sites == expected.sites
    assert [set(found.projections(layer)) for layer in (0, 1)] == [set(expected.projections(layer)) for layer in (0, 1)]


def test_the_tokens_of_the_pass_differ() -> None:
    for size in (12, 96, 50_000):
        tokens = probe_tokens(size)
        assert tokens.shape == (1, TOKENS)
        assert tokens.max() < size
        assert len(set(tokens[0].tolist())) == TOKENS


def test_support_says_what_works_and_what_is_left_out() -> None:
    model = model_of("rwkv", attention_hidden_size=32)
    support = model.support
    assert [kind.layers for kind in support.blocks] == [(0,), (1,)]
    (left_out,) = [part for part in support.left_out if "hook_attn_out" in part.what]
    assert left_out.layers == (0,)  # RWKV norms the embedding inside its first block
    assert "blocks 0" in str(support)
    assert left_out.why in str(support)
