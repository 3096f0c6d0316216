"""Margins of the choice of experts, beside scores written out by hand and states that are moved until it changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from probe import capture, load_model
from probe.errors import InputError
from probe.jacobian import routing_margin
from probe.model import HuggingFaceModel, first_tensor
from tests.architectures import zoo
from tests.model.test_mixtures import LAYER, tiny

LOGITS, CHOICE = (f"blocks.{LAYER}.mlp.hook_{name}" for name in ("router_logits", "expert_indices"))
GROUPED = {"num_local_experts": 8, "n_group": 4, "topk_group": 2}


def loaded(name: str, **changes: object) -> HuggingFaceModel:
    model = load_model(tiny(name, **changes))
    assert isinstance(model, HuggingFaceModel)
    return model


def everywhere(model: HuggingFaceModel, tokens: Tensor) -> Tensor:
    return routing_margin(model, tokens, LAYER, range(tokens.shape[1])).double()


def softmaxed(model: HuggingFaceModel, logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def plain(model: HuggingFaceModel, logits: Tensor) -> Tensor:
    return logits


def biased_softmax(model: HuggingFaceModel, logits: Tensor) -> Tensor:
    return softmaxed(model, logits) + model.blocks[LAYER].mlp.gate.moe_statics.e_score_correction_bias.double()


def biased_sigmoid(model: HuggingFaceModel, logits: Tensor) -> Tensor:
    return 1 / (1 + (-logits).exp()) + model.blocks[LAYER].mlp.gate.e_score_correction_bias.double()


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("mixtral", softmaxed),
        ("qwen3_moe", softmaxed),
        ("olmoe", softmaxed),
        ("dbrx", softmaxed),
        ("gpt_oss", plain),
        ("granitemoe", plain),
        ("llama4_text", plain),
        ("ernie4_5_moe", biased_softmax),
        ("glm4_moe", biased_sigmoid),
    ],
)
def test_the_margin_is_the_gap_behind_the_last_chosen_score(name, scores) -> None:
    model, tokens = loaded(name), zoo.questions()[0]
    stream = capture(model, tokens, sites=[LOGITS, CHOICE], dtype="model")
    ranked = scores(model, stream[LOGITS].double()).sort(-1, descending=True).values
    k = stream[CHOICE].shape[-1]
    expected = ranked[..., k - 1] - ranked[..., k]
    torch.testing.assert_close(everywhere(model, tokens), expected, rtol=1e-5, atol=1e-6)
    some = torch.tensor([[7, 2], [0, 5]])
    found = routing_margin(model, tokens, LAYER, some)
    torch.testing.assert_close(found.double(), expected.gather(1, some), rtol=1e-5, atol=1e-6)
    assert torch.equal(routing_margin(model, tokens, LAYER, [-1]), routing_margin(model, tokens, LAYER, [9]))


@pytest.mark.parametrize("seed", range(3))
def test_groups_count_where_their_exchange_changes_the_experts(seed: int) -> None:
    """DeepSeek-V3: two of four groups of two experts by the sum of their best two, then two experts of these."""
    model = loaded("deepseek_v3", **GROUPED, seed=seed)
    tokens = zoo.questions(windows=8)[0]
    stream = capture(model, tokens, sites=[LOGITS, CHOICE], dtype="model")
    scores = biased_sigmoid(model, stream[LOGITS].double())
    margins, of_groups = everywhere(model, tokens), 0
    for row, found in zip(scores.flatten(0, 1), margins.flatten(), strict=True):
        sums = row.view(4, 2).sum(-1)
        order = sums.argsort(descending=True).tolist()

        def chosen(groups: list[int], row: Tensor = row) -> list[int]:
            allowed = [2 * group + one for group in groups for one in (0, 1)]
            return sorted(allowed, key=lambda expert: -float(row[expert]))

        ranked = chosen(order[:2])
        expected = float(row[ranked[1]] - row[ranked[2]])
        exchanged = chosen([order[0], order[2]])
        if set(exchanged[:2]) != set(ranked[:2]):
            gap = float(sums[order[1]] - sums[order[2]])
            of_groups += gap < expected
            expected = min(expected, gap)
        assert float(found) == pytest.approx(expected, abs=1e-5)
    assert 5 < of_groups < 75  # both kinds occur


@contextmanager
def moved(model: HuggingFaceModel, window: int, position: int, by: Tensor) -> Iterator[None]:
    """The stream that enters the block, moved at one position."""

    def add(_, __, output):
        state = first_tensor(output).clone()
        state[window, position] += by
        return state if isinstance(output, Tensor) else (state, *output[1:])

    with model.blocks[LAYER - 1].register_forward_hook(add):
        yield


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "dbrx", "llama4_text", "lfm2_moe", "deepseek_v3"])
def test_the_choice_changes_where_the_margin_is_zero(name: str) -> None:
    """The state is moved by secants until the margin is gone; there, and not before, the experts change."""
    model = loaded(name, **(GROUPED if name == "deepseek_v3" else {}))
    tokens, window, position = zoo.questions()[0], 1, 6
    direction = torch.randn(32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def at(step: float) -> tuple[float, set[int], Tensor]:
        with moved(model, window, position, step * direction):
            margin = float(routing_margin(model, tokens, LAYER, [position])[window, 0])
            sites = [CHOICE, f"blocks.{LAYER}.hook_resid_post"]
            stream = capture(model, tokens, sites=sites, dtype="model")
        return margin, set(stream[CHOICE][window, position].tolist()), stream[sites[1]][window, position]

    start, experts, _ = at(0.0)
    assert start > 0
    low, high = 0.0, 0.05
    while at(high)[1] == experts:
        low, high = high, 1.4 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[1] == experts else (low, middle)
    (before, same, one), (behind, other, another) = at(low), at(high)
    assert same == experts != other
    assert max(before, behind) < 1e-5 < start
    # the margin falls in proportion to the way that is left, and the block's output jumps
    near, half = (at(low * (1 - share))[0] for share in (2e-3, 1e-3))
    assert near == pytest.approx(2 * half, rel=0.1)
    assert float((one - another).norm()) > 1e3 * float((at(low * (1 - 1e-6))[2] - one).norm())


def test_the_margin_of_a_model_as_it_runs_is_that_of_exact_arithmetic() -> None:
    tokens = zoo.questions()[0]
    exact = everywhere(loaded("qwen3_moe"), tokens)
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        module = zoo.tiny("qwen3_moe")
        module.set_experts_implementation(implementation)
        found = everywhere(load_model(module), tokens)
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-5)
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_what_has_no_margin_is_refused() -> None:
    tokens = zoo.questions()[0]
    with pytest.raises(InputError, match="block 1 of LlamaForCausalLM does not"):
        routing_margin(load_model(zoo.tiny("llama")), tokens, 1, [3])
    with pytest.raises(InputError, match="block 0 of DeepseekV3ForCausalLM does not"):
        routing_margin(load_model(zoo.tiny("deepseek_v3")), tokens, 0, [3])
    with pytest.raises(InputError, match=r"block 1 of PhimoeForCausalLM \(phimoe\) chooses otherwise"):
        routing_margin(load_model(zoo.tiny("phimoe")), tokens, 1, [3])
    with pytest.raises(InputError, match="a layer must lie in"):
        routing_margin(load_model(zoo.tiny("mixtral")), tokens, 4, [3])
    with pytest.raises(InputError, match="positions= must lie in"):
        routing_margin(load_model(zoo.tiny("mixtral")), tokens, 1, [10])
