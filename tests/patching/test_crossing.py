"""Activation patching, against one hooked pass for each layer and position."""

from __future__ import annotations

import itertools

import jaxtyping
import numpy as np
import pytest
import torch

import probe
from probe.errors import InputError
from probe.patching import activation_patching
from tests.patching.by_hand import FAMILIES, close, hooks_of, written
from tests.plant.tiny import LAYERS, RECURRENT, tiny_model, tiny_tokens

LENGTH, RIGHT, WRONG = 9, 17, 203
CLEAN = tiny_tokens(1, LENGTH, seed=1)[0]
CORRUPTED = torch.cat([CLEAN[:2], tiny_tokens(1, LENGTH - 2, seed=2)[0]])


def _difference(logits):
    return (logits[..., RIGHT] - logits[..., WRONG]).double()


def _states(model, tokens, short):
    """The site's tensors as a module's own input or output, by layer."""
    found = {}
    for layer in range(LAYERS):

        def keep(tensor, layer=layer):
            found[layer] = tensor.clone()
            return tensor

        with written(model, f"blocks.{layer}.{short}", keep), torch.no_grad():
            model.forward(tokens[None])
    return found


def _by_hand(model, short, heads=1, clean=CLEAN, corrupted=CORRUPTED):
    """Logit differences (layer, position, head) of the corrupted run with clean states, a row for each."""
    source = _states(model, clean, short)
    places = list(itertools.product(range(len(clean)), range(heads)))
    found = []
    for layer in range(LAYERS):

        def change(tensor, layer=layer):
            width = tensor.shape[-1] // heads
            tensor = tensor.view(len(places), len(clean), -1)  # a module may join windows and positions
            for row, (position, head) in enumerate(places):
                own = slice(head * width, (head + 1) * width)
                tensor[row, position, own] = source[layer].view(len(clean), -1)[position, own]
            return tensor

        with written(model, f"blocks.{layer}.{short}", change), torch.no_grad():
            found.append(_difference(model.forward(corrupted.expand(len(places), -1))[:, -1]))
    return torch.stack(found).unflatten(1, (len(clean), heads))


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_patch_equals_a_hooked_pass(family, site):
    model = tiny_model(family)
    if family in RECURRENT and site in ("attn_out", "mlp_out"):
        site = "mixer_out"
    found = activation_patching(model, CLEAN, CORRUPTED, site=site, tokens=(RIGHT, WRONG))
    close(found.effect.values[0], _by_hand(model, f"hook_{site}", 1)[..., 0])
    with torch.no_grad():
        clean, corrupted = (_difference(model.forward(tokens[None])[0, -1]) for tokens in (CLEAN, CORRUPTED))
    close(found.data["clean"].values[0], clean)
    close(found.data["corrupted"].values[0], corrupted)
    close(found.normalised.values, (found.effect.values - corrupted.numpy()) / (clean - corrupted).numpy())
    assert hooks_of(model) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3"])
def test_each_head_equals_a_hooked_pass(family):
    model = tiny_model(family)
    found = activation_patching(model, CLEAN, CORRUPTED, site="attn.hook_z", tokens=(RIGHT, WRONG))
    assert found.effect.dims == ("pair", "layer", "position", "head")
    close(found.effect.values[0], _by_hand(model, "attn.hook_z", 4))


def test_a_site_that_acts_on_later_positions_of_its_block_runs_whole():
    model = tiny_model("llama")
    found = activation_patching(model, CLEAN, CORRUPTED, site="attn.hook_v", tokens=(RIGHT, WRONG))
    close(found.effect.values[0], _by_hand(model, "attn.hook_v", 2))


def test_a_block_that_looks_back_behind_the_site_is_found_out(monkeypatch):
    """An MLP that reads the position before: what attention writes at one position then acts on the next one."""
    model = tiny_model("llama")
    for block in model.blocks:
        own = block.mlp.forward
        monkeypatch.setattr(
            block.mlp, "forward", lambda x, own=own: own(x + torch.roll(x, 1, 1).index_fill(1, _FIRST, 0))
        )
    found = activation_patching(model, CLEAN, CORRUPTED, site="attn_out", tokens=(RIGHT, WRONG))
    close(found.effect.values[0], _by_hand(model, "hook_attn_out", 1)[..., 0])


_FIRST = torch.tensor([0])


def test_blocks_that_are_given_more_than_the_stream_run_in_whole_passes(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr("probe.replay.is_chained", lambda _: False)
    for site, name, heads in (("resid_post", "hook_resid_post", 1), ("attn.hook_z", "attn.hook_z", 4)):
        found = activation_patching(model, CLEAN, CORRUPTED, site=site, tokens=(RIGHT, WRONG), layers=[2])
        close(found.effect.values[0].reshape(1, LENGTH, -1), _by_hand(model, name, heads)[2:3])


def test_directions_are_each_other_s_with_the_prompts_exchanged():
    model = tiny_model("gpt_neox")
    noising = activation_patching(model, CLEAN, CORRUPTED, tokens=(RIGHT, WRONG), direction="noising")
    denoising = activation_patching(model, CORRUPTED, CLEAN, tokens=(RIGHT, WRONG))
    close(noising.effect.values, denoising.effect.values)
    close(noising.normalised.values, 1 - denoising.normalised.values)
    # the last position of the last stream is the whole output
    assert noising.normalised.values[0, :, :2] == pytest.approx(1)  # the first tokens are the same
    post = activation_patching(model, CLEAN, CORRUPTED, site="resid_post", tokens=(RIGHT, WRONG), direction="noising")
    assert post.normalised.values[0, -1, -1] == pytest.approx(0, abs=1e-5)


def test_a_prompt_into_itself_changes_nothing():
    model = tiny_model("llama")
    found = activation_patching(model, CLEAN, CLEAN, tokens=(RIGHT, WRONG))
    assert np.ptp(found.effect.values) == 0
    assert np.isnan(found.normalised.values).all()  # there is no difference to restore
    assert "largest" not in found._repr_html_()


@pytest.mark.parametrize("measure", ["kl", "loss", "rank"])
def test_measures(measure):
    model, read = tiny_model("llama"), 6
    found = activation_patching(model, CLEAN, CORRUPTED, measure=measure, read=read, site="resid_post", layers=[1, 3])
    with torch.no_grad():
        clean, corrupted = (model.forward(tokens[None])[0, read].double() for tokens in (CLEAN, CORRUPTED))
    log_p, log_q, following = clean.log_softmax(-1), corrupted.log_softmax(-1), CLEAN[read + 1]
    expected = {
        "kl": (0.0, (log_p.exp() * (log_p - log_q)).sum()),
        "loss": (-log_p[following], -log_q[following]),
        "rank": ((clean > clean[following]).sum(), (corrupted > corrupted[following]).sum()),
    }[measure]
    assert found.data["clean"].item() == pytest.approx(float(expected[0]), abs=1e-6)
    assert found.data["corrupted"].item() == pytest.approx(float(expected[1]), rel=1e-4)
    assert found.data["layer"].values.tolist() == [1, 3]
    behind = found.effect.values[0][:, read + 1 :]
    assert (behind == found.data["corrupted"].item()).all()  # positions behind the one read
    assert found.normalised.values[0, -1, read] == pytest.approx(1, abs=1e-4)


def test_pairs_are_patched_each_by_itself_and_resampled():
    model = tiny_model("llama")
    clean = [CLEAN, CORRUPTED, CLEAN[:7]]
    corrupted = [CORRUPTED, CLEAN, CORRUPTED[:7]]
    found = activation_patching(model, clean, corrupted, tokens=(RIGHT, WRONG), positions=[-3, -1])
    for row, pair in enumerate(zip(clean, corrupted, strict=True)):
        alone = activation_patching(model, *pair, tokens=(RIGHT, WRONG), positions=[-3, -1])
        close(found.effect.values[row], alone.effect.values[0])
    intervals = found.intervals(seed=1)
    close(intervals["mean"].values, found.normalised.values.mean(0))
    inside = (intervals["low"] <= intervals["mean"]) & (intervals["mean"] <= intervals["high"])
    assert inside.all()
    table = found.table()
    assert len(table) == 3 * LAYERS * 2
    row = table[(table["pair"] == 2) & (table["layer"] == 1) & (table["position"] == 1)]
    assert row["effect"].item() == found.effect.sel(pair=2, layer=1, position=1).item()
    assert found.to_dataset() is found.data


def test_a_map_is_drawn_over_tokens_and_layers(monkeypatch):
    drawn = {}
    monkeypatch.setattr("probe.plots.token_layer_map", lambda values, **named: drawn.update(named, values=values))
    model = tiny_model("llama")
    found = activation_patching(
        model, [CLEAN, CORRUPTED], [CORRUPTED, CLEAN], site="z", tokens=(RIGHT, WRONG), layers=[2, 1], positions=[4, 8]
    )
    found.plot(head=3, title="A head")
    close(drawn["values"], found.normalised.values[..., 3].mean(0))
    assert (drawn["layers"], drawn["tokens"], drawn["title"]) == ([2, 1], ["4", "8"], "A head")
    with pytest.raises(InputError, match=r"head= must be one of 0 … 3, got None"):
        found.plot("effect")


def test_text_is_labelled_and_shown():
    model = tiny_model("llama", with_tokenizer=True)
    found = activation_patching(
        model, "The cat <b>", "The dog <b>", tokens=("a", "e"), positions=probe.Substring("cat", take="all"), layers=[0]
    )
    assert found.tokens == ["c/d", "a/o", "t/g"]
    assert found.data["position"].values.tolist() == [4, 5, 6]
    assert "largest effect" in found._repr_html_()
    assert repr(found) == "ActivationPatching(hook_resid_pre, logit_difference, denoising; pair=1, layer=1, position=3)"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"corrupted": "The dogs"}, r"have 7 .*\(T\|h\|e\| \|c\|a\|t\) and 8 .*\(T\|h"),
        ({"corrupted": ["The dog", "One"]}, "got 1 .* and 2 "),
        ({"clean": ["The cat", "A"], "corrupted": ["The dog", "B"]}, "of one length, and these have 1 to 7"),
        ({"tokens": None}, "needs two tokens"),
        ({"tokens": ("a",)}, "compares two tokens, got 1"),
        ({"tokens": None, "measure": "loss"}, "needs a token, or a position with a next one"),
        ({"measure": "entropy"}, "measure= must be one of 'logit_difference'"),
        ({"direction": "both"}, "direction= must be one of 'denoising', 'noising'"),
        ({"layers": [4]}, "0 … 3"),
        ({"read": [1, 2]}, "one position in each prompt, got 2"),
        ({"site": "nothing"}, "site"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, says, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of types
    model = tiny_model("llama", with_tokenizer=True)
    given = {"clean": "The cat", "corrupted": "The dog", "tokens": ("a", "e"), **arguments}
    with pytest.raises(InputError, match=says):
        activation_patching(model, **given)
