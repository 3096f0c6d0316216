"""Jacobians between positions, depths and sites, as operators and as means: brute force, identities, closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import svds
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import probe
from probe import replay
from probe.errors import InputError
from probe.jacobian import (
    block_jacobian,
    cross_jacobian,
    cumulative_jacobian,
    iter_block_jacobians,
    mean_jacobian,
    operator,
    site_jacobian,
)
from probe.model import Site, first_tensor, load_model, with_first_tensor
from tests.jacobian.test_jacobian import LAYER, LENGTH, brute_force, double, error, float64_throughout, tokens_of
from tests.plant.tiny import LAYERS, VOCABULARY, WIDTH, tiny_model, tiny_module, tiny_tokens

__all__ = ["float64_throughout"]

F64 = torch.float64
EYE = torch.eye(WIDTH, dtype=F64)


# Between positions


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma3", "mamba2"])
def test_cross_jacobians_are_brute_force(architecture, float64_throughout):
    model, tokens = double(architecture), tokens_of()
    found = cross_jacobian(model, tokens, LAYER, out_position=-1, in_position=7, dtype=F64)
    for window in range(2):
        expected = brute_force(model, tokens, window, LAYER, LAYER + 1, LENGTH - 1, 7)
        assert error(found[window], expected) < 1e-12
    same = cross_jacobian(model, tokens, LAYER, out_position=5, in_position=5, dtype=F64)
    assert error(same, block_jacobian(model, tokens, LAYER, [5], dtype=F64)[:, 0]) < 1e-12


def test_beyond_the_sliding_window_nothing_arrives():
    model, tokens = tiny_model("gemma3"), tokens_of()
    assert not cross_jacobian(model, tokens, 0, out_position=10, in_position=4).any()
    assert cross_jacobian(model, tokens, 0, out_position=10, in_position=5).any()


def test_detached_jacobians_rebuild_the_output(float64_throughout):
    """A detached block without biases is linear: h_{l+1}(s) = Σ_t J(s, t) h_l(t)."""
    model, tokens = double("llama"), tokens_of(2, 6)
    context = replay.record(model, tokens, torch.tensor([[5], [5]]))
    rebuilt = sum(
        (
            cross_jacobian(model, tokens, LAYER, out_position=5, in_position=t, context="detached", dtype=F64)
            @ context.states[LAYER][:, t, :, None]
        )[..., 0]
        for t in range(6)
    )
    assert error(rebuilt, context.states[LAYER + 1][:, 5]) < 1e-12


def test_cross_jacobians_of_parts(float64_throughout):
    model, tokens = double("gpt2"), tokens_of()
    options = {"out_position": 8, "in_position": 3, "dtype": F64}
    attention = cross_jacobian(model, tokens, LAYER, part="attention", **options)
    mlp = block_jacobian(model, tokens, LAYER, [8], part="mlp", dtype=F64)[:, 0]
    assert error(mlp @ attention, cross_jacobian(model, tokens, LAYER, **options)) < 1e-12
    assert not cross_jacobian(model, tokens, LAYER, part="mlp", **options).any()


# Through depth


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "mamba2"])
def test_cumulative_jacobians_are_brute_force(architecture, float64_throughout):
    model, tokens = double(architecture), tokens_of()
    found = cumulative_jacobian(model, tokens, 1, LAYERS, [6, -1], dtype=F64)
    assert error(found[1, 0], brute_force(model, tokens, 1, 1, LAYERS, 6, 6)) < 1e-12
    assert error(found[0, 1], brute_force(model, tokens, 0, 1, LAYERS, LENGTH - 1, LENGTH - 1)) < 1e-12


def test_a_cumulative_jacobian_over_no_blocks_is_the_identity():
    found = cumulative_jacobian(tiny_model("llama"), tokens_of(), 2, 2, [0, 1, 2])
    assert torch.equal(found, EYE.float().expand(2, 3, -1, -1))


# Means


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_mean_and_the_spread_are_those_of_the_single_matrices(batch_size):
    model, tokens = tiny_model("llama"), tiny_tokens(3, LENGTH)
    found = mean_jacobian(model, tokens, [1, 3], [4, 9], batch_size=batch_size, of="update")
    assert found.layers == (1, 3)
    assert found.count == 6
    for index, (_, every) in enumerate(iter_block_jacobians(model, tokens, [1, 3], [4, 9], of="update")):
        every = every.double().flatten(0, 1)
        assert error(found.mean[index], every.mean(0)) < 1e-6
        assert error(found.deviation[index], every.std(0, correction=0)) < 1e-5
        distance = (every - every.mean(0)).norm(dim=(1, 2)).square().mean().sqrt()
        assert float(found.spread[index]) == pytest.approx(float(distance / every.mean(0).norm()), rel=1e-5)


# Operators


@pytest.mark.parametrize("architecture", ["llama", "phi", "olmo3", "mamba", "mamba2"])
def test_an_operator_multiplies_as_the_matrix_does(architecture, float64_throughout):
    model, tokens = double(architecture), tokens_of()
    matrix = block_jacobian(model, tokens, LAYER, [6], dtype=F64)[1, 0].numpy()
    found = operator(model, tokens, LAYER, 6, window=1, dtype=F64)
    vectors = np.random.default_rng(0).standard_normal((WIDTH, 3))
    assert found.shape == (WIDTH, WIDTH)
    assert np.allclose(found.matvec(vectors[:, 0]), matrix @ vectors[:, 0], rtol=1e-10)
    assert np.allclose(found.rmatvec(vectors[:, 0]), matrix.T @ vectors[:, 0], rtol=1e-10)
    assert np.allclose(found @ vectors, matrix @ vectors, rtol=1e-10)
    assert np.allclose(found.H @ vectors, matrix.T @ vectors, rtol=1e-10)


def test_an_operator_reaches_over_many_blocks_and_has_the_matrix_s_singular_values(float64_throughout):
    model, tokens = double("qwen3"), tokens_of()
    matrix = cumulative_jacobian(model, tokens, 0, LAYERS, [-1], dtype=F64)[0, 0]
    found = operator(model, tokens, 0, -1, to_layer=LAYERS, dtype=F64)
    top = svds(found, k=3, return_singular_vectors=False, random_state=0)
    assert np.allclose(np.sort(top)[::-1], torch.linalg.svdvals(matrix)[:3].numpy(), rtol=1e-8)


@pytest.mark.parametrize("context", ["alone", "detached"])
def test_operators_know_contexts_and_updates(context):
    model, tokens = tiny_model("gpt2"), tokens_of()
    matrix = block_jacobian(model, tokens, LAYER, [6], context=context, of="update")[0, 0].numpy()
    found = operator(model, tokens, LAYER, 6, context=context, of="update")
    assert found.dtype == np.float32
    vector = np.random.default_rng(0).standard_normal(WIDTH)
    assert np.allclose(found.matvec(vector), matrix @ vector, rtol=1e-4, atol=1e-4)
    assert np.allclose(found.rmatvec(vector), matrix.T @ vector, rtol=1e-4, atol=1e-4)


# Named sites


def brute_sites(model, tokens, source: Site, target, position):
    """jacrev through the whole model: something is added to the source at one position, the target is read there."""
    moved, reached = {}, {}

    def add(tensor):
        shaped = tensor.reshape(1, tokens.shape[1], -1)
        shift = torch.zeros_like(shaped).index_put((torch.tensor(0), torch.tensor(position)), moved["by"])
        return (shaped + shift).reshape(tensor.shape)

    def into(_, args, kwargs):
        if args:
            return (add(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": add(kwargs["hidden_states"])}

    def out_of(_, __, output):
        return with_first_tensor(output, add(first_tensor(output)))

    def see_input(_, args, kwargs):
        reached["out"] = args[0] if args else kwargs["hidden_states"]

    def see_output(_, __, output):
        reached["out"] = first_tensor(output)

    def after(by):
        moved["by"] = by
        logits = model.forward(tokens[:1])
        found = logits if target == "logits" else reached["out"]
        return found.reshape(tokens.shape[1], -1)[position]

    handles = [
        source.module.register_forward_pre_hook(into, with_kwargs=True)
        if source.side == "input"
        else source.module.register_forward_hook(out_of)
    ]
    if target != "logits":
        site = model.site(target)
        handles.append(
            site.module.register_forward_pre_hook(see_input, with_kwargs=True)
            if site.side == "input"
            else site.module.register_forward_hook(see_output)
        )
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jacrev(after)(torch.zeros(WIDTH, dtype=model.dtype)).detach()
    finally:
        for handle in handles:
            handle.remove()


SITES = [
    ("blocks.1.hook_resid_pre", "blocks.1.hook_attn_out"),
    ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid"),
    ("blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"),
    ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"),
    ("blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"),
    ("blocks.1.hook_attn_out", "blocks.3.hook_attn_out"),
    ("blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"),
    ("blocks.0.hook_mlp_out", "ln_final.hook_in"),
    ("blocks.2.hook_mlp_out", "ln_final.hook_out"),
    ("blocks.3.hook_resid_pre", "logits"),
]


@pytest.mark.parametrize("architecture", ["opt", "gemma3", "gpt_neox"])
def test_jacobians_between_sites_are_brute_force(architecture, float64_throughout):
    model, tokens = double(architecture), tokens_of(1, 8)
    for source, target in SITES:
        missing = {source, target} - {*model.sites, "logits"}
        behind = not (model.parallel and "attn_out" in source and target.startswith("blocks.1"))
        if missing or not behind:
            with pytest.raises(InputError):
                site_jacobian(model, tokens, source, target, [6], dtype=F64)
            continue
        found = site_jacobian(model, tokens, source, target, [6], dtype=F64)
        expected = brute_sites(model, tokens, model.site(source), target, 6)
        assert error(found[0, 0], expected) < 1e-12, (source, target)


def test_a_mixer_s_write_moves_the_stream_one_to_one(float64_throughout):
    model, tokens = double("mamba"), tokens_of(1, 4)
    for source, target in (
        ("blocks.2.hook_resid_pre", "blocks.2.hook_mixer_out"),
        ("blocks.2.hook_mixer_out", "blocks.3.hook_mixer_out"),
        ("blocks.3.hook_mixer_out", "ln_final.hook_out"),
    ):
        found = site_jacobian(model, tokens, source, target, [3], dtype=F64)
        assert error(found[0, 0], brute_sites(model, tokens, model.site(source), target, 3)) < 1e-12


def test_from_the_middle_is_from_what_attention_writes(float64_throughout):
    model, tokens = double("llama"), tokens_of()
    middle, written = "blocks.1.hook_resid_mid", "blocks.1.hook_attn_out"
    for target in ("blocks.1.hook_mlp_out", "blocks.1.hook_resid_post", "blocks.2.hook_resid_mid", "logits"):
        found = site_jacobian(model, tokens, middle, target, [3], dtype=F64)
        assert torch.equal(found, site_jacobian(model, tokens, written, target, [3], dtype=F64))
    for source in (middle, written):
        assert torch.equal(site_jacobian(model, tokens, source, middle, [3], dtype=F64)[0, 0], EYE)
        assert torch.equal(site_jacobian(model, tokens, source, source, [3], dtype=F64)[0, 0], EYE)


def test_the_logits_of_a_half_precision_model_come_in_float32():
    module = tiny_module("llama").to(torch.bfloat16)
    model, tokens = load_model(module), tokens_of()
    found = site_jacobian(model, tokens, "blocks.3.hook_resid_post", "logits", [3])
    assert found.dtype is torch.float32
    assert found.shape == (2, 1, VOCABULARY, WIDTH)
    state = replay.record(model, tokens, torch.tensor([[3], [3]])).state(LAYERS)[1, 0].float()
    norm, head = module.model.norm, module.lm_head.weight.float()
    rho = (state.square().mean() + norm.variance_epsilon).sqrt()
    inner = EYE.float() / rho - torch.outer(state, state) / (WIDTH * rho**3)
    assert error(found[1, 0], (head * norm.weight.float() @ inner).detach()) < 1e-5
    assert module.dtype is torch.bfloat16


# A model of which everything is known


class LinearBlock(nn.Module):
    """h(t) + W h(t) + V Σ_{s<t} h(s)."""

    def __init__(self, own, earlier):
        super().__init__()
        self.own, self.earlier = nn.Parameter(own), nn.Parameter(earlier)

    def forward(self, hidden_states):
        before = hidden_states.cumsum(1) - hidden_states
        return hidden_states + hidden_states @ self.own.T + before @ self.earlier.T


class LinearModel:
    """The few members of a `LanguageModel`; its blocks take no cache and its module has no configuration."""

    name = description = architecture = "linear toy"
    attention, tokenizer, bos_id, max_positions = "none", None, None, None
    device, dtype = torch.device("cpu"), F64
    n_layers, d_model, n_vocab = 3, 5, 7
    parallel, recurrent = False, False
    weight_hash, special_ids = "0", frozenset()

    def __init__(self):
        generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(shape, generator=generator, dtype=F64)

        self.module = nn.Module()
        self.module.embedding = nn.Parameter(draw(7, 5))
        self.module.blocks = nn.ModuleList(LinearBlock(draw(5, 5), draw(5, 5)) for _ in range(3))
        self.blocks = tuple(self.module.blocks)
        ends = ("hook_resid_pre", "hook_resid_post")
        self.sites = tuple(f"blocks.{layer}.{end}" for layer in range(3) for end in ends)

    def site(self, name):
        if name not in self.sites:
            raise InputError(f"no site {name}")
        layer = int(name.split(".")[1])
        return Site(name, self.blocks[layer], "input" if name.endswith("pre") else "output", layer)

    def projections(self, layer):
        return {}

    def encode(self, text):
        raise NotImplementedError

    def embed(self, tokens):
        return self.module.embedding[tokens]

    def forward(self, tokens, **kwargs):
        return self.unembed(self.final_states(tokens))

    def final_states(self, tokens, **kwargs):
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def unembed(self, states):
        return states @ self.module.embedding.T


def test_a_linear_residual_block_has_j_equal_to_i_plus_w():
    model, tokens, eye = LinearModel(), torch.arange(6).reshape(2, 3), torch.eye(5, dtype=F64)
    weights = [block.own.detach() for block in model.blocks]
    for context in ("sequence", "alone"):
        found = block_jacobian(model, tokens, 1, [0, 2], context=context, dtype=F64)
        assert error(found, (eye + weights[1]).expand(2, 2, -1, -1)) < 1e-15
    update = block_jacobian(model, tokens, 1, [2], of="update", dtype=F64)
    assert error(update[0, 0], weights[1]) < 1e-15
    assert not torch.allclose(weights[1], weights[1].T)  # rows are outputs, columns are inputs
    cross = cross_jacobian(model, tokens, 1, out_position=2, in_position=0, dtype=F64)
    assert error(cross, model.blocks[1].earlier.detach().expand(2, -1, -1)) < 1e-15
    product = (eye + weights[2]) @ (eye + weights[1]) @ (eye + weights[0])
    assert error(cumulative_jacobian(model, tokens, 0, 3, [1], dtype=F64)[1, 0], product) < 1e-14
    logits = site_jacobian(model, tokens, "blocks.2.hook_resid_pre", "logits", [1], dtype=F64)
    assert error(logits[0, 0], model.module.embedding.detach() @ (eye + weights[2])) < 1e-14
    mean = mean_jacobian(model, tokens, None, [0, 1, 2], dtype=F64)
    assert error(mean.mean[2], eye + weights[2]) < 1e-15
    assert mean.spread.max() < 1e-15
    with pytest.raises(InputError, match="single positions"):
        block_jacobian(model, tokens, 1, [2], method="frozen", dtype=F64)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_bridge_of_transformer_lens_has_the_jacobians_of_its_model(architecture):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    plain, tokens, module = tiny_model(architecture), tokens_of(), tiny_module(architecture)
    bridge = build_bridge_from_module(
        module, type(module).__name__, hf_config=module.config, dtype=torch.float32, device="cpu"
    )
    found = block_jacobian(load_model(bridge), tokens, LAYER, [0, 6, -1])
    assert error(found, block_jacobian(plain, tokens, LAYER, [0, 6, -1])) < 1e-5


# Refusals


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, t: cross_jacobian(m, t, 0, out_position=1, in_position=2), "before in_position"),
        (lambda m, t: cross_jacobian(m, t, 0, out_position=2, in_position=1, context="alone"), "several positions"),
        (lambda m, t: cross_jacobian(m, t, 9, out_position=2, in_position=1), "0 … 3"),
        (lambda m, t: cumulative_jacobian(m, t, 2, 1, [0]), "from_layer"),
        (lambda m, t: cumulative_jacobian(m, t, 0, 5, [0]), "from_layer"),
        (lambda m, t: operator(m, t, 0, 0, window=2), "window must"),
        (lambda m, t: operator(m, t, 3, 0, to_layer=5), "to_layer"),
        (lambda m, t: operator(m, t, 0, 0, to_layer=2, context="alone"), "one block"),
        (lambda m, t: site_jacobian(m, t, "ln_final.hook_in", "logits", [0]), "inside the blocks"),
        (lambda m, t: site_jacobian(m, t, "blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out", [0]), "come after"),
        (lambda m, t: site_jacobian(m, t, "blocks.0.hook_nothing", "logits", [0]), "a site must be"),
        (lambda m, t: site_jacobian(m, t, "blocks.0.hook_resid_pre", "nothing", [0]), "a site must be"),
    ],
)
def test_wrong_requests_are_refused(function, message):
    with pytest.raises(InputError, match=message):
        function(tiny_model("llama"), tokens_of())


def test_public_names():
    assert probe.cross_jacobian is cross_jacobian
    assert probe.cumulative_jacobian is cumulative_jacobian
    assert probe.mean_jacobian is mean_jacobian
    assert probe.jacobian.operator is operator
