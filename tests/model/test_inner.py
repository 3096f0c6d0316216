"""Sites inside attention and MLP: read against the matrices, written against changed weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from probe.model import HuggingFaceModel, changed, load_model, site_name
from probe.stream import capture
from tests.plant.refusing import refused
from tests.plant.tiny import ARCHITECTURES, RECURRENT, tiny_model, tiny_tokens

ATTENTION = [name for name in ARCHITECTURES if name not in RECURRENT]
with_attention = pytest.mark.parametrize("architecture", ATTENTION)


def linear_of(model: HuggingFaceModel, name: str) -> nn.Module:
    return model.blocks[1].get_submodule(model.at(1).projections[name].module)


@with_attention
def test_sites_are_what_the_matrices_read_and_write(architecture: str) -> None:
    """Each is rebuilt by the block's own linear module from the site before it."""
    model, tokens = tiny_model(architecture), tiny_tokens()
    linears = {"o": "z", "down": "post"}
    outputs: dict[str, Tensor] = {}
    hooks = [
        linear_of(model, name).register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out.clone()}))
        for name in linears
    ]
    found = capture(model, tokens, sites=[*linears.values()], layers=1)
    for hook in hooks:
        hook.remove()
    for name, short in linears.items():
        with torch.no_grad():
            again = linear_of(model, name)(found[short, 1].reshape(*tokens.shape, -1))
        torch.testing.assert_close(again.reshape(-1), outputs[name].reshape(-1))


@with_attention
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_patterns_weight_the_values(architecture: str, attention: str) -> None:
    """Rows sum to one, later keys have nothing, and pattern times values is what the matrix `o` reads."""
    model, tokens = tiny_model(architecture), tiny_tokens()
    model.module.set_attn_implementation(attention)
    plain = capture(model, tokens)
    found = capture(model, tokens, sites=["pattern", "v", "z", "resid_post"], layers=1)
    assert torch.equal(found["resid_post", 1], plain["resid_pre", 2])  # reading changes nothing
    pattern, value = found["pattern", 1], found["v", 1]
    heads, length = pattern.shape[2], tokens.shape[1]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(*tokens.shape, heads))
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    assert (pattern.transpose(1, 2)[..., later] == 0).all()
    value = value.repeat_interleave(heads // value.shape[2], 2)
    torch.testing.assert_close(torch.einsum("wthk,wkhd->wthd", pattern, value), found["z", 1])


@with_attention
def test_queries_and_keys_give_the_pattern(architecture: str) -> None:
    """Scores by `rot_q` and `rot_k` order the keys of the last position as the pattern does, in a full layer."""
    model, tokens = tiny_model(architecture), tiny_tokens()
    layer = 2
    found = capture(model, tokens, sites=["rot_q", "rot_k", "pattern"], layers=layer)
    query, key = found["rot_q", layer], found["rot_k", layer]
    key = key.repeat_interleave(query.shape[2] // key.shape[2], 2)
    scores = torch.einsum("whd,wkhd->whk", query[:, -1], key)
    logs = found["pattern", layer][:, -1].log()
    # a soft cap bends the scores, a mask hides keys: the order of what is seen stays
    assert torch.equal(scores.argsort(-1), logs.argsort(-1))


@with_attention
def test_to_put_back_what_was_read_changes_nothing(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens()
    with torch.no_grad():
        plain = model.forward(tokens)
        for name in model.sites:
            if not name.startswith(("blocks.1.", "ln_final")):
                continue
            with changed(model, {name: lambda tensor: tensor}):
                found = model.forward(tokens)
            torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        assert torch.equal(model.forward(tokens), plain)


def without(matrix: str, rows: Callable[[Tensor], Tensor]) -> Callable[[HuggingFaceModel], HuggingFaceModel]:
    def make(model: HuggingFaceModel) -> HuggingFaceModel:
        module = copy.deepcopy(model.module)
        other = load_model(module)
        assert isinstance(other, HuggingFaceModel)
        with torch.no_grad():
            weight = other.projections(1)[matrix]
            weight.copy_(rows(weight))
        return other

    return make


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox", "qwen3", "phi"])
def test_a_head_that_is_left_out_is_a_matrix_without_it(architecture: str) -> None:
    """z of head 1 set to 0 gives the logits of a model whose matrix `o` does not read that head."""
    model, tokens = tiny_model(architecture), tiny_tokens()
    width = model.projections(1)["o"].shape[1] // 4

    def drop(weight: Tensor) -> Tensor:
        weight = weight.clone()
        weight[:, width : 2 * width] = 0
        return weight

    def zero(tensor: Tensor) -> Tensor:
        tensor[:, :, 1] = 0
        return tensor

    other = without("o", drop)(model)
    with torch.no_grad(), changed(model, {"blocks.1.attn.hook_z": zero}):
        found = model.forward(tokens)
    with torch.no_grad():
        torch.testing.assert_close(found, other.forward(tokens))
        assert (found - model.forward(tokens)).abs().max() > 1e-4


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama"])
def test_a_part_of_a_joint_matrix_is_changed_alone(architecture: str) -> None:
    """Values doubled at the site are values of a doubled matrix, also where one matrix makes all three."""
    model, tokens = tiny_model(architecture), tiny_tokens()
    seen = []
    with torch.no_grad(), changed(model, {"blocks.1.attn.hook_v": lambda value: 2 * value}):
        seen.append(capture(model, tokens, sites=["z", "pattern"], layers=1))
    seen.append(capture(model, tokens, sites=["z", "pattern"], layers=1))
    torch.testing.assert_close(seen[0]["z", 1], 2 * seen[1]["z", 1])
    torch.testing.assert_close(seen[0]["pattern", 1], seen[1]["pattern", 1])


@with_attention
def test_the_middle_of_the_stream_is_changed_for_all_that_reads_it(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens()
    if "blocks.1.hook_resid_mid" not in model.sites:
        pytest.skip("parallel blocks have no middle")
    direction = torch.linspace(-1, 1, model.d_model)
    sites = ["resid_mid", "mlp_out", "resid_post"]
    with changed(model, {"blocks.1.hook_resid_mid": lambda tensor: tensor + direction}):
        moved = capture(model, tokens, sites=sites, layers=1)
    plain = capture(model, tokens, sites=sites, layers=1)
    torch.testing.assert_close(moved["resid_mid", 1], plain["resid_mid", 1] + direction)
    torch.testing.assert_close(moved["resid_post", 1], moved["resid_mid", 1] + moved["mlp_out", 1])
    assert (moved["mlp_out", 1] - plain["mlp_out", 1]).abs().max() > 1e-4


def test_a_uniform_pattern_means_the_values() -> None:
    model, tokens = tiny_model("llama"), tiny_tokens()
    length = tokens.shape[1]

    def uniform(pattern: Tensor) -> Tensor:
        return torch.full_like(pattern, 1 / length)

    with changed(model, {"blocks.1.attn.hook_pattern": uniform}):
        found = capture(model, tokens, sites=["z", "v", "pattern"], layers=1)
    means = found["v", 1].mean(1).repeat_interleave(2, 1)
    torch.testing.assert_close(found["z", 1], means[:, None].expand_as(found["z", 1]))
    assert "hook" not in str(model.module.config._attn_implementation)


def test_what_cannot_be_changed_is_refused() -> None:
    model, tokens = tiny_model("llama"), tiny_tokens()
    with torch.no_grad():
        for name, change, words in [
            ("blocks.1.hook_mlp_out", lambda tensor: tensor[:1], "shape (3, 16, 32)"),
            ("blocks.1.hook_mlp_out", lambda tensor: 0.0, "float"),
            ("blocks.9.hook_mlp_out", lambda tensor: tensor, "blocks.L.NAME"),
        ]:

            def run(name: str = name, change: Callable[[Tensor], Tensor] = change) -> None:
                with changed(model, {name: change}):
                    model.forward(tokens)

            refused(run, words)
    assert not any(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.module.modules())


def test_names_may_be_short() -> None:
    model = tiny_model("llama")
    for short, name in {
        "mlp_out": "hook_mlp_out",
        "z": "attn.hook_z",
        "attn.z": "attn.hook_z",
        "post": "mlp.hook_post",
    }.items():
        assert site_name(model, f"blocks.2.{short}") == f"blocks.2.{name}"
    assert site_name(model, "blocks.2.nothing") == "blocks.2.nothing"
