"""Blocks of every kind: their replay and their Jacobian are those of the model's own whole pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModelForCausalLM

from probe import patching, replay
from probe.errors import InputError
from probe.jacobian import block_jacobian, cumulative_jacobian, operator
from probe.model import first_tensor, load_model
from tests.architectures import zoo

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, **_SPECIAL}
_TWO = {**_SIZES, "num_hidden_layers": 2, "num_key_value_heads": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT = {
    **_SIZES,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_ROUTED = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_DELTA = {
    **_HYBRID,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_STATE = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_GEMMA4 = {
    **_SIZES,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 16,
}
_LOCAL = ["sliding_attention", "full_attention"]

# model type, settings, and the cheapest way of each block
KINDS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "latent": ("deepseek_v3", {**_LATENT, **_ROUTED}, ["keys", "keys"]),
    "latent, complex rotation": ("deepseek_v2", {**_LATENT, **_ROUTED}, ["keys", "keys"]),
    "repeated keys": (
        "jetmoe",
        {**_SIZES, "num_hidden_layers": 2, "num_key_value_heads": 4, "kv_channels": 8, "num_local_experts": 4},
        ["keys", "keys"],
    ),
    "indexed keys": (
        "glm_moe_dsa",
        {**_LATENT, **_ROUTED, "index_n_heads": 32, "index_head_dim": 16, "index_topk": 4},
        ["keys", "keys"],
    ),
    "biases by head": ("bloom", {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4}, ["keys", "keys"]),
    "as many heads as windows": (
        "mpt",
        {"vocab_size": 96, "d_model": 30, "n_layers": 2, "n_heads": 3, "expansion_ratio": 2, "max_seq_len": 64},
        ["carried", "carried"],
    ),
    "one mask a window": (
        "xglm",
        {"vocab_size": 96, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, **_SPECIAL},
        ["keys", "keys"],
    ),
    "convolution": (
        "lfm2",
        {**_TWO, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        ["carried", "keys"],
    ),
    "gated delta": ("qwen3_next", {**_TWO, **_DELTA, **_EXPERTS, "head_dim": 8}, ["carried", "keys"]),
    "state-space, experts": (
        "jamba",
        {
            **_TWO,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
        ["carried", "keys"],
    ),
    "state-space and attention in one block": ("falcon_h1", {**_TWO, **_STATE, "mamba_d_ssm": 64}, ["carried"] * 2),
    "an MLP alone": (
        "nemotron_h",
        {
            **_SIZES,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
        ["carried", "keys", "keys"],
    ),
    "per-layer inputs, shared keys": (
        "gemma4_text",
        {**_GEMMA4, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": _LOCAL * 2},
        ["keys"] * 4,
    ),
    "one row with a cache": (
        "rwkv",
        {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
        ["rows", "rows"],
    ),
}
POSITIONS = torch.tensor([[0, 4, 9], [1, 4, 10], [0, 7, 8]])
every_kind = pytest.mark.parametrize("kind", list(KINDS))


def model_of(kind, dtype=torch.float32):
    """A random model of the kind, whose blocks change the stream by far more than rounding."""
    name, settings, _ = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings)).eval()
        with torch.no_grad():
            for path, parameter in module.named_parameters():
                if parameter.ndim > 1 and not path.endswith("A_log"):
                    torch.nn.init.normal_(parameter, std=0.2)
    return load_model(module.to(dtype))


def tokens_of(windows=3, length=11):
    return torch.randint(3, 90, (windows, length), generator=torch.Generator().manual_seed(3))


def close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def of_whole_pass(model, tokens, layer, position, last=None):
    """∂(stream behind block `last`)/∂(stream that enters `layer`) in the model's own pass, row by row, (W, d, d)."""
    kept = {}

    def enter(_, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        kept["in"] = hidden[:, position].detach().clone().requires_grad_()
        hidden = torch.cat([hidden[:, :position], kept["in"][:, None], hidden[:, position + 1 :]], dim=1).clone()
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def leave(_, __, output):
        kept["out"] = first_tensor(output)[:, position]

    handles = [
        model.blocks[layer].register_forward_pre_hook(enter, with_kwargs=True),
        model.blocks[layer if last is None else last].register_forward_hook(leave),
    ]
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            model.forward(tokens)
    finally:
        for handle in handles:
            handle.remove()
    rows = [torch.autograd.grad(row.sum(), kept["in"], retain_graph=True)[0] for row in kept["out"].unbind(-1)]
    return torch.stack(rows, dim=1)


def expected_jacobians(model, tokens, layer, positions=POSITIONS):
    each = {t: of_whole_pass(model, tokens, layer, t) for t in positions.unique().tolist()}
    rows = [torch.stack([each[t][w] for t in row]) for w, row in enumerate(positions.tolist())]
    return torch.stack(rows) - torch.eye(model.d_model, dtype=model.dtype)


@pytest.mark.guards(
    "blocks read more than the stream: keys, values or states of other blocks",
    when="a Jacobian is computed",
    gives="derivatives as in the whole pass",
)
@every_kind
def test_blocks_are_differentiated_as_in_the_whole_pass(kind):
    model, tokens = model_of(kind), tokens_of()
    for layer in range(model.n_layers):
        expected = expected_jacobians(model, tokens, layer)
        assert float(expected.norm(dim=(-2, -1)).min()) > 1e-2
        close(block_jacobian(model, tokens, layer, POSITIONS, of="update"), expected)
        some = block_jacobian(model, tokens[1:], layer, POSITIONS[1:, 1:], of="update", memory=1)
        close(some, expected[1:, 1:])


@every_kind
def test_blocks_run_again_the_cheapest_way_that_their_code_allows(kind):
    model, tokens = model_of(kind), tokens_of()
    context = replay.record(model, tokens, POSITIONS)
    assert [context.way(layer) for layer in range(model.n_layers)] == KINDS[kind][2]
    last = model.n_layers - 1
    for states in (context.state(last), 1.1 * context.state(last).roll(1, -1)):
        both = torch.stack([states, context.state(last)], dim=1)
        with torch.no_grad():
            found = context.replay(last, both)
            for column in range(POSITIONS.shape[1]):
                rows, where = torch.arange(3), POSITIONS[:, column]
                sequences = context.states[last].clone()
                sequences[rows, where] = states[:, column]
                close(found[:, 0, column], context.block_on_sequences(last, sequences, rows)[rows, where])
        close(found[:, 1], context.state(last + 1))


@every_kind
def test_at_position_0_a_token_is_alone(kind):
    model, tokens = model_of(kind), tokens_of()
    for layer in range(model.n_layers):
        alone, sequence = (
            block_jacobian(model, tokens, layer, [0], context=context, of="update").flatten(0, 1)
            for context in ("alone", "sequence")
        )
        close(alone, sequence)


@pytest.mark.parametrize("kind", ["latent", "repeated keys", "biases by head", "one mask a window", "an MLP alone"])
def test_the_write_of_others_is_nothing_at_position_0(kind):
    model, tokens = model_of(kind), tokens_of()
    context = replay.record(model, tokens, POSITIONS)
    write = context.off_position_write(1)
    bias = write[0, 0]  # position 0 has no others: what is left is an output bias
    close(write[2, 0], bias, 1e-6) if bias.norm() else None
    assert float((write[2, 0] - bias).norm()) < 1e-5 * float((write[1, 1] - bias).norm())


def test_the_write_of_others_is_refused_where_values_cannot_be_told():
    context = replay.record(model_of("state-space and attention in one block"), tokens_of(), POSITIONS)
    with pytest.raises(InputError, match="leave its share out"):
        context.off_position_write(0)


@pytest.mark.guards("experts have a kernel without float64", when="a Jacobian is computed", gives="they run one by one")
@pytest.mark.parametrize("kind", ["latent", "gated delta"])
def test_experts_run_in_float64(kind):
    model, tokens = model_of(kind), tokens_of()
    found = block_jacobian(model, tokens, 1, POSITIONS, of="update", dtype=torch.float64)
    assert found.dtype is torch.float64
    close(found.float(), expected_jacobians(model, tokens, 1))


def test_blocks_that_read_more_than_the_stream_do_not_multiply():
    model, tokens = model_of("per-layer inputs, shared keys"), tokens_of()
    with pytest.raises(InputError, match="given the stream alone"):
        cumulative_jacobian(model, tokens, 0, 4, [4])
    with pytest.raises(InputError, match="given the stream alone"):
        operator(model, tokens, 1, 4, to_layer=4)
    # behind the blocks that make the shared keys, what is read besides the stream is constant
    product = cumulative_jacobian(model, tokens, 2, 4, [4])[:, 0]
    close(product, of_whole_pass(model, tokens, 2, 4, 3))


def test_patching_reaches_what_later_blocks_read_beside_the_stream():
    model, tokens = model_of("per-layer inputs, shared keys"), tokens_of()
    context = replay.record(model, tokens, POSITIONS)
    states = 1.2 * context.state(1)[:, None]
    sequences = context.states[1].clone()
    sequences[:, 4] = 1.2 * sequences[:, 4]

    def enter(_, args, kwargs):
        return ((sequences, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": sequences})

    handle = model.blocks[1].register_forward_pre_hook(enter, with_kwargs=True)
    with torch.no_grad():
        expected = model.forward(tokens)
    handle.remove()
    with torch.no_grad():
        found = model.unembed(context.run_on(1, states))[:2, 0, 1]
        whole = model.unembed(context.run_sequence(1, sequences, torch.arange(3)))
    close(found, expected[:2, 4])
    close(whole, expected)
    assert patching.one_position(context, 0, states)["kl"].min() >= 0


def test_a_block_that_reads_its_token_needs_it_alone():
    settings = {**_GEMMA4, "num_hidden_layers": 2, "num_kv_shared_layers": 0, "layer_types": _LOCAL}
    KINDS["per-layer inputs"] = ("gemma4_text", settings, [])
    model, tokens = model_of("per-layer inputs"), tokens_of()
    context = replay.record(model, tokens, torch.zeros(3, 1, dtype=torch.int64))
    states = context.state(1)[:, 0]
    with pytest.raises(InputError, match="pass tokens="):
        replay.alone(model, 1, states)
    close(replay.alone(model, 1, states, tokens=tokens[:, 0]), context.state(2)[:, 0])
    shared = model_of("per-layer inputs, shared keys")
    with pytest.raises(InputError, match=r"Context\.alone"):
        replay.alone(shared, 3, states, tokens=tokens[:, 0])


@pytest.mark.parametrize("name", ["zaya", "gemma4_text"])
def test_alone_a_block_reads_what_earlier_blocks_give_in_a_one_token_pass_of_the_recorded_states(name):
    model, tokens = load_model(zoo.tiny(name, layers=4)), tokens_of()
    states = replay.record(model, tokens, POSITIONS).states
    alone = replay.record(model, tokens, POSITIONS, layers=[2]).alone()
    found = alone.replay(2, alone.state(2)[:, None])[:, 0, 0].detach()
    given = {layer: states[layer].gather(1, POSITIONS[..., None].expand(-1, -1, model.d_model)) for layer in range(3)}
    kept = {}

    def enter(layer):
        state = given[layer].reshape(-1, 1, model.d_model)
        return lambda _, args, kwargs: (
            ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})
        )

    handles = [model.blocks[layer].register_forward_pre_hook(enter(layer), with_kwargs=True) for layer in given]
    handles.append(model.blocks[2].register_forward_hook(lambda _, __, output: kept.update(out=first_tensor(output))))
    with torch.no_grad():
        model.forward(tokens.gather(1, POSITIONS).reshape(-1, 1))
    for handle in handles:
        handle.remove()
    close(found, kept["out"][:, 0], 1e-5)


def test_a_recording_ends_behind_the_last_block_that_is_asked_for():
    model, tokens = model_of("per-layer inputs, shared keys"), tokens_of()
    ran = []
    handles = [block.register_forward_hook(lambda *_, at=at: ran.append(at)) for at, block in enumerate(model.blocks)]
    replay.record(model, tokens, POSITIONS, layers=[1])
    ran.clear()
    context = replay.record(model, tokens, POSITIONS, layers=[1])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]
    assert sorted(context.states) == [1, 2]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())
    with pytest.raises(InputError, match="layers="):
        context.state(3)
    with pytest.raises(InputError, match="layers must lie in"):
        replay.record(model, tokens, POSITIONS, layers=[4])


def test_attention_that_cannot_be_exchanged_says_so():
    model, tokens = model_of("biases by head"), tokens_of()
    context = replay.record(model, tokens, POSITIONS)
    copy = replay.working_copy(model.blocks[1], torch.float32, replay.LINEARISED)
    with pytest.raises(InputError, match="AttentionInterface"):
        context.linearised(1, context.state(1), copy)
    assert not context.linear(1)


@pytest.mark.guards(
    "the cheapest way of running a block again gives its output at other states, too",
    when="a pass runs",
    gives="the next way",
)
def test_a_mask_that_hides_where_others_show_is_found_out_at_a_pushed_state():
    model, tokens = model_of("as many heads as windows"), tokens_of()
    context = replay.record(model, tokens, torch.zeros(3, 1, dtype=torch.int64)).alone()
    assert context.way(0) == "carried"


@pytest.mark.guards(
    "recorded arguments are frozen: later passes write into the module's own caches",
    when="a pass runs",
    gives="replays that later passes do not move",
)
def test_recorded_arguments_are_frozen():
    model, tokens = model_of("per-layer inputs, shared keys"), tokens_of()
    context = replay.record(model, tokens, POSITIONS)
    first = context.replay(3, context.state(3)[:, None])
    with torch.no_grad():
        context.block_on_sequences(1, context.states[1][:1], torch.tensor([0]))
        model.forward(tokens.flip(0))
    assert torch.equal(context.replay(3, context.state(3)[:, None]), first)
