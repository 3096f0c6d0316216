"""Block Jacobians: three methods, ten architectures, one answer, which brute force through the whole model gives."""

from __future__ import annotations

from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import probe
from probe import replay
from probe.errors import InputError
from probe.jacobian import JacobianOptions, block_jacobian, iter_block_jacobians, method_of, recorded_jacobian
from probe.model import first_tensor, load_model
from tests.architectures import zoo
from tests.plant.tiny import (
    ARCHITECTURES,
    LAYERS,
    RECURRENT,
    SLIDING_WINDOW,
    WIDTH,
    tiny_model,
    tiny_module,
    tiny_tokens,
)
from tests.plant.versions import since

WINDOWS, LENGTH = 2, 11
POSITIONS = [0, 5, LENGTH - 1]
LAYER = 1
assert LENGTH > SLIDING_WINDOW

ATTENTION = tuple(name for name in ARCHITECTURES if name not in RECURRENT)
PARALLEL = ("gpt_neox", "phi")
SEQUENTIAL = tuple(name for name in ATTENTION if name not in PARALLEL)
# their own code is float64 throughout; the others' norms, and the state-space blocks, compute in float32
FLOAT64 = ("gpt2", "gpt_neox", "opt", "phi")
METHODS = {
    name: ("jacrev", "frozen") if name in RECURRENT else ("jacrev", "frozen", "analytic") for name in ARCHITECTURES
}
EVERY_METHOD = [(name, method) for name in ARCHITECTURES for method in METHODS[name]]


@pytest.fixture
def float64_throughout(monkeypatch):
    """Models in float64 keep float32 inside softmax, RMSNorm and scans; here what they call float32 is float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def tokens_of(windows=WINDOWS, length=LENGTH):
    return tiny_tokens(windows, length)


def double(architecture, **overrides):
    return load_model(tiny_module(architecture, **overrides).double())


def brute_force(model, tokens, window, first, last, out_position, in_position):
    """∂h_last(s)/∂h_first(t) by jacrev through the whole model, one state overwritten by a hook."""
    reached = {}

    def overwrite(_, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = torch.cat([hidden[:, :in_position], reached["state"][None, None], hidden[:, in_position + 1 :]], 1)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def keep(_, __, output):
        reached["out"] = first_tensor(output)[0, out_position]

    def after(state):
        reached["state"] = state
        model.forward(tokens[window : window + 1])
        return reached["out"]

    with torch.no_grad():
        point = replay.record(model, tokens, torch.tensor([[in_position]] * len(tokens))).state(first)[window, 0]
    handles = [
        model.blocks[first].register_forward_pre_hook(overwrite, with_kwargs=True),
        model.blocks[last - 1].register_forward_hook(keep),
    ]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jacrev(after)(point)
    finally:
        for handle in handles:
            handle.remove()


def brute_blocks(model, tokens, positions=POSITIONS, layer=LAYER):
    rows = [
        torch.stack([brute_force(model, tokens, window, layer, layer + 1, t, t) for t in positions])
        for window in range(len(tokens))
    ]
    return torch.stack(rows)


def error(found, expected):
    assert found.shape == expected.shape
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_methods_are_brute_force_in_float64(architecture, float64_throughout):
    model, tokens = double(architecture), tokens_of()
    expected = brute_blocks(model, tokens)
    assert expected.dtype is torch.float64
    # the block moves the state by far more than rounding
    assert (expected - torch.eye(WIDTH, dtype=expected.dtype)).norm(dim=(-1, -2)).min() > 0.1
    for method in METHODS[architecture]:
        found = block_jacobian(model, tokens, LAYER, POSITIONS, method=method, dtype=torch.float64)
        assert error(found, expected) < 1e-12, method


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_methods_are_brute_force_in_float32(architecture):
    model, tokens = tiny_model(architecture), tokens_of()
    expected = brute_blocks(model, tokens, [LENGTH - 1])
    for method in METHODS[architecture]:
        found = block_jacobian(model, tokens, LAYER, [LENGTH - 1], method=method)
        assert found.dtype is torch.float32
        assert error(found, expected) < 1e-5, method


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float64_on_request_is_as_exact_as_the_model_s_own_code(architecture):
    """Where that is float64 throughout: 1e-12; elsewhere float32 inside norms and scans bounds it: 1e-6."""
    model, tokens = double(architecture), tokens_of()
    expected = block_jacobian(model, tokens, LAYER, POSITIONS, method="jacrev", dtype=torch.float64)
    for method in METHODS[architecture][1:]:
        found = block_jacobian(model, tokens, LAYER, POSITIONS, method=method, dtype=torch.float64)
        assert error(found, expected) < (1e-12 if architecture in FLOAT64 else 1e-6), method


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "olmo3", "mamba2"])
def test_blocks_multiply_to_the_jacobian_end_to_end(architecture, float64_throughout):
    model, tokens = double(architecture), tokens_of()
    blocks = dict(iter_block_jacobians(model, tokens, None, [7], dtype=torch.float64))
    assert list(blocks) == list(range(LAYERS))
    product = torch.eye(WIDTH, dtype=torch.float64)
    for layer in range(LAYERS):
        product = blocks[layer][1, 0] @ product
    assert error(product, brute_force(model, tokens, 1, 0, LAYERS, 7, 7)) < 1e-12


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba"])
def test_the_whole_sequence_has_the_union_of_the_spectra(architecture, float64_throughout):
    model, tokens = double(architecture), tokens_of(1, 6)
    context = replay.record(model, tokens, torch.zeros(1, 1, dtype=torch.int64))

    def block(sequence):
        return context.block_on_sequences(LAYER, sequence[None], torch.zeros(1, dtype=torch.int64))[0]

    with sdpa_kernel(SDPBackend.MATH):
        jacobian = torch.func.jacrev(block)(context.states[LAYER][0])  # (s, i, t, j)
    assert jacobian[0, :, 1:].abs().max() == 0  # causal
    whole = torch.linalg.eigvals(jacobian.reshape(6 * WIDTH, 6 * WIDTH))
    each = torch.linalg.eigvals(block_jacobian(model, tokens, LAYER, list(range(6)), dtype=torch.float64)).flatten()
    distance = (whole[:, None] - each[None]).abs()
    # a matching: each eigenvalue has its own partner
    assert distance.min(0).values.max() < 1e-6 * each.abs().max()
    assert distance.min(1).values.max() < 1e-6 * each.abs().max()
    assert (whole.sum() - each.sum()).abs() < 1e-10 * each.abs().sum()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_alone_is_the_block_on_a_one_token_input(architecture, float64_throughout):
    model, tokens = double(architecture), tokens_of()
    context = replay.record(model, tokens, torch.tensor([POSITIONS] * WINDOWS))
    states = context.state(LAYER).flatten(0, 1)
    step = 1e-4 * torch.randn(states.shape, dtype=states.dtype, generator=torch.Generator().manual_seed(0))
    ends = [replay.alone(model, LAYER, states + sign * step) for sign in (1, -1)]
    expected = (ends[0] - ends[1]) / 2
    for method in METHODS[architecture]:
        found = block_jacobian(model, tokens, LAYER, POSITIONS, context="alone", method=method, dtype=torch.float64)
        along = (found.flatten(0, 1) @ step[..., None])[..., 0]
        assert error(along, expected) < 1e-5, method


def test_alone_has_the_closed_form_of_a_pre_norm_block(float64_throughout):
    """J = (I + J_mlp D₂)(I + W_O V_rep D₁): queries, keys and rotations drop out."""
    model, tokens = double("llama"), tokens_of()
    block, eye = model.blocks[LAYER], torch.eye(WIDTH, dtype=torch.float64)

    def rms(norm, x):
        rho = (x.square().mean() + norm.variance_epsilon).sqrt()
        return torch.diag(norm.weight) @ (eye / rho - torch.outer(x, x) / (WIDTH * rho**3))

    x = replay.record(model, tokens, torch.tensor([[5]] * WINDOWS)).state(LAYER)[1, 0]
    value = block.self_attn.v_proj.weight.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
    first = eye + block.self_attn.o_proj.weight @ value @ rms(block.input_layernorm, x)
    middle = x + block.self_attn.o_proj(value @ block.input_layernorm(x))
    normed, mlp = block.post_attention_layernorm(middle), block.mlp
    gate, up = mlp.gate_proj(normed), mlp.up_proj(normed)
    slope = torch.func.vmap(torch.func.grad(torch.nn.functional.silu))(gate)
    inner = torch.diag(slope * up) @ mlp.gate_proj.weight
    inner = inner + torch.diag(torch.nn.functional.silu(gate)) @ mlp.up_proj.weight
    second = eye + mlp.down_proj.weight @ inner @ rms(block.post_attention_layernorm, middle)
    found = block_jacobian(model, tokens, LAYER, [5], context="alone", dtype=torch.float64)[1, 0]
    assert error(found, (second @ first).detach()) < 1e-12


@pytest.mark.parametrize("architecture", ATTENTION)
def test_detached_methods_agree(architecture, float64_throughout):
    model, tokens = double(architecture), tokens_of()
    found = [
        block_jacobian(model, tokens, LAYER, POSITIONS, context="detached", method=method, dtype=torch.float64)
        for method in METHODS[architecture]
    ]
    assert error(found[1], found[0]) < 1e-12
    assert error(found[2], found[0]) < 1e-12
    assert error(found[0], block_jacobian(model, tokens, LAYER, POSITIONS, dtype=torch.float64)) > 1e-2


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
@pytest.mark.parametrize("context", ["sequence", "alone", "detached"])
def test_the_update_s_jacobian_lacks_the_identity(architecture, context):
    model, tokens = tiny_model(architecture), tokens_of()
    for method in METHODS[architecture]:
        state, update = (
            block_jacobian(model, tokens, LAYER, [5], context=context, method=method, of=of)
            for of in ("state", "update")
        )
        assert error(update + torch.eye(WIDTH), state) < 1e-6


@pytest.mark.parametrize("architecture", SEQUENTIAL)
def test_the_parts_multiply_to_the_block(architecture, float64_throughout):
    model, tokens = double(architecture), tokens_of()
    block = block_jacobian(model, tokens, LAYER, POSITIONS, dtype=torch.float64)
    for method in METHODS[architecture]:
        attention, mlp = (
            block_jacobian(model, tokens, LAYER, POSITIONS, part=part, method=method, dtype=torch.float64)
            for part in ("attention", "mlp")
        )
        assert error(mlp @ attention, block) < 1e-12, method
        assert error(attention, block) > 1e-2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_block_that_writes_nothing_has_the_identity(architecture):
    model, tokens = tiny_model(architecture), tokens_of()
    with torch.no_grad():
        for name in ("o", "down", "out"):
            if name in (matrices := model.projections(LAYER)):
                matrices[name].zero_()
    for method in METHODS[architecture]:
        found = block_jacobian(model, tokens, LAYER, POSITIONS, method=method)
        assert torch.equal(found, torch.eye(WIDTH).expand_as(found)), method


@pytest.mark.parametrize(("architecture", "method"), [("llama", "analytic"), ("gpt2", "frozen"), ("mamba", "frozen")])
def test_small_memory_and_chunks_change_nothing(architecture, method):
    model, tokens = tiny_model(architecture), tiny_tokens(3, LENGTH)
    positions = torch.tensor([[0, 3, 4, 9], [1, 2, 5, 10], [7, 8, 9, 10]])
    whole = block_jacobian(model, tokens, LAYER, positions, method=method)
    assert error(block_jacobian(model, tokens, LAYER, positions, method=method, memory=1), whole) < 1e-6
    assert error(block_jacobian(model, tokens, LAYER, positions, method=method, memory=60_000), whole) < 1e-6
    assert error(block_jacobian(model, tokens, LAYER, positions, method=method, chunk=5), whole) < 1e-6


@pytest.mark.parametrize("model_type", ["qwen3_5_text", "bamba"])
def test_rows_over_a_carried_state_are_as_many_as_a_cache_holds(model_type, monkeypatch):
    model = load_model(zoo.tiny(model_type))
    context = replay.record(model, torch.randint(3, 60, (2, LENGTH)), torch.tensor([POSITIONS] * 2))
    layer = next(layer for layer in range(model.n_layers) if context.carried_width(layer))
    whole = recorded_jacobian(context, layer)
    monkeypatch.setattr("probe.jacobian.options._STATES", 1)
    options = JacobianOptions()
    assert options.rows_at_once(context, model.blocks[layer], 6, layer) == 8
    assert options.rows_at_once(context, model.blocks[layer], 6) > 8
    assert error(recorded_jacobian(context, layer), whole) < 1e-6


def test_positions_are_of_all_windows_or_of_each_and_count_from_the_end_too():
    model, tokens = tiny_model("llama"), tokens_of()
    every = block_jacobian(model, tokens, LAYER, [4, LENGTH - 1])
    assert torch.equal(block_jacobian(model, tokens, LAYER, torch.tensor([4, -1])), every)
    each = block_jacobian(model, tokens, LAYER, torch.tensor([[4], [-1]]))
    assert error(each[0, 0], every[0, 0]) < 1e-6
    assert error(each[1, 0], every[1, 1]) < 1e-6


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_window_is_refused(batch_size):
    with pytest.raises(InputError, match="at least one window"):
        list(iter_block_jacobians(tiny_model("llama"), tokens_of(), None, [0], batch_size=batch_size))


def test_layers_come_from_one_pass_and_windows_in_batches():
    model, tokens = tiny_model("llama"), tiny_tokens(3, LENGTH)
    passes = []
    handle = model.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    list(iter_block_jacobians(model, tokens, [2, 0], [3, 8]))  # what is proved once a model is proved
    passes.clear()
    batches = list(iter_block_jacobians(model, tokens, [2, 0], [3, 8], batch_size=2))
    handle.remove()
    assert [layer for layer, _ in batches] == [2, 0, 2, 0]
    assert [len(found) for _, found in batches] == [2, 2, 1, 1]
    # two recorded passes, and the working copies of block 0, on which the user's hooks act
    assert len(passes) == 2 + 2
    joined = torch.cat([found for layer, found in batches if layer == 2])
    assert error(joined, block_jacobian(model, tokens, 2, [3, 8])) < 1e-6


def test_a_recorded_context_serves_all_layers():
    model, tokens = tiny_model("gpt2"), tokens_of()
    context = replay.record(model, tokens, torch.tensor([POSITIONS] * WINDOWS))
    found = recorded_jacobian(context, 2, JacobianOptions(of="update"))
    assert torch.equal(found, block_jacobian(model, tokens, 2, POSITIONS, of="update"))
    alone = recorded_jacobian(context.alone(), 2).reshape(WINDOWS, len(POSITIONS), WIDTH, WIDTH)
    assert torch.equal(alone, block_jacobian(model, tokens, 2, POSITIONS, context="alone"))


@pytest.mark.guards("weights are in half precision", when="a Jacobian is computed", gives="derivatives in float32")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("architecture", "method"), [("llama", "analytic"), ("gpt2", "frozen"), ("mamba", "frozen")])
def test_half_precision_checkpoints_are_differentiated_in_float32(architecture, method, dtype):
    module = tiny_module(architecture).to(dtype)
    model, tokens = load_model(module), tokens_of()
    found = block_jacobian(model, tokens, LAYER, POSITIONS, method=method)
    # the same weights and the same recorded context, in float32
    context = replay.record(model, tokens, torch.tensor([POSITIONS] * WINDOWS))
    exact = recorded_jacobian(context, LAYER, JacobianOptions(method="jacrev", dtype=torch.float64))
    assert found.dtype is torch.float32
    # jacrev runs the sequence in float64, while the recorded keys and carried states are rounded to half precision
    assert error(found, exact.float()) < (0.05 if dtype is torch.bfloat16 else 0.01)
    assert module.dtype is dtype


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_the_model_is_left_as_it_was(architecture):
    module = tiny_module(architecture).train()
    module.requires_grad_(True)
    implementation = module.config._attn_implementation
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    model, tokens = load_model(module), tokens_of()
    for method in METHODS[architecture]:
        block_jacobian(model, tokens, LAYER, POSITIONS, method=method)

    def fail(*_):
        raise RuntimeError("in the middle")

    handle = model.blocks[LAYER].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        block_jacobian(model, tokens, LAYER, POSITIONS)
    handle.remove()
    assert module.config._attn_implementation == implementation
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(weights[name], value) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.guards(
    "a module has hooks of its own",
    when="a Jacobian is computed",
    gives="they act in the Jacobian, too",
)
def test_a_user_s_hooks_act_in_the_jacobian_too():
    model, tokens = tiny_model("llama"), tokens_of()
    handle = model.blocks[LAYER].mlp.register_forward_hook(lambda _, __, output: 0 * output)
    expected = block_jacobian(model, tokens, LAYER, [5], part="attention", method="frozen")
    found = block_jacobian(model, tokens, LAYER, [5], method="frozen")
    handle.remove()
    assert error(found, expected) < 1e-6


def test_the_method_can_be_asked_for_and_is_logged(caplog):
    for architecture in ARCHITECTURES:
        assert method_of(tiny_model(architecture)) == ("frozen" if architecture in RECURRENT else "analytic")
    with caplog.at_level("INFO", logger="probe.jacobian"):
        block_jacobian(tiny_model("llama"), tokens_of(), 0, [0])
    assert "method analytic" in caplog.text


def test_a_norm_of_queries_and_keys_is_differentiated_where_a_model_has_it(float64_throughout):
    model, tokens = double("phi", qk_layernorm=True), tokens_of()
    assert method_of(model) == "analytic"
    found = block_jacobian(model, tokens, LAYER, POSITIONS, dtype=torch.float64)
    assert error(found, brute_blocks(model, tokens)) < 1e-12


@pytest.mark.guards(
    "the block has no part of which its form knows nothing",
    when="a Jacobian is computed",
    gives="another method",
)
def test_a_block_with_a_norm_of_which_its_form_knows_nothing_is_not_standard():
    module = tiny_module("llama")
    for block in module.model.layers:
        block.mlp.act_fn = torch.nn.Sequential(block.mlp.act_fn, torch.nn.LayerNorm(48))
    model, tokens = load_model(module), tokens_of()
    assert method_of(model) == "frozen"
    reference = block_jacobian(model, tokens, LAYER, POSITIONS, method="jacrev")
    assert error(block_jacobian(model, tokens, LAYER, POSITIONS), reference) < 1e-5
    with pytest.raises(InputError, match="must be the derivative of the block"):
        block_jacobian(model, tokens, LAYER, POSITIONS, method="analytic")


@pytest.mark.guards(
    "the composed derivative is that of the block's own pass",
    when="a Jacobian is computed",
    gives='another method, or a refusal where `method="analytic"` was asked for',
)
def test_a_hook_that_changes_a_block_s_derivative_is_found():
    model, tokens = tiny_model("llama"), tokens_of()
    before = block_jacobian(model, tokens, LAYER, [5])
    handle = model.blocks[LAYER].mlp.register_forward_hook(lambda _, __, output: 0 * output)
    expected = block_jacobian(model, tokens, LAYER, [5], method="jacrev")
    assert error(before, expected) > 1e-2
    assert error(block_jacobian(model, tokens, LAYER, [5]), expected) < 1e-5
    with pytest.raises(InputError, match="must be the derivative of the block"):
        block_jacobian(model, tokens, LAYER, [5], method="analytic")
    handle.remove()
    assert torch.equal(block_jacobian(model, tokens, LAYER, [5], method="analytic"), before)


def test_blocks_without_a_form_are_frozen():
    model, tokens = tiny_model("llama"), tokens_of()
    bare = tuple(replace(kind, form=None) for kind in model.layout.kinds)
    model = replace(model, layout=replace(model.layout, kinds=bare))
    assert method_of(model) == "frozen"
    reference = block_jacobian(model, tokens, 1, POSITIONS, method="jacrev")
    assert torch.equal(
        block_jacobian(model, tokens, 1, POSITIONS), block_jacobian(model, tokens, 1, POSITIONS, method="frozen")
    )
    assert error(block_jacobian(model, tokens, 1, POSITIONS), reference) < 1e-5
    with pytest.raises(InputError, match="need standard block"):
        block_jacobian(model, tokens, 1, POSITIONS, method="analytic")


@since("5.24", "GPT-J calls its attention itself, and its blocks are differentiated on whole sequences")
def test_attention_that_is_handed_no_keywords_is_exchanged_too():
    import transformers

    config = transformers.GPTJConfig(vocab_size=264, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = load_model(transformers.GPTJForCausalLM(config).eval())
    tokens = tokens_of()
    reference = block_jacobian(model, tokens, 1, POSITIONS, method="jacrev")
    assert error(block_jacobian(model, tokens, 1, POSITIONS), reference) < 1e-5
    assert error(block_jacobian(model, tokens, 1, POSITIONS, method="frozen"), reference) < 1e-5


def test_soft_caps_and_sinks_are_linearised_too():
    """`eager` attention of Gemma 2 (soft cap) and GPT-OSS (sinks): the code of the models is the oracle."""
    from transformers import AttentionInterface
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as capped
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as with_sinks

    from probe.replay.attention import Replayed, around

    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # values are narrower than keys, as in MiMo
    query, key, value = draw(1, 4, 1, 8), draw(1, 2, 1, 8), draw(1, 2, 1, 6)
    past = draw(1, 2, 5, 8), draw(1, 2, 5, 6)
    linearised = AttentionInterface()[replay.LINEARISED]
    module = torch.nn.Module()
    module.num_key_value_groups, module.sinks = 2, draw(4)
    mask = torch.zeros(1, 1, 1, 6, dtype=torch.float64)
    for oracle, more in ((capped, {"softcap": 2.0}), (with_sinks, {"s_aux": module.sinks})):

        def plain(query, key, value, oracle=oracle, more=more):
            keys, values = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
            return oracle(module, query, keys, values, mask, scaling=0.4, **more)[0]

        def linear(query, key, value, more=more):
            with around(Replayed([past])):
                return linearised(module, query, key, value, mask, scaling=0.4, **more)[0]

        assert torch.allclose(plain(query, key, value), linear(query, key, value), atol=1e-6)
        for argument in (0, 1, 2):
            expected = torch.func.jacrev(plain, argument)(query, key, value)
            assert torch.allclose(torch.func.jacrev(linear, argument)(query, key, value), expected, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize(("architecture", "method"), EVERY_METHOD)
def test_a_gpu_gives_what_the_cpu_gives(architecture, method):
    tokens, positions = tokens_of(), torch.tensor([[0, 5, 10], [1, 2, -1]])
    expected = block_jacobian(double(architecture), tokens, LAYER, positions, method=method, dtype=torch.float64)
    model = load_model(tiny_module(architecture).double().cuda())
    found = block_jacobian(model, tokens, LAYER, positions, method=method, dtype=torch.float64)
    assert found.is_cuda
    assert error(found.cpu(), expected) < (1e-12 if architecture in FLOAT64 else 1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 4}, r"0 … 3"),
        ({"positions": [11]}, r"\[0, 11\)"),
        ({"positions": [-12]}, r"\[-11, -1\]"),
        ({"positions": []}, "at least one"),
        ({"positions": torch.zeros(3, 1, dtype=torch.int64)}, "W = 2"),
        ({"method": "magic"}, "'auto', 'jacrev'"),
        ({"context": "nowhere"}, "'sequence', 'alone'"),
        ({"of": "all"}, "'state', 'update'"),
        ({"part": "head"}, "'block', 'attention'"),
        ({"chunk": 0}, "at least 1"),
        ({"memory": 0}, "bytes"),
        ({"dtype": torch.float16}, "float32 or torch.float64"),
    ],
)
def test_wrong_options_are_refused(options, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    arguments = {"layer": 0, "positions": [0], **options}
    with pytest.raises(InputError, match=message):
        block_jacobian(tiny_model("llama"), tokens_of(), **arguments)


@pytest.mark.parametrize("architecture", [*PARALLEL, *RECURRENT])
def test_blocks_without_a_middle_have_no_parts(architecture):
    with pytest.raises(InputError, match="part="):
        block_jacobian(tiny_model(architecture), tokens_of(), 0, [0], part="mlp")


@pytest.mark.parametrize("options", [{"method": "analytic"}, {"context": "detached"}])
def test_state_space_blocks_are_not_standard(options):
    with pytest.raises(InputError, match="standard block"):
        block_jacobian(tiny_model("mamba"), tokens_of(), 0, [0], **options)


def test_public_names():
    assert probe.block_jacobian is block_jacobian
    assert probe.iter_block_jacobians is iter_block_jacobians
    for old, new in (("Options", "JacobianOptions"), ("mlp_unit_gain", "mlp_neuron_gain")):
        with pytest.warns(DeprecationWarning, match=f"use probe.jacobian.{new}"):
            assert getattr(probe.jacobian, old) is getattr(probe.jacobian, new)
