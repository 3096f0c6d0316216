"""Prompts before and after an intervention: logits against plain hooks, measures against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probe
from probe.errors import InputError
from probe.patching.effects import measured
from tests.patching.by_hand import FAMILIES, close, hooks_of, logits_with
from tests.plant.tiny import tiny_model, tiny_tokens

PROMPTS = [tiny_tokens(1, length, seed=length)[0] for length in (16, 9, 16)]


def _plain(model, prompt, name, change, read=-1):
    return logits_with(model, prompt[None], name, change)[0, read]


@pytest.mark.parametrize("short", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_unequal_lengths_equal_plain_hooks(family, short):
    model = tiny_model(family)
    name = f"blocks.2.{short}"
    if name not in model.sites:
        name = "blocks.2.hook_mixer_out"
    value = torch.randn(3, 1, model.d_model, generator=torch.Generator().manual_seed(2))
    found = probe.patch(model, PROMPTS, {name: value}, positions=[-2], batch_size=1 if family == "gpt2" else 8)
    for row, prompt in enumerate(PROMPTS):

        def change(tensor, row=row):
            tensor[:, -2] = value[row, 0]
            return tensor

        close(found.after[row, 0], _plain(model, prompt, name, change))
        with torch.no_grad():
            close(found.before[row, 0], model.forward(prompt[None])[0, -1])
    assert found["kl"].min() > 1e-6
    assert hooks_of(model) == 0


@pytest.mark.parametrize("side", ["pre", "post"])
@pytest.mark.parametrize("layer", [0, 3])
def test_late_and_early_edits_of_the_stream_agree(layer, side, monkeypatch):
    """Those in the second half run by replay, others by hooks."""
    model, tokens = tiny_model("llama"), tiny_tokens(2, 16)
    edits, read = {f"blocks.{layer}.hook_resid_{side}": lambda part: 2 * part.flip(-1)}, [9, 12, 15]
    replays = []
    monkeypatch.setattr(probe.replay.Context, "run_suffix", _counted(probe.replay.Context.run_suffix, replays))
    by_replay = probe.patch(model, tokens, edits, positions=[10, 13], read=read)
    assert len(replays) == 1
    both = probe.patch(model, tokens, edits, positions=[10, 13, 2], read=read)
    assert len(replays) == 1
    with probe.intervene(model, edits, positions=[10, 13]) as run:
        close(by_replay.after, run(tokens, read=read))
    close(by_replay.before, both.before)
    assert by_replay["kl"][:, 0].max() < 1e-9  # before the edit nothing moves
    assert layer == 3 or both["kl"][:, 0].min() > 1e-6  # what leaves the last block moves no other position


def _counted(function, calls):
    def counted(*args):
        calls.append(1)
        return function(*args)

    return counted


def test_an_intervention_under_way_is_met_before_and_after():
    model, tokens = tiny_model("llama"), tiny_tokens(2, 16)
    ablated = {"blocks.1.hook_attn_out": 0.0}
    with probe.intervene(model, ablated):
        found = probe.patch(model, tokens, {"blocks.2.hook_resid_pre": 1.0})
    with torch.no_grad():
        close(found.before[:, 0], logits_with(model, tokens, "blocks.1.hook_attn_out", torch.zeros_like)[:, -1])
    with probe.intervene(model, ablated), probe.intervene(model, {"blocks.2.hook_resid_pre": 1.0}, positions=[-1]):
        close(found.after[:, 0], model.forward(tokens)[:, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_putting_back_what_is_there_changes_nothing(family):
    model = tiny_model(family)
    for short in ("hook_resid_pre", "hook_resid_post"):
        found = probe.patch(model, PROMPTS, {f"blocks.1.{short}": lambda part: part}, positions=[-1, 3])
        close(found.after, found.before, 2e-6)
        assert found["top1"].min() == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_another_prompt_s_first_states_give_its_output(family):
    model = tiny_model(family)
    clean, corrupted = tiny_tokens(1, 12, seed=1), tiny_tokens(1, 12, seed=2)
    states = probe.capture(model, clean, sites=["hook_resid_pre"], layers=[0])["blocks.0.hook_resid_pre"]
    found = probe.patch(model, corrupted, {"blocks.0.hook_resid_pre": states}, positions=None, read=[3, 11])
    with torch.no_grad():
        close(found.after[0], model.forward(clean)[0, [3, 11]])
        close(found.before[0], model.forward(corrupted)[0, [3, 11]])


def test_measures_have_their_closed_forms():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    tokens = torch.tensor([[0, 2]])
    before, after = (7 + side.log()[None] for side in (p, q))
    assert measured("kl", after, reference=before).item() == pytest.approx(0.25 * np.log(2))
    assert measured("logit_difference", after, tokens=tokens).item() == pytest.approx(-np.log(2))
    assert measured("loss", before, tokens=tokens).item() == pytest.approx(np.log(2))
    assert measured("rank", before, tokens=tokens).item() == 0
    assert measured("rank", after, tokens=tokens).item() == 1
    assert measured("top1", after, reference=before).item() == 0
    assert np.isnan(measured("loss", before, tokens=torch.tensor([[-1]])).item())
    assert np.isnan(measured("rank", before, tokens=torch.tensor([[-1]])).item())


def test_the_result_says_what_the_logits_say():
    model = tiny_model("llama", with_tokenizer=True)
    found = probe.patch(
        model, ["The tower", "A bridge is", "Ships"], {"blocks.2.hook_mlp_out": 0.0}, read=[-2, -1], tokens=("a", "e")
    )
    a, e = model.encode("a")[0], model.encode("e")[0]
    difference = (found.after[..., a] - found.after[..., e]) - (found.before[..., a] - found.before[..., e])
    close(found["logit_difference_change"], difference.double())
    close(found["loss_before"], -found.before.log_softmax(-1)[..., a].double())
    close(found["rank_after"], (found.after > found.after[..., a, None]).sum(-1).double())
    assert found["kl"][:, 0].max() < 1e-9
    table = found.table()
    assert len(table) == 6
    assert table["text"].iloc[0] == "The tower"
    assert table["position"].tolist() == [7, 8, 9, 10, 3, 4]
    best = found.after[1, 1].argmax().item()
    assert table["predicted_after"].iloc[3] == model.tokenizer.decode([best])
    interval = found.interval("kl", seed=1)
    assert interval.estimate == pytest.approx(found["kl"].mean())
    assert interval.n_units == 3
    assert interval.low < interval.estimate < interval.high
    assert f"kl={found['kl'].mean():.3g}" in repr(found)
    assert "logit_difference_change" in found._repr_html_()


def test_without_named_tokens_the_next_one_counts():
    model, tokens = tiny_model("gpt2"), tiny_tokens(2, 10)
    found = probe.patch(model, tokens, {("blocks.1.attn.hook_z", 1): 0.0}, positions=None, read=[4, 9])
    following = found.after[:, 0].log_softmax(-1).gather(1, tokens[:, 5:6])[:, 0]
    close(found["loss_after"][:, 0], -following.double())
    assert np.isnan(found["loss_after"][:, 1]).all()
    assert found.interval("loss_change").n_units == 2
    last = probe.patch(model, tokens, {("blocks.1.attn.hook_z", 1): 0.0})
    with pytest.raises(InputError, match="one of kl, top1, got 'loss_change'"):
        last["loss_change"]


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (("ab", "e"), "'ab' is 2 \\('a', 'b'\\)"),
        ((1, 999), "0 … 263 .*, got 999"),
        ([("a", "e"), ("a",)], "2, 1"),
    ],
)
def test_tokens_that_cannot_be_compared_are_refused(tokens, says):
    model = tiny_model("llama", with_tokenizer=True)
    with pytest.raises(InputError, match=says):
        probe.patch(model, ["One", "Two"], {"blocks.1.hook_mlp_out": 0.0}, tokens=tokens)


def test_an_array_without_a_row_for_each_prompt_is_refused():
    model = tiny_model("llama")
    with pytest.raises(InputError, match=r"= \(3, 1, 32\), got \(2, 1, 32\)"):
        probe.patch(model, PROMPTS, {"blocks.1.hook_mlp_out": torch.zeros(2, 1, 32)})
