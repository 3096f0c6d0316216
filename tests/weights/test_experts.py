"""Matrices of single experts, beside the experts as they run, and their continuity, matched and averaged."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from probe import InputError, load_model, weights
from probe.model import HuggingFaceModel
from probe.weights.curves import assigned
from probe.weights.nulls import haar_matched
from tests.architectures import zoo
from tests.plant.versions import since

STORED = [
    "mixtral",
    "qwen3_moe",
    "olmoe",
    "deepseek_v3",
    "granitemoe",
    "phimoe",
    "ernie4_5_moe",
    "glm4_moe",
    "dbrx",
    "lfm2_moe",
    "jamba",
    "nemotron_h",
    "aria_text",
    "gpt_oss",
    "llama4_text",
]
CALLED = [
    *(name for name in STORED if name != "llama4_text"),
    *("qwen2_moe", "deepseek_v2", "granitemoehybrid", "longcat_flash", "zaya", "minimax_m2", "hunyuan_v1_moe"),
    *("qwen3_next", "laguna"),
]
"""Types whose experts take states, indices and weights."""
OTHERWISE = since("5.24", "DBRX does not run, and Aria's experts are another module")


def marked(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=OTHERWISE) if name in ("dbrx", "aria_text") else name for name in names]


def tiny(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zoo.tiny(name, layers=4)


def loaded(name: str) -> HuggingFaceModel:
    model = load_model(tiny(name))
    assert isinstance(model, HuggingFaceModel)
    return model


def of(source, layer: int, expert: int) -> dict[str, Tensor]:
    return {name: source.matrix(layer, f"experts.{expert}.{name}") for name in source.experts(layer).names}


def first_sparse(source) -> int:
    return next(layer for layer in range(source.n_layers) if source.experts(layer) is not None)


@pytest.mark.parametrize("name", marked(CALLED))
def test_the_matrices_make_what_the_expert_gives(name: str) -> None:
    """W_down (act(W_gate x) ⊙ W_up x), with what the type adds, is the module's own output for one choice."""
    model = loaded(name)
    source = weights.weights_of(model)
    layer = first_sparse(source)
    stack = source.experts(layer)
    assert stack.count == 4
    module = model.blocks[layer].get_submodule(stack.module)
    call = module
    states = torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    if name == "dbrx":
        call = model.blocks[layer].ffn.experts
    if hasattr(model.module, "set_experts_implementation") and name != "dbrx":
        model.module.set_experts_implementation("eager")
    for expert in (0, 3):
        parts = of(source, layer, expert)
        assert parts["down"].shape == (32, parts["up"].shape[0])
        up = states @ parts["up"].T
        if name == "nemotron_h":
            middle = torch.relu(up).square()
        elif name == "gpt_oss":
            bias = module.gate_up_proj_bias[expert]
            gate, up = (states @ parts["gate"].T + bias[::2]).clamp(max=module.limit), up + bias[1::2]
            middle = (up.clamp(-module.limit, module.limit) + 1) * gate * torch.sigmoid(module.alpha * gate)
        else:
            middle = nn.functional.silu(states @ parts["gate"].T) * up
        expected = middle @ parts["down"].T + (module.down_proj_bias[expert] if name == "gpt_oss" else 0)
        # the two columns of one choice: the expert itself, and a weight of zero
        other = torch.tensor([[expert, (expert + 1) % 4]]).expand(6, 2)
        given = (states[None] if name == "dbrx" else states, other, torch.tensor([[1.0, 0.0]]).expand(6, 2))
        found = call(*given).reshape(6, 32)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_matrices_of_experts_that_run_together_are_theirs() -> None:
    """Llama 4 runs all experts on all states; JetMoE sorts the states by expert."""
    model = loaded("llama4_text")
    source = weights.weights_of(model)
    states = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(2))
    outputs = model.blocks[0].feed_forward.experts(states.reshape(20, 32)).reshape(4, 5, 32)
    for expert in range(4):
        parts = of(source, 0, expert)
        middle = nn.functional.silu(states[expert] @ parts["gate"].T) * (states[expert] @ parts["up"].T)
        torch.testing.assert_close(middle @ parts["down"].T, outputs[expert], rtol=1e-4, atol=1e-5)

    model = loaded("jetmoe")
    source = weights.weights_of(model)
    mlp = model.blocks[1].mlp
    assert source.experts(1).module == "mlp"
    states = torch.randn(7, 32, generator=torch.Generator().manual_seed(2))
    sizes = [2, 0, 4, 1]
    gate, up = mlp.input_linear(states, sizes).chunk(2, -1)
    given = mlp.output_linear(nn.functional.silu(gate) * up, sizes)
    for row, expert in enumerate([0, 0, 2, 2, 2, 2, 3]):
        parts = of(source, 1, expert)
        middle = nn.functional.silu(parts["gate"] @ states[row]) * (parts["up"] @ states[row])
        torch.testing.assert_close(parts["down"] @ middle, given[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", marked(STORED))
def test_a_file_gives_the_experts_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    module = tiny(name)
    module.save_pretrained(tmp_path)
    ours, theirs = weights.open_weights(tmp_path), weights.weights_of(load_model(module))
    for layer in range(ours.n_layers):
        assert ours.experts(layer) == theirs.experts(layer)
        for expert in range(4) if ours.experts(layer) else ():
            for kind, matrix in of(theirs, layer, expert).items():
                assert torch.equal(ours.matrix(layer, f"experts.{expert}.{kind}"), matrix), (layer, expert, kind)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_pytorch_file_gives_the_same(name: str, tmp_path: Path) -> None:
    module = tiny(name)
    module.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    ours, theirs = weights.open_weights(tmp_path), weights.weights_of(load_model(module))
    for kind, matrix in of(theirs, 1, 2).items():
        assert torch.equal(ours.matrix(1, f"experts.2.{kind}"), matrix)


def test_one_expert_is_read_without_the_others(tmp_path: Path) -> None:
    tiny("mixtral").save_pretrained(tmp_path)
    whole = weights.open_weights(tmp_path).matrix(1, "experts.2.up")
    file = tmp_path / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if "experts" not in key or ".1.w" not in key}
    save_file(kept, file, metadata={"format": "pt"})
    cut = weights.open_weights(tmp_path)
    assert torch.equal(cut.matrix(1, "experts.2.up"), whole)
    with pytest.raises(InputError, match="must hold every tensor"):
        cut.matrix(1, "experts.1.up")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    source = weights.weights_of(loaded("deepseek_v3"))
    with pytest.raises(InputError, match=r"block 0 .* has no experts"):
        source.matrix(0, "experts.1.up")
    with pytest.raises(InputError, match="experts 0 … 3 with gate, up, down"):
        source.matrix(1, "experts.4.up")
    with pytest.raises(InputError, match="a layer must lie in"):
        source.matrix(4, "experts.1.up")
    with pytest.raises(InputError, match="0 … 3 with up, down"):
        weights.weights_of(loaded("nemotron_h")).matrix(1, "experts.1.gate")
    with pytest.raises(InputError, match="no such blocks"):
        weights.expert_continuity(loaded("llama"))
    with pytest.raises(InputError, match="of gate, up, down, got 'q'"):
        weights.expert_continuity(loaded("mixtral"), projections=["q"])
    with pytest.raises(InputError, match="known norms"):
        weights.expert_continuity(loaded("lfm2_moe"), folded=True)


def test_twins_have_experts_of_their_own() -> None:
    source = weights.weights_of(loaded("qwen3_moe"))
    plain = source.matrix(1, "experts.2.up")
    shuffled = weights.shuffled_twin(source, 0)
    assert torch.equal(shuffled.matrix(1, "experts.2.up").flatten().sort()[0], plain.flatten().sort()[0])
    assert not torch.equal(shuffled.matrix(1, "experts.2.up"), plain)
    assert not torch.equal(shuffled.matrix(1, "experts.2.up").argsort(), shuffled.matrix(1, "experts.3.up").argsort())
    fresh = weights.fresh_twin(source, 0)
    assert torch.equal(fresh.matrix(1, "experts.2.up"), fresh.matrix(1, "experts.2.up"))
    spread = fresh.config.initializer_range
    assert 0.9 * spread < float(fresh.matrix(1, "experts.2.up").std()) < 1.1 * spread


def test_continuity_of_one_expert_is_that_of_its_matrices() -> None:
    model = loaded("qwen3_moe")
    names = ["experts.2.up", "experts.2.down"]
    data = weights.continuity(model, projections=names)
    half = model.config.moe_intermediate_size
    for name, side in ((names[0], "input"), (names[1], "output")):
        vectors = []
        for block in model.blocks:
            experts = block.mlp.experts
            matrix = experts.gate_up_proj[2][half:] if name == names[0] else experts.down_proj[2]
            left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
            vectors.append(right[0] if side == "input" else left[:, 0])
        expected = [float((one @ other).abs()) for one, other in itertools.pairwise(vectors)]
        np.testing.assert_allclose(data[f"{side}_continuity"].sel(projection=name), expected, atol=1e-4)


@pytest.mark.parametrize("folded", [False, True])
def test_continuity_of_experts_is_that_of_all_pairs(folded: bool) -> None:
    model = loaded("olmoe")
    data = weights.expert_continuity(model, folded=folded)
    half = model.config.intermediate_size

    def vector(layer: int, expert: int, name: str) -> Tensor:
        block = model.blocks[layer]
        both = block.mlp.experts.gate_up_proj[expert].double()
        matrix = {"gate": both[:half], "up": both[half:], "down": block.mlp.experts.down_proj[expert].double()}[name]
        if folded and name != "down":
            matrix = matrix * block.post_attention_layernorm.weight.double()
        left, _, right = torch.linalg.svd(matrix)
        return left[:, 0] if name == "down" else right[0]

    names = ["gate", "up"] if folded else ["gate", "up", "down"]  # no norm is behind `down`
    assert list(data["projection"].values) == names
    for name in names:
        for layer in range(3):
            expected = [
                [abs(float(vector(layer, e, name) @ vector(layer + 1, f, name))) for f in range(4)] for e in range(4)
            ]
            found = data["cosine"].sel(projection=name, layer=layer)
            np.testing.assert_allclose(found, expected, atol=1e-4)
            best = max(
                (sum(expected[e][f] for e, f in enumerate(order)), order) for order in itertools.permutations(range(4))
            )
            assert tuple(data["partner"].sel(projection=name, layer=layer).values) == best[1]
            assert float(data["matched_average"].sel(projection=name, layer=layer)) == pytest.approx(
                best[0] / 4, abs=1e-4
            )
            average = float(data["average"].sel(projection=name, layer=layer))
            assert average == pytest.approx(np.mean(expected), abs=1e-4)


def test_permuted_experts_find_their_partners() -> None:
    """Experts of each block are those of the one before, in another order and with some noise."""
    module = tiny("mixtral")
    orders, generator = [[2, 0, 3, 1], [1, 3, 0, 2], [3, 2, 1, 0]], torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer, order in enumerate(orders):
            before, experts = (module.model.layers[layer + step].mlp.experts for step in (0, 1))
            for name in ("gate_up_proj", "down_proj"):
                old, new = getattr(before, name), getattr(experts, name)
                new[torch.tensor(order)] = old + 0.01 * torch.randn(old.shape, generator=generator)
    data = weights.expert_continuity(load_model(module))
    for layer, order in enumerate(orders):
        assert all(list(row) == order for row in data["partner"].sel(layer=layer).values)
    assert float(data["matched_average"].min()) > 0.95
    assert float(data["average"].max()) < 0.5
    assert list(data["next_layer"].values) == [1, 2, 3]
    together = weights.expert_continuity(load_model(module), together=True)
    assert all(len(np.unique(together["partner"].sel(layer=layer), axis=0)) == 1 for layer in range(3))


def test_mixtures_between_dense_blocks_follow_each_other() -> None:
    data = weights.expert_continuity(loaded("jamba"), projections=["up"])
    assert list(data["layer"].values) == [1]
    assert list(data["next_layer"].values) == [3]


def test_the_null_of_matching_is_larger_than_that_of_pairs() -> None:
    for count, n in ((1, 30), (8, 30)):
        simulated = haar_matched(n, count, draws=300)
        generator = np.random.default_rng(0)
        values = []
        for _ in range(300):
            one, other = generator.standard_normal((2, count, n))
            one, other = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (one, other))
            values.append(assigned(np.abs(one @ other.T))[0].mean())
        assert simulated == pytest.approx(np.mean(values), rel=0.1)
    assert haar_matched(30, 1, draws=2000) == pytest.approx(weights.haar_cosine(30), rel=0.05)
    assert haar_matched(30, 8) > 1.7 * weights.haar_cosine(30)


def test_fresh_experts_lie_at_the_nulls() -> None:
    model = loaded("mixtral")
    data = weights.expert_continuity(model)
    for name in ("average", "matched_average"):
        null = {"average": "haar", "matched_average": "matched_haar"}[name]
        assert float(data[name].mean()) == pytest.approx(float(data[null].mean()), rel=0.25)
