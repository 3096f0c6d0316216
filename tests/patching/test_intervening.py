"""Interventions in every pass, against plain hooks."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
import torch

import probe
from probe.errors import InputError
from tests.architectures import zoo
from tests.patching.by_hand import FAMILIES, close, hooks_of, logits_with
from tests.plant.tiny import tiny_model, tiny_tokens

LAYER, POSITIONS = 1, [3, -2]
COLUMNS = [3, 14]
TOKENS = tiny_tokens(2, 16)


def _value(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def _at_columns(value):
    def change(tensor):
        tensor[:, COLUMNS] = value
        return tensor

    return change


@pytest.mark.parametrize("short", ["hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_site_is_replaced_at_the_positions(family, short):
    model = tiny_model(family)
    name = f"blocks.{LAYER}.{short}"
    if name not in model.sites:
        name = f"blocks.{LAYER}.hook_mixer_out"
    value = _value(2, 2, model.d_model)
    expected = logits_with(model, TOKENS, name, _at_columns(value))
    with probe.intervene(model, {name: value}, positions=POSITIONS), torch.no_grad():
        found = model.forward(TOKENS)
    close(found, expected)
    with torch.no_grad():
        assert not torch.allclose(found, model.forward(TOKENS), atol=1e-3)


def test_gemma2_behind_a_norm_and_a_soft_cap():
    model = probe.load_model(zoo.tiny("gemma2"))
    name, tokens = "blocks.1.hook_attn_out", TOKENS % 64
    value = _value(model.d_model)
    expected = logits_with(model, tokens, name, _at_columns(value))
    with probe.intervene(model, {name: value}, positions=POSITIONS), torch.no_grad():
        close(model.forward(tokens), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3"])
def test_heads_are_replaced_one_by_one(family):
    model = tiny_model(family)
    name = f"blocks.{LAYER}.attn.hook_z"

    def without(heads):
        def change(tensor):
            by_head = tensor.unflatten(-1, (4, -1))
            by_head[:, :, heads] = 0
            return by_head.flatten(-2)

        return logits_with(model, TOKENS, name, change)

    for key, heads in (((name, 2), [2]), ((name, (0, 3)), [0, 3])):
        with probe.intervene(model, {key: 0.0}), torch.no_grad():
            close(model.forward(TOKENS), without(heads))


def test_an_array_for_one_head_has_no_axis_of_heads():
    model = tiny_model("llama")
    name = "blocks.1.attn.hook_z"
    value = _value(2, 2, 8)

    def change(tensor):
        tensor[:, COLUMNS, 8:16] = value
        return tensor

    expected = logits_with(model, TOKENS, name, change)
    for key, given in (((name, 1), value), ((name, (1,)), value[:, :, None]), ((name, 1), value.numpy())):
        with probe.intervene(model, {key: given}, positions=POSITIONS), torch.no_grad():
            close(model.forward(TOKENS), expected)


def test_values_broadcast_and_functions_see_the_positions():
    model = tiny_model("llama")
    name, value = "blocks.1.hook_mlp_out", _value(2, 2, 32)
    shapes = []

    def doubled(tensor):
        shapes.append(tuple(tensor.shape))
        return 2 * tensor

    def twice(tensor):
        tensor[:, COLUMNS] *= 2
        return tensor

    cases = [
        (value[0, 0], _at_columns(value[0, 0])),
        (value[0].numpy().astype(np.float64), _at_columns(value[0])),
        (value[:, :1], _at_columns(value[:, :1])),
        (0.5, _at_columns(0.5)),
        (doubled, twice),
    ]
    for given, change in cases:
        expected = logits_with(model, TOKENS, name, change)
        with probe.intervene(model, {name: given}, positions=POSITIONS), torch.no_grad():
            close(model.forward(TOKENS), expected)
    assert shapes == [(2, 2, 32)]


def test_each_window_has_positions_of_its_own():
    model = tiny_model("gpt2")
    name = "blocks.2.hook_resid_pre"

    def change(tensor):
        tensor[0, 4] = 0
        tensor[1, 15] = 0
        return tensor

    expected = logits_with(model, TOKENS, name, change)
    with probe.intervene(model, {name: 0}, positions=[[4], [-1]]), torch.no_grad():
        close(model.forward(TOKENS), expected)


def test_a_capture_sees_the_intervention():
    model = tiny_model("llama")
    with probe.intervene(model, {"blocks.1.hook_mlp_out": 0.0}):
        stream = probe.capture(model, TOKENS, sites=["hook_mlp_out", "hook_resid_post", "hook_resid_mid"], layers=[1])
    assert stream["blocks.1.hook_mlp_out"].abs().max() == 0
    torch.testing.assert_close(stream["blocks.1.hook_resid_post"], stream["blocks.1.hook_resid_mid"])


def test_several_sites_act_together_and_logits_come_for_prompts():
    model = tiny_model("llama")
    both = {"blocks.1.hook_mlp_out": 0.0, "blocks.3.hook_attn_out": 0.0, ("blocks.2.attn.hook_z", 0): 1.0}
    with probe.intervene(model, both) as run:
        found = run([TOKENS[0], TOKENS[1, :9]], read=[-1, 2])
        expected = [model.forward(TOKENS[:1])[0, [15, 2]], model.forward(TOKENS[1:, :9])[0, [8, 2]]]
    close(found, torch.stack(expected).detach())
    assert "blocks.2.attn.hook_z" in run._repr_html_()


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_nothing_is_left_behind_also_after_an_exception(family):
    model = tiny_model(family)
    before, plain = hooks_of(model), model.forward(TOKENS)
    with pytest.raises(KeyError), probe.intervene(model, {"blocks.1.hook_resid_post": 0.0}):
        raise KeyError
    assert hooks_of(model) == before
    assert torch.equal(model.forward(TOKENS), plain)

    def fails(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), probe.intervene(model, {"blocks.1.hook_resid_post": fails}):
        model.forward(TOKENS)
    assert hooks_of(model) == before


@pytest.mark.parametrize("name", ["ln_final.hook_in", "ln_final.hook_out"])
def test_what_follows_the_blocks_is_replaced_too(name):
    model = tiny_model("llama")
    expected = logits_with(model, TOKENS, name, _at_columns(1.0))
    with probe.intervene(model, {name: 1.0}, positions=POSITIONS) as run:
        close(run(TOKENS, read=[-1, -2]), expected[:, [15, 14]])


@pytest.mark.parametrize(
    ("edits", "positions", "says"),
    [
        ({"blocks.9.hook_mlp_out": 0}, None, "site"),
        ({}, None, "at least one site"),
        ({("blocks.1.attn.hook_z", 4): 0}, None, "heads 0 … 3, got 4"),
        ({("blocks.1.attn.hook_z", -1): 0}, None, "indices from 0"),
        ({("blocks.1.hook_mlp_out", 0): 0}, None, "has no heads"),
        ({"blocks.1.hook_mlp_out": torch.zeros(3, 2, 32)}, [3, 4], r"= \(2, 2, 32\), got \(3, 2, 32\)"),
        ({"blocks.1.hook_mlp_out": lambda part: part[:, :0]}, [3, 4], "must broadcast"),
        ({"blocks.1.hook_mlp_out": 0}, [16], r"in \[0, 16\).*, got 16"),
        ({"blocks.1.hook_mlp_out": 0}, [[1], [2], [3]], r"\(W, P\) with W = 2"),
        ({"blocks.1.hook_mlp_out": 0}, [0.5], "integers"),
    ],
)
def test_what_cannot_be_done_is_refused(edits, positions, says, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    model = tiny_model("llama")
    with pytest.raises(InputError, match=says), probe.intervene(model, edits, positions=positions):
        model.forward(TOKENS)
    assert hooks_of(model) == 0
