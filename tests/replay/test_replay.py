"""A replayed block equals a run of the whole sequence, on every architecture."""

from __future__ import annotations

import pytest
import torch
import transformers

from probe import replay
from probe.errors import InputError
from probe.model import first_tensor, load_model
from probe.stream import watch
from tests.plant.tiny import CONFIGURATIONS, LAYERS, VOCABULARY, tiny_model, tiny_tokens

WINDOWS, LENGTH = 3, 20
POSITIONS = torch.tensor([[0, 9, 19], [1, 9, 18], [5, 6, 7]])

every_architecture = pytest.mark.parametrize("architecture", list(CONFIGURATIONS))


def assert_same(found, expected):
    """Equal but for float32 rounding, relative to the largest entry (tiny Mamba states span orders of magnitude)."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def _tokens(seed=0):
    return torch.randint(0, VOCABULARY - 8, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(seed))


def _pushed(states, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return states + 0.3 * states.std() * torch.randn(states.shape, generator=generator)


def _continued_by_hooks(model, tokens, layer, states, positions):
    """The plain way: the whole model, the output of block `layer - 1` overwritten by a hook; (window, chosen, d)."""
    found = torch.empty(*positions.shape, model.d_model)
    for window in range(len(tokens)):
        for column, position in enumerate(positions[window].tolist()):

            def overwrite(module, args, kwargs, w=window, c=column, p=position):
                hidden = (args[0] if args else kwargs["hidden_states"]).clone()
                hidden[0, p] = states[w, c]
                return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

            last = {}
            handles = [
                model.blocks[layer].register_forward_pre_hook(overwrite, with_kwargs=True),
                model.blocks[-1].register_forward_hook(lambda m, a, out, last=last: last.update(out=first_tensor(out))),
            ]
            with torch.no_grad():
                model.forward(tokens[window : window + 1])
            for handle in handles:
                handle.remove()
            found[window, column] = last["out"][0, position]
    return found


@pytest.mark.guards("a block that runs again gives what it gave", when="a pass runs", gives="equal")
@every_architecture
def test_recorded_states_replay_to_themselves(architecture):
    model, tokens = tiny_model(architecture), _tokens()
    context = replay.record(model, tokens, POSITIONS)
    for layer in range(LAYERS):
        again = context.replay(layer, context.state(layer)[:, None])[:, 0]
        assert_same(again, context.state(layer + 1))


@every_architecture
@pytest.mark.parametrize("layer", [0, 2, LAYERS - 1])
def test_replaced_states_run_on_as_in_a_full_run(architecture, layer):
    model, tokens = tiny_model(architecture), _tokens()
    context = replay.record(model, tokens, POSITIONS)
    states = torch.stack([_pushed(context.state(layer), seed) for seed in (1, 2)], 1)  # two alternatives
    with torch.no_grad():
        found = context.run_on(layer, states)
    for alternative in range(2):
        expected = _continued_by_hooks(model, tokens, layer, states[:, alternative], POSITIONS)
        assert_same(found[:, alternative], expected)


@every_architecture
def test_sequences_run_on_as_in_a_full_run(architecture):
    model, tokens = tiny_model(architecture), _tokens()
    context = replay.record(model, tokens, POSITIONS)
    states = _pushed(context.state(2))
    for column in range(POSITIONS.shape[1]):
        sequences = context.states[2].clone()
        sequences[torch.arange(WINDOWS), POSITIONS[:, column]] = states[:, column]
        with torch.no_grad():
            after = context.run_sequence(2, sequences, torch.arange(WINDOWS))
        expected = _continued_by_hooks(model, tokens, 2, states, POSITIONS)[:, column]
        assert_same(after[torch.arange(WINDOWS), POSITIONS[:, column]], expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mamba2"])
def test_every_way_of_running_a_block_gives_the_same(architecture):
    model, tokens = tiny_model(architecture), _tokens()
    context = replay.record(model, tokens, POSITIONS)
    states = torch.stack([_pushed(context.state(1), seed) for seed in (1, 2)], dim=1)
    with torch.no_grad():
        found = context.replay(1, states)
        ways = ["carried", "rows", "sequences", *(["keys"] if architecture != "mamba2" else [])]
        for way in ways:
            assert_same(context._run(way, 1, states), found)


_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "pad_token_id": None}
_BLOCKS = {**_SIZES, "num_hidden_layers": 2, "num_attention_heads": 4}
_LOCAL = {"attention_types": [[["global", "local"], 1]], "window_size": 6}
_HYBRID = {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
# configuration, and the cheapest way of each block
OTHERS = {
    "Mistral": ({**_BLOCKS, "num_key_value_heads": 2, "sliding_window": 6}, ["keys", "keys"]),
    "GPTNeo": ({**_SIZES, "num_layers": 2, "num_heads": 4, **_LOCAL}, ["keys", "carried"]),
    "Falcon": ({**_BLOCKS, "alibi": True, "multi_query": False, "new_decoder_architecture": False}, ["keys", "keys"]),
    "Bloom": ({"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}, ["keys", "keys"]),
    "Jamba": ({**_BLOCKS, "num_key_value_heads": 2, **_HYBRID}, ["carried", "keys"]),
}


@pytest.mark.parametrize("family", list(OTHERS))
def test_other_families_replay_at_positions(family):
    settings, ways = OTHERS[family]
    config = getattr(transformers, f"{family}Config")(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    model, tokens = load_model(module), _tokens()
    context = replay.record(model, tokens, POSITIONS)
    assert [context.way(layer) for layer in range(2)] == ways
    states = torch.stack([_pushed(context.state(1), seed) for seed in (1, 2)], dim=1)  # (W, alternative, chosen, d)
    with torch.no_grad():
        found = context.run_on(1, states)
    for alternative in range(2):
        assert_same(found[:, alternative], _continued_by_hooks(model, tokens, 1, states[:, alternative], POSITIONS))


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mamba2"])
def test_a_part_of_a_context_replays_as_the_whole_does(architecture):
    model, tokens = tiny_model(architecture), _tokens()
    context = replay.record(model, tokens, POSITIONS)
    part = context.select(slice(1, 3), slice(1, 2))
    states = _pushed(context.state(1))
    with torch.no_grad():
        whole = context.run_on(1, states[:, None])[1:3, :, 1:2]
        assert_same(part.run_on(1, states[1:3, None, 1:2]), whole)


@every_architecture
def test_the_first_position_writes_nothing_from_elsewhere(architecture):
    model, tokens = tiny_model(architecture), _tokens()
    positions = torch.tensor([[0, 4]]).expand(WINDOWS, 2)
    context = replay.record(model, tokens, positions)
    write = context.off_position_write(1)
    first, later = write[:, 0], write[:, 1]
    # position 0 has no past: what is left is an output bias, the same in every window
    assert_same(first, first[:1].expand_as(first))
    assert (later - first).norm() > 1e-3


def test_off_position_and_own_parts_add_up_to_the_attention_write():
    model, tokens = tiny_model("llama"), _tokens()
    context = replay.record(model, tokens, POSITIONS)
    block, layer = model.blocks[1].self_attn, 1
    with torch.no_grad():
        normed = model.blocks[layer].input_layernorm(context.states[layer])
        value = block.v_proj(normed).view(WINDOWS, LENGTH, 2, -1).repeat_interleave(2, 2)
        original = model.module.config._attn_implementation
        model.module.set_attn_implementation("eager")
        attentions = model.module(tokens, output_attentions=True).attentions[layer]  # (W, head, T, T)
        model.module.set_attn_implementation(original)
        own = attentions.diagonal(dim1=2, dim2=3).transpose(1, 2)[..., None] * value
        mixed = torch.einsum("whqk,wkhd->wqhd", attentions, value)
        expected = block.o_proj((mixed - own).flatten(2))
    rows = torch.arange(WINDOWS)[:, None]
    assert_same(context.off_position_write(layer), expected[rows, POSITIONS])


@every_architecture
def test_alone_is_the_model_on_one_token(architecture):
    model = tiny_model(architecture)
    tokens = torch.arange(5)[:, None]
    context = replay.record(model, tokens, torch.zeros(5, 1, dtype=torch.int64))
    for layer in (0, 3):
        after = replay.alone(model, layer, context.states[layer][:, 0], batch=2)
        assert_same(after, context.states[layer + 1][:, 0])


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "opt", "gemma3"])
def test_without_attention_only_the_mlp_writes(architecture):
    model, tokens = tiny_model(architecture), _tokens()
    states = replay.record(model, tokens, POSITIONS).state(1).flatten(0, 1)
    hooks = sum(len(module._forward_hooks) for module in model.module.modules())
    after = replay.alone(model, 1, states, attention=False)
    assert sum(len(module._forward_hooks) for module in model.module.modules()) == hooks
    if model.parallel:  # the MLP reads h itself: its write in the real context is the same tokenwise function
        with watch(model, ["blocks.1.hook_mlp_out"]) as seen, torch.no_grad():
            model.forward(tokens)
        rows = torch.arange(WINDOWS)[:, None]
        expected = states + seen["blocks.1.hook_mlp_out"][rows, POSITIONS].flatten(0, 1)
        assert_same(after, expected)
    with watch(model, ["blocks.1.hook_mlp_out"]) as seen, torch.no_grad():
        again = replay.alone(model, 1, states, attention=False)
    assert_same(again - states, seen["blocks.1.hook_mlp_out"].reshape(states.shape))


def test_leaving_out_attention_needs_attention():
    model = tiny_model("mamba")
    with pytest.raises(InputError, match="state-space"):
        replay.alone(model, 0, torch.zeros(1, model.d_model), attention=False)


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_a_cache_under_another_name_is_no_empty_context(architecture, monkeypatch):
    monkeypatch.setattr("probe.replay.calls.CACHE_ARGUMENTS", ("memory",))
    model = tiny_model(architecture)
    context = replay.record(model, _tokens(), torch.full((WINDOWS, 1), 5))
    assert context.way(1) == "sequences"
    assert_same(context.replay(1, context.state(1)[:, None])[:, 0], context.state(2))


@pytest.mark.guards(
    "blocks run once each, in the order of depth",
    when="a pass runs",
    says=(
        "a replay needs blocks that run once each, in the order of depth, and those of … (…) do "
        "not: use a model of another family"
    ),
)
def test_a_block_that_does_not_run_again_is_refused():
    model = tiny_model("llama")
    context = replay.record(model, _tokens(), POSITIONS)
    with torch.no_grad():
        model.blocks[1].mlp.down_proj.weight.mul_(2)
    with pytest.raises(InputError, match=r"block 1 of .* does not"):
        context.replay(1, context.state(1)[:, None])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_a_run_that_fills_a_block_s_keys_ends_there(architecture):
    model = tiny_model(architecture)
    tokens = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[3, 8]] * 2)
    context = replay.record(model, tokens, positions)
    assert torch.allclose(context.replay(1, context.state(1)[:, None])[:, 0], context.state(2), atol=1e-5)
    ends = []
    handle = model.blocks[1].register_forward_hook(lambda *_: ends.append(1))
    try:
        again = replay.record(model, tokens.flip(0), positions)
        ends.clear()
        after = again.replay(1, again.state(1)[:, None])
    finally:
        handle.remove()
    assert len(ends) == 2, "the proof and the replay; the run for the keys does not come to its end"
    assert torch.allclose(after[:, 0], again.state(2), atol=1e-5)


def test_positions_outside_the_window_are_refused():
    with pytest.raises(InputError, match=r"\[0, 20\)"):
        replay.record(tiny_model("llama"), _tokens(), torch.full((WINDOWS, 1), LENGTH))


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_the_model_is_left_as_it_was(architecture):
    model = tiny_model(architecture)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    implementation = model.module.config._attn_implementation
    replay.record(model, _tokens(), POSITIONS)
    assert model.module.config._attn_implementation == implementation
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


@pytest.mark.parametrize("architecture", [name for name in CONFIGURATIONS if "mamba" not in name])
def test_linearised_attention_has_the_value_of_the_replay(architecture):
    model, tokens = tiny_model(architecture), _tokens()
    context = replay.record(model, tokens, POSITIONS)
    copy = replay.working_copy(model.blocks[2], torch.float32, replay.LINEARISED)
    states = _pushed(context.state(2))
    primals = []
    with torch.no_grad():
        found = context.linearised(2, states, copy, primals)
        assert_same(found, context.replay(2, states[:, None])[:, 0])
    (primal,) = primals
    own = primal.live.diagonal(dim1=-2, dim2=-1)
    assert_same(torch.diag_embed(own), primal.live)  # chosen positions do not see each other
    assert_same(own[0, ..., 0], torch.ones_like(own[0, ..., 0]))  # position 0 has itself alone


def test_linearised_attention_has_the_derivative_of_the_replay():
    model, tokens = tiny_model("gemma3"), _tokens()
    context = replay.record(model, tokens, POSITIONS)
    copy = replay.working_copy(model.blocks[2], torch.float32, replay.LINEARISED)
    states, direction = context.state(2), _pushed(torch.zeros_like(context.state(2)) + torch.eye(3, 32))
    gradients = []
    for run in (
        lambda x: context.linearised(2, x, copy),
        lambda x: context.replay(2, x[:, None])[:, 0],
    ):
        point = states.clone().requires_grad_()
        gradients.append(torch.autograd.grad((run(point) * direction).sum(), point)[0])
    assert_same(gradients[0], gradients[1])


@every_architecture
def test_a_context_alone_replays_as_one_token_inputs(architecture):
    model, tokens = tiny_model(architecture), _tokens()
    alone = replay.record(model, tokens, POSITIONS).alone()
    states = alone.state(2)
    assert states.shape == (POSITIONS.numel(), 1, model.d_model)
    with torch.no_grad():
        found = alone.replay(2, states[:, None])[:, 0, 0]
    assert_same(found, replay.alone(model, 2, states[:, 0]))


def test_a_working_copy_shares_weights_and_keeps_hooks_to_itself():
    model = tiny_model("llama")
    block, calls = model.blocks[1].train(), []
    handle = block.mlp.register_forward_hook(lambda *_: calls.append("user"))
    copy = replay.working_copy(block, torch.float32, replay.LINEARISED)
    copy.mlp.register_forward_hook(lambda *_: calls.append("copy"))
    block.mlp(torch.zeros(1, 1, 32))
    assert calls == ["user"]
    copy.mlp(torch.zeros(1, 1, 32))
    assert calls == ["user", "user", "copy"]
    handle.remove()
    for one, other in zip(block.parameters(), copy.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
        assert one.requires_grad != other.requires_grad
    assert block.training
    assert not any(part.training for part in copy.modules())
    assert model.module.config._attn_implementation != replay.LINEARISED
    assert copy.self_attn.config._attn_implementation == replay.LINEARISED
    assert {p.dtype for p in replay.working_copy(block, torch.float64).parameters()} == {torch.float64}
    rest = replay.working_copy(model.module, torch.float64, without=model.module.model.layers)
    assert not list(rest.model.layers.parameters())


@pytest.mark.parametrize("length", [9, 10, 11])
def test_windows_as_long_as_a_sliding_window_run_again(length: int) -> None:
    """From the window's own length on there is a mask, which shorter passes do not have."""
    model = load_model(_sliding(10))
    tokens = tiny_tokens(2, length)
    context = replay.record(model, tokens, [-1, length // 2])
    for layer in range(model.n_layers):
        again = context.replay(layer, context.state(layer)[:, None])[:, 0]
        torch.testing.assert_close(again, context.state(layer + 1), rtol=1e-4, atol=1e-5)


def _sliding(window: int) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
        attn_implementation="sdpa",
    )
    return transformers.MistralForCausalLM(config).eval()
