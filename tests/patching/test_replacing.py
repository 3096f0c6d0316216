"""Replacing a block's output: what the model's output does, against plain runs and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from probe import patching, replay
from probe.errors import InputError
from tests.plant.tiny import VOCABULARY, tiny_model

WINDOWS, LENGTH, LAYER = 2, 12, 1
POSITIONS = torch.tensor([[2, 7, 10], [3, 4, 11]])


def _tokens():
    return torch.randint(0, VOCABULARY - 8, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(3))


def _recorded(architecture):
    model, tokens = tiny_model(architecture), _tokens()
    context = replay.record(model, tokens, POSITIONS)
    generator = torch.Generator().manual_seed(4)
    after = context.states[LAYER + 1]
    pushed = after + 0.3 * after.std() * torch.randn(after.shape, generator=generator)
    return model, tokens, context, pushed


def _logits_with_output(model, tokens, replacement):
    """Logits of the whole model when block LAYER puts out `replacement`, by a plain hook."""

    def overwrite(module, args, output):
        return replacement if isinstance(output, torch.Tensor) else (replacement, *output[1:])

    handle = model.blocks[LAYER].register_forward_hook(overwrite)
    with torch.no_grad():
        logits = model.forward(tokens)
    handle.remove()
    return logits


def _kl(model, tokens, replacement):
    with torch.no_grad():
        log_p = model.forward(tokens).double().log_softmax(-1)
    log_q = _logits_with_output(model, tokens, replacement).double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)  # (window, position)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "mamba2"])
def test_one_position_equals_a_full_run(architecture):
    model, tokens, context, pushed = _recorded(architecture)
    chosen = pushed.gather(1, POSITIONS[..., None].expand(-1, -1, model.d_model))
    outcome = patching.one_position(context, LAYER, chosen[:, None])
    with torch.no_grad():
        original = model.forward(tokens)
    for window in range(WINDOWS):
        for column, position in enumerate(POSITIONS[window].tolist()):
            replacement = context.states[LAYER + 1].clone()
            replacement[window, position] = pushed[window, position]
            changed = _logits_with_output(model, tokens, replacement)[window, position]
            log_p, log_q = original[window, position].log_softmax(-1), changed.log_softmax(-1)
            at = (0, window, column)
            assert outcome["kl"][at] == pytest.approx((log_p.exp() * (log_p - log_q)).sum().item(), rel=2e-3, abs=1e-6)
            assert outcome["logit_distance"][at] == pytest.approx(
                (changed - original[window, position]).norm().item(), rel=1e-3
            )
            cosine = torch.cosine_similarity(changed, original[window, position], dim=0).item()
            assert outcome["logit_cosine"][at] == pytest.approx(cosine, abs=1e-5)
            assert outcome["top1"][at] == float(changed.argmax() == original[window, position].argmax())
            if position == LENGTH - 1:
                assert math.isnan(outcome["loss_change"][at])
            else:
                following = tokens[window, position + 1]
                change = (log_p[following] - log_q[following]).item()
                assert outcome["loss_change"][at] == pytest.approx(change, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_later_positions_are_summed(architecture):
    model, tokens, context, pushed = _recorded(architecture)
    chosen = pushed.gather(1, POSITIONS[..., None].expand(-1, -1, model.d_model))
    found = patching.one_position_later(context, LAYER, chosen[:, None])
    for window in range(WINDOWS):
        for column, position in enumerate(POSITIONS[window].tolist()):
            replacement = context.states[LAYER + 1].clone()
            replacement[window, position] = pushed[window, position]
            expected = _kl(model, tokens, replacement)[window, position:].sum().item()
            assert found[0, window, column] == pytest.approx(expected, rel=5e-3, abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_all_positions_equal_a_full_run(architecture):
    model, tokens, context, pushed = _recorded(architecture)
    counted = torch.ones(WINDOWS, LENGTH, dtype=torch.bool)
    counted[:, 0] = False
    found = patching.all_positions(context, LAYER, torch.stack([context.states[LAYER + 1], pushed], 1), counted)
    replacement = torch.where(counted[..., None], pushed, context.states[LAYER + 1])
    expected = _kl(model, tokens, replacement).gather(1, POSITIONS)
    assert found["kl"][0].abs().max() < 1e-5  # put back what was there
    torch.testing.assert_close(found["kl"][1].double(), expected, rtol=5e-3, atol=1e-5)


def test_putting_back_what_was_there_changes_nothing():
    context = _recorded("llama")[2]
    outcome = patching.one_position(context, LAYER, context.state(LAYER + 1)[:, None])
    assert outcome["kl"].max() < 1e-5
    assert outcome["top1"].min() == 1
    assert outcome["logit_cosine"].min() > 1 - 1e-5


def test_divergence_has_its_closed_form():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    assert patching.kl_divergence(p.log(), q.log()).item() == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert patching.kl_divergence(p.log(), p.log()).item() == 0
    # KL is not symmetric: against the other way round
    r = torch.tensor([0.8, 0.1, 0.1])
    assert patching.kl_divergence(p.log(), r.log()).item() == pytest.approx(
        0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.25 / 0.1), rel=1e-6
    )


def test_small_changes_have_the_divergence_of_the_fisher_metric():
    """KL ≈ ½ dzᵀ (diag p − p pᵀ) dz for a small change dz of the logits."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, generator=generator, dtype=torch.float64)
    dz = 1e-3 * torch.randn(50, generator=generator, dtype=torch.float64)
    p = z.softmax(0)
    expected = 0.5 * ((p * dz**2).sum() - (p * dz).sum() ** 2)
    found = patching.kl_divergence(z.log_softmax(0), (z + dz).log_softmax(0))
    assert found.item() == pytest.approx(expected.item(), rel=0.02)


def test_the_token_that_follows():
    tokens = torch.tensor([[5, 6, 7]])
    assert patching.following_tokens(tokens).tolist() == [[6, 7, -1]]


@pytest.mark.parametrize("measures", [("kl", "divergence"), "kl"])
def test_a_measure_that_is_not_there_is_refused(measures):
    context = _recorded("llama")[2]
    with pytest.raises(InputError, match="measures= must be"):
        patching.one_position(context, LAYER, context.state(LAYER + 1)[:, None], measures=measures)


def test_rows_do_not_depend_on_how_many_are_held_at_once():
    model, _, context, pushed = _recorded("gpt2")
    original, replaced = context.states[LAYER][0], pushed[:1]
    following = torch.full((LENGTH,), 3)
    whole = patching.compare_outputs(model, original, replaced, following)
    parts = patching.compare_outputs(model, original, replaced, following, rows_at_once=5)
    torch.testing.assert_close(whole["kl"], parts["kl"], rtol=1e-4, atol=1e-6)
