"""Sites of mixtures of experts, beside hooks of our own and the routing written out once more for each type."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from probe import capture, load_model
from probe.errors import InputError
from probe.jacobian import site_jacobian
from probe.model.mixtures import MIXTURE_SITES
from tests.architectures import zoo

LAYER = 1
"""A block with a mixture in every type below."""

Routing = tuple[Tensor, Tensor]
"""Indices and weights of the chosen experts."""


def tiny(name: str, **changes: object) -> nn.Module:
    """A tiny mixture in float64, whose experts run one after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = zoo.tiny(name, layers=4, **changes).double()
    if hasattr(module, "set_experts_implementation") and name not in ("dbrx", "llama4_text"):
        module.set_experts_implementation("eager")
    return module


def softmax_first(mixture: nn.Module, logits: Tensor, k: int, *, renormed: bool = True) -> Routing:
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    order = probabilities.argsort(-1, descending=True)[:, :k]
    weights = probabilities.gather(-1, order)
    return order, weights / weights.sum(-1, keepdim=True) if renormed else weights


def softmax_of_chosen(mixture: nn.Module, logits: Tensor, k: int) -> Routing:
    order = logits.argsort(-1, descending=True)[:, :k]
    weights = logits.gather(-1, order).exp()
    return order, weights / weights.sum(-1, keepdim=True)


def biased_sigmoid(mixture: nn.Module, logits: Tensor, k: int) -> Routing:
    """DeepSeek's: the best experts of the best groups by sigmoid plus bias, weighted by the sigmoid alone."""
    router = mixture.gate
    scores = 1 / (1 + (-logits).exp())
    biased = scores + router.e_score_correction_bias.double()
    order = []
    for row in biased:
        groups = row.view(router.num_group, -1)
        best = [float(group.sort(descending=True).values[:2].sum()) for group in groups]
        kept = sorted(range(len(best)), key=lambda g: -best[g])[: router.topk_group]
        size = groups.shape[1]
        allowed = [g * size + e for g in kept for e in range(size)]
        order.append(sorted(allowed, key=lambda e: -float(row[e]))[:k])
    indices = torch.tensor(order)
    weights = scores.gather(-1, indices)
    return indices, weights / weights.sum(-1, keepdim=True) * router.routed_scaling_factor


def biased_softmax(mixture: nn.Module, logits: Tensor, k: int) -> Routing:
    probabilities = logits.softmax(-1)
    biased = probabilities + mixture.gate.moe_statics.e_score_correction_bias.double()
    order = biased.argsort(-1, descending=True)[:, :k]
    weights = probabilities.gather(-1, order)
    return order, weights / weights.sum(-1, keepdim=True)


def sigmoid_of_chosen(mixture: nn.Module, logits: Tensor, k: int) -> Routing:
    order = logits.argsort(-1, descending=True)[:, :k]
    return order, 1 / (1 + (-logits.gather(-1, order)).exp())


def gated(experts: nn.Module, expert: int, state: Tensor) -> Tensor:
    gate, up = (experts.gate_up_proj[expert] @ state).chunk(2)
    return experts.down_proj[expert] @ (nn.functional.silu(gate) * up)


def gpt_oss(experts: nn.Module, expert: int, state: Tensor) -> Tensor:
    both = state @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
    gate, up = both[::2].clamp(max=experts.limit), both[1::2].clamp(-experts.limit, experts.limit)
    return (up + 1) * gate * torch.sigmoid(experts.alpha * gate) @ experts.down_proj[expert] + experts.down_proj_bias[
        expert
    ]


def dbrx(experts: nn.Module, expert: int, state: Tensor) -> Tensor:
    size = experts.ffn_hidden_size
    rows = slice(expert * size, (expert + 1) * size)
    mlp = experts.mlp
    return (nn.functional.silu(mlp.w1[rows] @ state) * (mlp.v1[rows] @ state)) @ mlp.w2[rows]


Choose = Callable[[nn.Module, Tensor, int], Routing]
Expert = Callable[[nn.Module, int, Tensor], Tensor]

TYPES: dict[str, tuple[str, str, Choose, Expert, dict[str, object]]] = {
    "mixtral": ("mlp", "gate.weight", softmax_first, gated, {}),
    "qwen3_moe": ("mlp", "gate.weight", softmax_first, gated, {"norm_topk_prob": True}),
    "qwen2_moe": ("mlp", "gate.weight", softmax_first, gated, {"norm_topk_prob": True}),
    "olmoe": ("mlp", "gate.weight", softmax_first, gated, {"norm_topk_prob": True}),
    "granitemoe": ("block_sparse_moe", "router.weight", softmax_of_chosen, gated, {}),
    "gpt_oss": ("mlp", "router.weight", softmax_of_chosen, gpt_oss, {}),
    "deepseek_v3": (
        "mlp",
        "gate.weight",
        biased_sigmoid,
        gated,
        {"num_local_experts": 8, "n_group": 4, "topk_group": 2, "norm_topk_prob": True},
    ),
    "glm4_moe": ("mlp", "gate.weight", biased_sigmoid, gated, {"norm_topk_prob": True}),
    "ernie4_5_moe": ("mlp", "gate.weight", biased_softmax, gated, {}),
    "dbrx": ("ffn", "router.layer.weight", softmax_first, dbrx, {}),
    "llama4_text": ("feed_forward", "router.weight", sigmoid_of_chosen, gated, {}),
}


@pytest.mark.parametrize("name", TYPES)
def test_routing_and_experts_are_those_computed_by_hand(name: str) -> None:
    path, matrix, choose, expert, changes = TYPES[name]
    model = load_model(tiny(name, **changes))
    tokens, _ = zoo.questions()
    mixture = model.blocks[LAYER].get_submodule(path)
    states, outputs, shared_outputs = [], [], []
    with (
        mixture.register_forward_pre_hook(lambda _, args: states.append(args[0].clone())),
        mixture.register_forward_hook(lambda _, __, out: outputs.append(out if isinstance(out, Tensor) else out[0])),
    ):
        shared = next((part for path, part in mixture.named_children() if path.startswith("shared_exp")), nn.Module())
        with shared.register_forward_hook(lambda _, __, out: shared_outputs.append(out.clone())):
            model.forward(tokens)
    names = [name for name in MIXTURE_SITES if f"blocks.{LAYER}.{name}" in model.sites]
    seen = capture(model, tokens, sites=names, layers=[LAYER], dtype="model")
    seen = {site: seen[f"blocks.{LAYER}.{site}"].flatten(0, 1) for site in names}

    entering = states[0].flatten(0, -2)
    router = mixture.get_parameter(matrix).double()
    bias = mixture.router.bias.double() if name == "gpt_oss" else 0
    logits = entering @ router.T + bias
    torch.testing.assert_close(seen["mlp.hook_router_logits"].double(), logits, rtol=1e-5, atol=1e-5)

    k = seen["mlp.hook_expert_indices"].shape[-1]
    assert seen["mlp.hook_expert_indices"].dtype == torch.int64
    indices, weights = choose(mixture, logits, k)
    found, order = seen["mlp.hook_expert_indices"].sort(-1)
    expected, by_hand = indices.sort(-1)
    assert torch.equal(found, expected)
    ours = seen["mlp.hook_expert_weights"].double().gather(-1, order)
    torch.testing.assert_close(ours, weights.gather(-1, by_hand), rtol=1e-5, atol=1e-6)

    chosen, weighted = seen["mlp.hook_expert_indices"], seen["mlp.hook_expert_weights"].double()
    if name == "llama4_text":  # weights multiply what enters its experts
        assert "mlp.hook_experts" not in seen
        entering_each = entering[:, None] * weighted[..., None]
        each = torch.stack([
            torch.stack([
                (nn.functional.silu(gate) * up) @ mixture.experts.down_proj[e]
                for e, state in zip(row.tolist(), rows, strict=True)
                for gate, up in [(state @ mixture.experts.gate_up_proj[e]).chunk(2)]
            ])
            for row, rows in zip(chosen, entering_each, strict=True)
        ])
        routed = each.sum(1)
    else:
        each = torch.stack([
            torch.stack([expert(mixture.experts, e, state) for e in row.tolist()])
            for row, state in zip(chosen, entering, strict=True)
        ])
        torch.testing.assert_close(seen["mlp.hook_experts"], each, rtol=1e-9, atol=1e-9)
        routed = (weighted[..., None] * each).sum(1)
    torch.testing.assert_close(seen["mlp.hook_routed"], routed, rtol=1e-6, atol=1e-7)

    whole, added = outputs[0].flatten(0, -2), 0
    assert bool(shared_outputs) == ("mlp.hook_shared" in seen)
    if shared_outputs:
        assert torch.equal(seen["mlp.hook_shared"], shared_outputs[0].flatten(0, -2))
        added = seen["mlp.hook_shared"]
        if name == "qwen2_moe":
            added = torch.sigmoid(mixture.shared_expert_gate(entering)) * added
    torch.testing.assert_close(seen["mlp.hook_routed"] + added, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_what_each_expert_gives_is_read_under_every_implementation(name: str, implementation: str) -> None:
    module = zoo.tiny(name)
    module.set_experts_implementation(implementation)
    model, tokens = load_model(module), zoo.questions()[0]
    names = ["mlp.hook_experts", "mlp.hook_expert_weights", "mlp.hook_routed", "mlp.hook_expert_indices"]
    each, weights, routed, indices = (
        stream[f"blocks.{LAYER}.{name}"]
        for stream in [capture(model, tokens, sites=names, layers=[LAYER])]
        for name in names
    )
    torch.testing.assert_close((each * weights[..., None]).sum(-2), routed, rtol=1e-4, atol=1e-5)
    exact = capture(load_model(tiny(name)), tokens, sites=names, layers=[LAYER], dtype="model")
    assert torch.equal(exact[f"blocks.{LAYER}.mlp.hook_expert_indices"], indices)
    torch.testing.assert_close(each, exact[f"blocks.{LAYER}.mlp.hook_experts"].float(), rtol=1e-3, atol=1e-4)


def test_reading_leaves_the_pass_as_it_is() -> None:
    module = zoo.tiny("qwen3_moe")
    model, tokens = load_model(module), zoo.questions()[0]
    plain = capture(model, tokens)
    whole = capture(model, tokens, sites=list(model.sites))
    assert all(torch.equal(plain[site], whole[site]) for site in plain.sites)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_only_blocks_with_experts_have_the_sites() -> None:
    model = load_model(zoo.tiny("deepseek_v3"))
    having = [layer for layer in range(4) if f"blocks.{layer}.mlp.hook_router_logits" in model.sites]
    assert having == [1, 2, 3]
    kinds = {kind.layers: kind.sites for kind in model.support.blocks}
    assert not set(MIXTURE_SITES) & set(kinds[0,])
    assert set(MIXTURE_SITES) <= set(kinds[1, 2, 3])
    assert kinds[1, 2, 3].index("hook_resid_mid") < kinds[1, 2, 3].index("mlp.hook_router_logits")
    assert kinds[1, 2, 3].index("mlp.hook_shared") < kinds[1, 2, 3].index("hook_mlp_out")
    with pytest.raises(InputError, match=r"blocks 1 … 3 have mlp\.hook_router_logits"):
        capture(model, zoo.questions()[0], sites=["mlp.hook_router_logits"], layers=[0, 1])
    found = capture(model, zoo.questions()[0], sites=["mlp.hook_router_logits"])
    assert found.layers("mlp.hook_router_logits") == [1, 2, 3]
    assert not set(MIXTURE_SITES) & {site.split(".", 2)[2] for site in load_model(zoo.tiny("llama")).sites[:-2]}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_on_disk_they_are_what_they_are_in_memory(tmp_path, batch_size: int) -> None:
    model, tokens = load_model(zoo.tiny("mixtral")), zoo.questions(windows=5)[0]
    sites = [*MIXTURE_SITES[:-1], "hook_mlp_out"]
    memory = capture(model, tokens, sites=sites, batch_size=batch_size)
    disk = capture(model, tokens, sites=sites, batch_size=batch_size, out=tmp_path / "stream")
    assert len(memory.sites) == 4 * len(sites)
    for site in memory.sites:
        assert memory[site].shape[:2] == (5, 10)
        assert memory[site].dtype == disk[site].dtype
        assert torch.equal(memory[site], disk[site])


@pytest.mark.parametrize("name", ["mlp.hook_router_logits", "mlp.hook_routed"])
def test_a_jacobian_to_or_from_the_inside_of_a_mixture_is_refused(name: str) -> None:
    model, tokens, inside = load_model(zoo.tiny("mixtral")), zoo.questions()[0], f"blocks.1.{name}"
    with pytest.raises(InputError, match=f"a target must be .* got {inside}"):
        site_jacobian(model, tokens, "blocks.0.hook_resid_pre", inside, [3])
    with pytest.raises(InputError, match="a source must be"):
        site_jacobian(model, tokens, inside, "logits", [3])
