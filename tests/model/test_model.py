from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from probe.errors import InputError
from probe.model import HuggingFaceModel, LanguageModel, adapters, first_tensor, load_model, with_first_tensor
from probe.model.architectures import ARCHITECTURES as ROWS
from probe.model.architectures import SitePath
from probe.stream import watch
from tests.plant.own import Own
from tests.plant.refusing import refused
from tests.plant.tiny import (
    ARCHITECTURES,
    LAYERS,
    RECURRENT,
    SLIDING_WINDOW,
    VOCABULARY,
    WIDTH,
    tiny_model,
    tiny_module,
    tiny_tokenizer,
    tiny_tokens,
)

PARALLEL = ("gpt_neox", "phi")
SEQUENTIAL = tuple(name for name in ARCHITECTURES if name not in (*PARALLEL, *RECURRENT))

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def watched(model: LanguageModel, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad(), watch(model, model.sites) as seen:
        logits = model.forward(tokens)
    return logits, seen


def count_hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


# What every architecture has


def test_every_tiny_model_has_a_row() -> None:
    """The others are tried on tiny models made by rule (`tests/jacobian/test_rows.py`)."""
    assert {tiny_model(architecture).architecture for architecture in ARCHITECTURES} <= set(ROWS)


@every_architecture
def test_members(architecture: str) -> None:
    model = tiny_model(architecture)
    assert isinstance(model, LanguageModel)
    assert (model.n_layers, model.d_model, model.n_vocab) == (LAYERS, WIDTH, VOCABULARY)
    assert len(model.blocks) == LAYERS
    assert model.max_positions == (None if architecture in RECURRENT else 64)
    assert model.recurrent == (architecture in RECURRENT)
    assert model.parallel == (architecture in PARALLEL)
    assert model.attention == ("none" if architecture in RECURRENT else "sdpa")
    assert model.architecture.startswith(architecture)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert not model.module.training


@pytest.mark.guards("reading changes nothing", when="a pass runs", gives="the pass of the plain module, to the bit")
@every_architecture
def test_a_hooked_pass_equals_the_plain_one_to_the_bit(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens()
    with torch.no_grad():
        own = model.module(tokens, use_cache=False).logits
        plain = model.forward(tokens)
    hooked, seen = watched(model, tokens)
    assert torch.equal(plain, own)
    assert torch.equal(hooked, own)
    assert set(seen) == set(model.sites)
    assert all(state.shape[:2] == (3, 16) for state in seen.values())
    assert all(
        state.shape[2:] == (WIDTH,) for name, state in seen.items() if ".attn." not in name and ".mlp." not in name
    )
    assert count_hooks(model.module) == 0


@pytest.mark.guards(
    "what a block puts out is what the next one reads",
    when="a model is loaded",
    gives="equal to the bit",
)
@every_architecture
def test_the_stream_is_one_stream(architecture: str) -> None:
    """A block starts where the one before ended, and the final norm starts where the last one ended."""
    model = tiny_model(architecture)
    _, seen = watched(model, tiny_tokens())
    ends = [seen[f"blocks.{layer}.hook_resid_post"] for layer in range(LAYERS)]
    starts = [*(seen[f"blocks.{layer}.hook_resid_pre"] for layer in range(1, LAYERS)), seen["ln_final.hook_in"]]
    assert all(torch.equal(end, start) for end, start in zip(ends, starts, strict=True))
    assert not torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("architecture", SEQUENTIAL)
def test_sequential_blocks_add_attention_then_mlp(architecture: str) -> None:
    model = tiny_model(architecture)
    _, seen = watched(model, tiny_tokens())
    for layer in range(LAYERS):
        pre, attention, mid, mlp, post = (
            seen[f"blocks.{layer}.hook_{name}"]
            for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
        )
        assert torch.equal(pre + attention, mid)
        assert torch.equal(mid + mlp, post)
        assert min(attention.norm(), mlp.norm()) > 0.05 * pre.norm()


@pytest.mark.parametrize("architecture", PARALLEL)
def test_parallel_blocks_add_both_to_the_same_state(architecture: str) -> None:
    model = tiny_model(architecture)
    assert "blocks.0.hook_resid_mid" not in model.sites
    _, seen = watched(model, tiny_tokens())
    for layer in range(LAYERS):
        pre, attention, mlp, post = (
            seen[f"blocks.{layer}.hook_{name}"] for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        torch.testing.assert_close(pre + attention + mlp, post, rtol=0, atol=1e-5)
        assert min(attention.norm(), mlp.norm()) > 0.05 * pre.norm()


def test_a_gpt_neox_can_be_sequential() -> None:
    model = tiny_model("gpt_neox", use_parallel_residual=False)
    assert not model.parallel
    _, seen = watched(model, tiny_tokens())
    mid = seen["blocks.1.hook_resid_mid"]
    assert torch.equal(seen["blocks.1.hook_resid_pre"] + seen["blocks.1.hook_attn_out"], mid)
    assert torch.equal(mid + seen["blocks.1.hook_mlp_out"], seen["blocks.1.hook_resid_post"])


@pytest.mark.parametrize("architecture", RECURRENT)
def test_state_space_blocks_add_their_mixer(architecture: str) -> None:
    _, seen = watched(tiny_model(architecture), tiny_tokens())
    for layer in range(LAYERS):
        pre, mixer, post = (seen[f"blocks.{layer}.hook_{name}"] for name in ("resid_pre", "mixer_out", "resid_post"))
        assert torch.equal(pre + mixer, post)


@every_architecture
def test_unembed_is_what_the_module_does_behind_its_last_block(architecture: str) -> None:
    model = tiny_model(architecture)
    logits, seen = watched(model, tiny_tokens())
    last = seen[f"blocks.{LAYERS - 1}.hook_resid_post"]
    with torch.no_grad():
        assert torch.equal(model.unembed(last), logits)
        torch.testing.assert_close(model.unembed(last[1, 3]), logits[1, 3])
        assert torch.equal(model.final_states(tiny_tokens()), seen["ln_final.hook_out"])


def test_gemma_caps_its_logits() -> None:
    model = tiny_model("gemma3", final_logit_softcapping=0.5)
    logits, seen = watched(model, tiny_tokens())
    head = model.module.get_submodule("lm_head")
    raw = head(seen["ln_final.hook_out"])
    assert raw.abs().max() > 0.5
    torch.testing.assert_close(logits, 0.5 * torch.tanh(raw / 0.5))


def test_embed_is_scaled_as_gemma_scales_it() -> None:
    model, tokens = tiny_model("gemma3"), tiny_tokens()
    _, seen = watched(model, tokens)
    assert torch.equal(model.embed(tokens), seen["blocks.0.hook_resid_pre"])
    weight = model.module.get_parameter("model.embed_tokens.weight")
    torch.testing.assert_close(model.embed(tokens), weight[tokens] * WIDTH**0.5)


@pytest.mark.parametrize("architecture", ["gemma3", "olmo3"])
def test_sliding_layers_see_a_shorter_context(architecture: str) -> None:
    """The tiny models are worth little for these families unless their windows are longer than the sliding one."""
    model, tokens = tiny_model(architecture), tiny_tokens()
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 256
    (_, before), (_, after) = watched(model, tokens), watched(model, changed)
    sliding = "blocks.0.hook_resid_post"
    assert torch.equal(before[sliding][:, SLIDING_WINDOW:], after[sliding][:, SLIDING_WINDOW:])
    assert not torch.equal(before[sliding][:, 1], after[sliding][:, 1])
    full = "blocks.2.hook_resid_post"
    assert not torch.equal(before[full][:, -1], after[full][:, -1])


# Blocks that return a tuple


class _InTuple(nn.Module):
    """A block of older transformers: the hidden state first in a tuple."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *arguments: Any, **named: Any) -> tuple[Tensor, None]:
        return self.block(*arguments, **named), None


def test_first_tensor_reads_both_forms() -> None:
    state = torch.randn(2, 5, 4)
    assert first_tensor(state) is state
    assert first_tensor((state, None)) is state


def test_with_first_tensor_keeps_the_form() -> None:
    old, new = torch.zeros(2, 5, 4), torch.ones(2, 5, 4)
    assert with_first_tensor(old, new) is new
    assert with_first_tensor((old, "cache"), new) == (new, "cache")


@every_architecture
def test_watching_a_block_that_returns_a_tuple(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens()
    block = model.blocks[1]
    state = torch.randn(2, 7, WIDTH)
    needed = block_arguments(model, tokens[:2, :7])
    with torch.no_grad(), watch(model, ["blocks.1.hook_resid_post"]) as seen:
        output = block(state, **needed)
    wrapped = HuggingFaceModel("wrapped", model.module, None, "", model.layout)
    object.__setattr__(wrapped, "blocks", tuple(map(_InTuple, model.blocks)))
    with torch.no_grad(), watch(wrapped, ["blocks.1.hook_resid_post"]) as seen_in_tuple:
        output_tuple = wrapped.blocks[1](state, **needed)
    assert isinstance(output_tuple, tuple)
    assert torch.equal(seen["blocks.1.hook_resid_post"], first_tensor(output))
    assert torch.equal(seen_in_tuple["blocks.1.hook_resid_post"], first_tensor(output))


def block_arguments(model: HuggingFaceModel, tokens: Tensor) -> dict[str, Any]:
    """What the module passes to block 1 beside the state."""
    found: dict[str, Any] = {}
    handle = model.blocks[1].register_forward_pre_hook(lambda _, __, named: found.update(named), with_kwargs=True)
    with handle, torch.no_grad():
        model.forward(tokens)
    return {name: value for name, value in found.items() if name != "hidden_states"}


# Projections: what the sub-layers compute is computed again from the matrices


def linear_part(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x) - function(torch.zeros_like(x))


ATTENTION = {"gpt2": "attn", "gpt_neox": "attention"}
PROJECTIONS = {
    "gpt2": "q k v o up down",
    "gpt_neox": "q k v o up down",
    "opt": "q k v o up down",
    "phi": "q k v o up down",
    "mamba": "in x dt out",
    "mamba2": "in out",
}


@every_architecture
def test_projections_have_their_names_and_shapes(architecture: str) -> None:
    model = tiny_model(architecture)
    for layer in range(LAYERS):
        matrices = model.projections(layer)
        assert " ".join(matrices) == PROJECTIONS.get(architecture, "q k v o gate up down")
        writing = [name for name in matrices if name in {"o", "down", "out"}]
        reading = [name for name in matrices if name not in {*writing, "x", "dt"}]
        assert all(matrices[name].shape[0] == WIDTH for name in writing)
        assert all(matrices[name].shape[1] == WIDTH for name in reading)
    assert not torch.equal(model.projections(0)[reading[0]], model.projections(1)[reading[0]])


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in RECURRENT])
def test_attention_rebuilt_from_q_k_v_o(architecture: str) -> None:
    """Softmax attention by hand, without positions, equals the module's (biases zero, rotations by angle zero)."""
    model = tiny_model(architecture)
    zero_biases(model.module)
    attention = model.blocks[2].get_submodule(ATTENTION.get(architecture, "self_attn"))
    heads = model.config.num_attention_heads
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    q, k, v, o = (model.projections(2)[name] for name in "qkvo")
    size = o.shape[1] // heads

    def split(matrix: Tensor, norm: str | None) -> Tensor:
        flat = x @ matrix.T
        normed = norm is not None and hasattr(attention, norm)
        # Qwen 3 and Gemma 3 norm each head, OLMo 3 all heads together.
        if normed and architecture == "olmo3":
            flat = attention.get_submodule(str(norm))(flat)
        state = flat.unflatten(-1, (-1, size))
        if normed and architecture != "olmo3":
            state = attention.get_submodule(str(norm))(state)
        return state.repeat_interleave(heads // state.shape[2], 2).transpose(1, 2)

    with torch.no_grad():
        queries, keys, values = split(q, "q_norm"), split(k, "k_norm"), split(v, None)
        scores = (queries @ keys.mT) * attention.scaling
        causal = torch.ones(5, 5, dtype=torch.bool).tril()
        weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        expected = (weights @ values).transpose(1, 2).flatten(2) @ o.T
        angles = (torch.ones(2, 5, rotary(attention)), torch.zeros(2, 5, rotary(attention)))
        own = attention(
            hidden_states=x, attention_mask=None, **({} if rotary(attention) == 0 else {"position_embeddings": angles})
        )
    torch.testing.assert_close(first_tensor(own), expected, rtol=1e-4, atol=1e-5)


def rotary(attention: nn.Module) -> int:
    if type(attention).__name__ in {"GPT2Attention", "OPTAttention"}:
        return 0
    return int(getattr(attention, "rotary_ndims", getattr(attention, "head_dim", 0)))


def zero_biases(module: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in RECURRENT])
def test_mlp_rebuilt_from_gate_up_down(architecture: str) -> None:
    model = tiny_model(architecture)
    zero_biases(model.module)
    block, matrices = model.blocks[1], model.projections(1)
    x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))
    if architecture == "opt":
        activation = block.activation_fn
        own = block.fc2(activation(block.fc1(x)))
    else:
        mlp = block.mlp
        activation = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None) or mlp.act
        own = mlp(x)
    up = x @ matrices["up"].T
    inner = activation(x @ matrices["gate"].T) * up if "gate" in matrices else activation(up)
    torch.testing.assert_close(own, inner @ matrices["down"].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", RECURRENT)
def test_state_space_projections_act_as_the_modules_do(architecture: str) -> None:
    model = tiny_model(architecture)
    mixer = model.blocks[1].get_submodule("mixer")
    for name, matrix in model.projections(1).items():
        x = torch.randn(6, matrix.shape[1], generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(
            linear_part(mixer.get_submodule(f"{name}_proj"), x), x @ matrix.T, rtol=1e-4, atol=1e-5
        )


# Names as TransformerLens gives them, and its adapters where we have no row of our own


@every_architecture
def test_our_table_agrees_with_transformer_lens(architecture: str) -> None:
    module = tiny_module(architecture)
    layout, model = adapters.layout(module), tiny_model(architecture)
    for name in ("blocks", "embedding", "final_norm", "head"):
        assert getattr(model.layout, name) == getattr(layout, name)
    ours, theirs = model.at(1), layout.of(model.blocks[1])
    assert ours.parallel == theirs.parallel
    assert ours.recurrent == theirs.recurrent
    places = ({name: (site.module, site.side) for name, site in kind.sites.items()} for kind in (ours, theirs))
    assert next(places) == next(places)
    assert set(theirs.projections) <= set(ours.projections)
    for name, projection in theirs.projections.items():
        assert torch.equal(projection.weight(model.blocks[1], 4), ours.projections[name].weight(model.blocks[1], 4)), (
            name
        )


GROUPED = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
BY_ADAPTER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Mistral": (GROUPED, {"parallel": False, "added": ("hook_attn_out", "hook_mlp_out"), "projections": 7}),
    "Phi3": (GROUPED, {"parallel": False, "added": ("hook_attn_out", "hook_mlp_out"), "projections": 7}),
    "Gemma2": (
        {**GROUPED, "head_dim": 16},
        {"parallel": False, "added": ("hook_attn_out", "hook_mlp_out"), "projections": 7},
    ),
    "Cohere": (
        {**GROUPED, "logit_scale": 0.3},
        {"parallel": True, "added": ("hook_attn_out", "hook_mlp_out"), "projections": 7},
    ),
    # Multiplies each sub-layer's output before it adds it: the site is the product.
    "Granite": (
        {**GROUPED, "residual_multiplier": 0.5, "logits_scaling": 3.0},
        {"parallel": False, "added": ("hook_attn_out", "hook_mlp_out"), "projections": 7},
    ),
    # Adds inside its sub-layers, so that their last matrices give what is added.
    "Bloom": (
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": 4},
        {"parallel": False, "added": ("hook_attn_out", "hook_mlp_out"), "projections": 6},
    ),
    # Adds the attention's output to the MLP's in place.
    "Falcon": (
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4},
        {"parallel": True, "added": ("hook_attn_out", "hook_mlp_out"), "projections": 6},
    ),
    "FalconMamba": (
        {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "hidden_size": WIDTH, "state_size": 8},
        {"parallel": False, "added": ("hook_mixer_out",), "projections": 4},
    ),
}


def other_module(family: str, settings: dict[str, Any], suffix: str = "ForCausalLM") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: nn.Module = getattr(transformers, family + suffix)(getattr(transformers, f"{family}Config")(**settings))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return module.eval()


@pytest.mark.parametrize("family", BY_ADAPTER)
def test_other_architectures_go_by_the_adapters_of_transformer_lens(family: str) -> None:
    settings, expected = BY_ADAPTER[family]
    module = other_module(family, settings)
    model = load_model(module)
    assert isinstance(model, HuggingFaceModel)
    assert model.parallel == expected["parallel"]
    assert model.at(1).added == expected["added"]
    assert len(model.projections(1)) == expected["projections"]
    tokens = tiny_tokens()
    with torch.no_grad():
        plain = model.forward(tokens)
    logits, seen = watched(model, tokens)
    assert torch.equal(plain, logits)
    torch.testing.assert_close(model.unembed(seen["blocks.1.hook_resid_post"]), logits)
    if model.at(1).added:
        added = sum(seen[f"blocks.1.{name}"] for name in model.at(1).added)
        torch.testing.assert_close(seen["blocks.1.hook_resid_pre"] + added, seen["blocks.1.hook_resid_post"])


def test_an_adapters_layout_holds_in_bfloat16() -> None:
    settings, expected = BY_ADAPTER["Mistral"]
    model = load_model(other_module("Mistral", settings).to(torch.bfloat16))
    assert isinstance(model, HuggingFaceModel)
    assert model.at(1).added == expected["added"]


def test_a_joint_matrix_of_an_adapter_is_taken_apart() -> None:
    model = load_model(other_module("Phi3", GROUPED))
    block = model.blocks[0]
    joint = model.projections(0)
    assert torch.equal(torch.cat([joint[name] for name in "qkv"]), block.get_parameter("self_attn.qkv_proj.weight"))
    both = torch.cat([joint["gate"], joint["up"]])
    assert torch.equal(both, block.get_parameter("mlp.gate_up_proj.weight"))


# A loaded object stays as it is


@every_architecture
def test_a_bridge_of_transformer_lens_is_a_model(architecture: str) -> None:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    module, tokens = tiny_module(architecture), tiny_tokens()
    plain = load_model(module)
    expected, states = watched(plain, tokens)
    matrices = {name: matrix.clone() for name, matrix in plain.projections(1).items()}
    bridge = build_bridge_from_module(
        module, type(module).__name__, hf_config=module.config, dtype=torch.float32, device="cpu"
    )
    model = load_model(bridge, tokenizer=tiny_tokenizer())
    logits, seen = watched(model, tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    assert {name for name in states if ".attn." not in name and ".mlp." not in name} <= set(seen) <= set(states)
    for name in seen:
        torch.testing.assert_close(seen[name].reshape(states[name].shape), states[name], rtol=1e-3, atol=1e-4)
    for name, matrix in matrices.items():
        assert torch.equal(model.projections(1)[name], matrix)
    assert model.encode("ab") == tiny_tokenizer().encode("ab")
    assert "TransformerBridge" in model.description


@pytest.mark.guards(
    "weights are what runs: a bridge in compatibility mode folds norms into matrices apart from the joint one",
    when="a model is loaded",
    gives="no q, k, v of the joint matrix, with the reason in `support`; the others as they run",
)
@pytest.mark.parametrize(("architecture", "joint"), [("gpt2", True), ("gpt_neox", True), ("llama", False)])
def test_a_joint_matrix_that_a_bridge_does_not_run_is_not_named(architecture: str, joint: bool) -> None:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    module: Any = tiny_module(architecture)
    bridge = build_bridge_from_module(module, type(module).__name__, hf_config=module.config, device="cpu")
    bridge.enable_compatibility_mode()
    model = load_model(bridge)
    named = model.projections(1)
    assert set(named) == {"o", "up", "down"} if joint else {"q", "k", "v", "o", "gate", "up", "down"}
    assert any("compatibility mode" in part.why for part in model.support.left_out) == joint
    if not joint:
        own = bridge.blocks[1].attn.W_Q
        assert torch.equal(named["q"], own.transpose(1, 2).flatten(0, 1))


@pytest.mark.guards(
    "the module is left as it was",
    when="a model is loaded",
    gives="weights, modes and hooks equal before and after",
)
def test_a_users_module_is_not_changed() -> None:
    module = tiny_module("gpt2").to(torch.bfloat16)
    module.train()
    module.transformer.h[1].eval()
    modes = {name: part.training for name, part in module.named_modules()}
    weights = copy.deepcopy(module.state_dict())
    model = load_model(module)
    with torch.no_grad():
        first, second = model.forward(tiny_tokens()), model.forward(tiny_tokens())
    assert torch.equal(first, second)  # dropout was off
    assert model.module is module
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())
    assert all(tensor.dtype == torch.bfloat16 for tensor in module.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_mode_comes_back_after_an_exception() -> None:
    module = tiny_module("llama").train()
    model = load_model(module)

    def fail(*_: object) -> None:
        raise IndexError

    handle = module.model.layers[1].register_forward_hook(fail)
    with pytest.raises(IndexError):
        model.forward(torch.zeros((1, 4), dtype=torch.int64))
    handle.remove()
    assert all(part.training for part in module.modules())


def test_unembed_casts_float32_states_to_a_bfloat16_model() -> None:
    model = load_model(tiny_module("llama").to(torch.bfloat16))
    logits, seen = watched(model, tiny_tokens())
    last = seen[f"blocks.{LAYERS - 1}.hook_resid_post"]
    with torch.no_grad():
        assert torch.equal(model.unembed(last.float()), logits)


@pytest.mark.parametrize("architecture", RECURRENT)
def test_a_mamba_in_bfloat16_keeps_its_stream_in_float32(architecture: str) -> None:
    model = load_model(tiny_module(architecture, residual_in_fp32=True).to(torch.bfloat16))
    logits, seen = watched(model, tiny_tokens())
    last = seen[f"blocks.{LAYERS - 1}.hook_resid_post"]
    assert last.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(model.unembed(last), logits)


def test_a_language_model_is_taken_as_it_is() -> None:
    model = tiny_model("llama")
    assert load_model(model) is model


# Other weights for the same architecture


def test_random_init_draws_fresh_weights_by_its_seed() -> None:
    module = tiny_module("llama")
    before = load_model(module).weight_hash
    one, again, two = (load_model(module, random_init=seed) for seed in (1, 1, 2))
    assert one.weight_hash == again.weight_hash
    assert len({before, one.weight_hash, two.weight_hash}) == 3
    assert load_model(module).weight_hash == before
    assert not one.module.training
    assert one.description == "random weights (seed 1)"


def test_random_init_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(tiny_module("llama"), random_init=3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("architecture", ["gpt2", "mamba", "llama"])
def test_shuffled_weights_permute_matrices_and_keep_gains(architecture: str) -> None:
    overrides = {"tie_word_embeddings": True}
    module = tiny_module(architecture, **overrides)
    before = copy.deepcopy(module.state_dict())
    shuffled = load_model(module, shuffled_weights=7).module
    after = shuffled.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    for name, tensor in before.items():
        if tensor.ndim >= 2:
            assert not torch.equal(tensor, after[name]), name
            assert torch.equal(tensor.flatten().sort().values, after[name].flatten().sort().values)
        else:
            assert torch.equal(tensor, after[name]), name
    assert shuffled.get_output_embeddings().weight is shuffled.get_input_embeddings().weight
    again = load_model(module, shuffled_weights=7).module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in again.items())


def test_the_weight_hash_sees_one_changed_number_a_name_and_a_dtype() -> None:
    module = tiny_module("llama")
    hashes = {load_model(module).weight_hash, load_model(copy.deepcopy(module)).weight_hash}
    assert len(hashes) == 1
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.model.norm.weight[3] += 1e-3
    swapped = copy.deepcopy(module)
    first, second = swapped.model.layers[0].mlp, swapped.model.layers[1].mlp
    swapped.model.layers[0].mlp, swapped.model.layers[1].mlp = second, first
    hashes |= {load_model(other).weight_hash for other in (changed, swapped, copy.deepcopy(module).to(torch.bfloat16))}
    assert len(hashes) == 4


# Text


def test_encode_adds_no_special_token_and_bos_is_what_the_tokenizer_puts_first() -> None:
    plain = load_model(tiny_module("llama"), tokenizer=tiny_tokenizer())
    with_bos = load_model(tiny_module("llama"), tokenizer=tiny_tokenizer(add_bos=True))
    assert plain.encode("a b") == with_bos.encode("a b")
    assert len(plain.encode("naïve")) == 6
    assert plain.bos_id is None
    assert with_bos.bos_id == 256
    assert plain.special_ids == {256, 257, 258}


def test_text_without_a_tokenizer_is_refused() -> None:
    model = tiny_model("llama")
    assert model.bos_id is None
    assert model.special_ids == frozenset()
    with pytest.raises(InputError, match="tokenizer"):
        model.encode("a")


# Bad input: one line each


@pytest.mark.guards(
    "the stream has one width",
    when="a model is loaded",
    says="a model needs a residual stream of constant width",
)
def test_no_stream_of_constant_width_is_refused() -> None:
    refused(lambda: tiny_model("opt", word_embed_proj_dim=16), "constant width", "16", "32")
    refused(lambda: tiny_model("opt", do_layer_norm_before=False), "constant width", "do_layer_norm_before")


@pytest.mark.guards(
    "no state depends on a later token",
    when="a model is loaded",
    says="a model must be causal, so that no state depends on a later token, but this … attends to both sides",
)
def test_a_model_that_looks_ahead_is_refused() -> None:
    refused(lambda: tiny_model("gemma3", use_bidirectional_attention=True), "must be causal", "gemma3_text")
    refused(lambda: tiny_model("llama", is_causal=False), "must be causal", "llama")


def test_an_encoder_is_seen_to_look_ahead() -> None:
    settings = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "hidden_size": WIDTH, "num_attention_heads": 4}
    bert = other_module("Bert", {**settings, "intermediate_size": 48}, "LMHeadModel")
    refused(lambda: load_model(bert), "causal", "BertLMHeadModel")


@pytest.mark.guards(
    "the model is a decoder of one text",
    when="a model is loaded",
    says=(
        "a model must be a decoder of one text, and … is an encoder-decoder, whose decoder also "
        "reads an encoder's output: use a causal language model"
    ),
)
def test_a_model_of_two_parts_is_refused() -> None:
    t5 = other_module("T5", {"vocab_size": VOCABULARY, "d_model": WIDTH, "num_layers": 2}, "ForConditionalGeneration")
    refused(lambda: load_model(t5), "T5ForConditionalGeneration", "encoder-decoder")


def test_a_site_or_layer_that_is_not_there_is_refused() -> None:
    model = tiny_model("phi")
    refused(lambda: model.site("blocks.0.hook_resid_mid"), "hook_resid_mid", "hook_attn_out")
    refused(lambda: model.site("blocks.4.hook_resid_pre"), "below 4")


def test_options_that_contradict_the_model_are_refused(tmp_path: Path) -> None:
    module = tiny_module("llama")
    refused(lambda: load_model(module, device="cpu"), "used as it is")
    refused(lambda: load_model(module, dtype="bfloat16"), "used as it is")
    refused(lambda: load_model(module, random_init=0, shuffled_weights=0), "one of them")
    refused(lambda: load_model(nn.Linear(2, 2)), "Linear", "LanguageModel")
    refused(lambda: load_model(Own(tiny_model("llama")), random_init=0), "model.module")
    refused(lambda: load_model(Own(tiny_model("llama")), tokenizer=tiny_tokenizer()), "tokenizer=", "Own has its own")
    module.save_pretrained(tmp_path)
    refused(lambda: load_model(tmp_path, dtype="float7"), "float32", "float7")
    refused(lambda: load_model(tmp_path, device="nowhere"), "nowhere", "cpu")
    refused(lambda: load_model(tmp_path, tokenizer=tiny_tokenizer()), "tokenizer")


def test_flat_sites_are_only_those_of_opt() -> None:
    """OPT folds windows and positions into one axis around its MLP; everything else keeps both."""
    flat = {
        (architecture, name)
        for architecture, layout in ROWS.items()
        for kind in layout.kinds
        for name, site in kind.sites.items()
        if site == SitePath(site.module, site.side, flat=True)
    }
    assert flat == {("opt", "hook_resid_mid"), ("opt", "hook_mlp_out")}
