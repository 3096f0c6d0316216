"""Composed Jacobians of every row, against passes of the module itself, which share no code with the library."""

from __future__ import annotations

import warnings

import pytest
import torch

from probe import capture
from probe.jacobian import block_jacobian
from probe.model import first_tensor, load_model
from probe.model.architectures import ARCHITECTURES
from tests.architectures import zoo

LENGTH, POSITION = 7, 5

VARIANTS = [
    ("cohere", {"use_qk_norm": True}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"multi_query": False, "parallel_attn": False, "num_kv_heads": 4}),
    ("falcon", {"alibi": True}),
    ("axk1", {"rope_interleave": False}),
    ("deepseek_v2", {"q_lora_rank": None, "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}),
    ("deepseek_v3", {"attention_bias": True, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5}),
    ("deepseek_v3", {"q_lora_rank": None, "rope_interleave": False}),
    ("diffllama", {"attention_bias": True, "num_key_value_heads": 4}),
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("gpt_bigcode", {"multi_query": False}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    ("mistral", {"num_key_value_heads": 4}),
    ("olmo", {"clip_qkv": 0.5}),
    ("phi", {"qk_layernorm": True}),
    ("stablelm", {"use_parallel_residual": True}),
    ("stablelm", {"qk_layernorm": True}),
]
FOUR = ("axk1", "bailing_hybrid", "dots1", "glm4_moe_lite", "gpt_neo", "kimi_linear", "laguna")
HYBRID = ("bailing_hybrid", "kimi_linear")
# XGLM's own code does not run in float64.
PLAIN = [name for name, row in ARCHITECTURES.items() if row.kinds[0].form is not None and name != "xglm"]


@pytest.fixture
def float64_throughout(monkeypatch):
    """Models in float64 keep float32 inside softmax and RMSNorm; here what they call float32 is float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def tiny(name, **changes):
    """A tiny model of a type in float64, as its rule of sizes makes it; some have four kinds of layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = zoo.tiny(name, layers=4 if name in FOUR else 2, **changes).double()
    if ARCHITECTURES[name].kinds[0].form.experts is not None:
        module.set_experts_implementation("eager")  # grouped products have no float64
    return module


def stream_after(module, block, tokens, moved):
    """What a block leaves at the position, if `moved` is added to what enters it there: a pass of the whole module."""
    left = []

    def enter(_, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        change = torch.zeros_like(hidden).index_put((torch.tensor(0), torch.tensor(POSITION)), moved)
        return ((hidden + change, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden + change})

    handles = [
        block.register_forward_pre_hook(enter, with_kwargs=True),
        block.register_forward_hook(lambda _, __, output: left.append(first_tensor(output)[0, POSITION])),
    ]
    try:
        module(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return left[0]


def require_exact(module):
    model, generator = load_model(module), torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 90, (1, LENGTH), generator=generator)
    for layer, block in enumerate(model.blocks):
        if model.at(layer).form is None:
            assert model.architecture in HYBRID
            continue
        found = block_jacobian(model, tokens, layer, [POSITION], method="analytic", dtype=torch.float64)[0, 0]
        d = len(found)
        moved = torch.zeros(d, dtype=torch.float64, requires_grad=True)
        after = stream_after(module, block, tokens, moved)
        for _ in range(2):
            vector = torch.randn(d, dtype=torch.float64, generator=generator)
            (row,) = torch.autograd.grad(after, moved, vector, retain_graph=True)
            difference = vector @ found - row
            assert difference.norm() < 1e-10 * (row - vector).norm()
        direction = torch.randn(d, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            ends = [stream_after(module, block, tokens, sign * 1e-5 * direction) for sign in (1, -1)]
        column = (ends[0] - ends[1]) / 2e-5
        assert (found @ direction - column).norm() < 1e-6 * (column - direction).norm()


@pytest.mark.parametrize("name", HYBRID)
def test_blocks_of_hybrids_with_latent_attention_are_composed(name):
    model = load_model(zoo.tiny(name))
    found = [model.method(layer)[0] for layer in range(4)]
    latent = ["kv_a" in model.projections(layer) for layer in range(4)]
    assert found == ["analytic" if is_latent else "frozen" for is_latent in latent]
    assert any(latent)


@pytest.mark.parametrize("name", PLAIN)
def test_every_row_composes_the_derivative_of_the_module_s_own_pass(name, float64_throughout):
    require_exact(tiny(name))


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_variants_compose_it_too(name, changes, float64_throughout):
    require_exact(tiny(name, **changes))


@pytest.mark.parametrize(("name", "changes"), [("diffllama", {}), ("minicpm3", {}), ("youtu", {"q_lora_rank": None})])
def test_a_detached_first_position_is_linear(name, changes, float64_throughout):
    model, tokens = load_model(tiny(name, **changes)), torch.arange(3, 10)[None]
    state, after = (
        capture(model, tokens, dtype="model")[f"blocks.1.hook_resid_{site}"][0, 0] for site in ("pre", "post")
    )
    for method in ("analytic", "frozen"):
        options = {"context": "detached", "method": method, "dtype": torch.float64}
        found = block_jacobian(model, tokens, 1, [0], **options)[0, 0]
        assert (found @ state - after).norm() < 1e-9 * (after - state).norm()
    live = block_jacobian(model, tokens, 1, [0], dtype=torch.float64)[0, 0]
    assert (live @ state - after).norm() > 1e-2 * (after - state).norm()


@pytest.mark.parametrize("name", ["mixtral", "dbrx"])
def test_frozen_routing_holds_the_weights_of_the_experts(name, float64_throughout):
    module = tiny(name)
    model, tokens = load_model(module), torch.arange(3, 10)[None]
    frozen, analytic, live = (
        block_jacobian(model, tokens, 1, [POSITION], method=method, routing=routing, dtype=torch.float64)
        for method, routing in (("frozen", "frozen"), ("analytic", "frozen"), ("analytic", "live"))
    )
    size = frozen.norm()
    assert (frozen - analytic).norm() < 1e-10 * size
    assert (frozen - live).norm() > 1e-4 * size
