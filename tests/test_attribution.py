"""Shares of a logit, against the logit itself and against parts that are taken out by hand."""

from __future__ import annotations

import pytest
import torch

from probe.attribution import logit_attribution
from probe.model import changed
from tests.plant.refusing import refused
from tests.plant.tiny import ARCHITECTURES, RECURRENT, tiny_model, tiny_tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("by", ["block", "sublayer"])
def test_shares_sum_to_the_logit(architecture: str, by: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens()
    found = logit_attribution(model, tokens, (7, 11), positions=[3, -1], by=by)  # type: ignore[arg-type]
    with torch.no_grad():
        logits = model.forward(tokens)[:, [3, -1]]
    cap = model.found.tail.cap
    logits = logits if cap is None else cap * torch.atanh(logits / cap)
    expected = (logits[..., 7] - logits[..., 11]).flatten().double()
    torch.testing.assert_close(torch.tensor(found["logit"].values), expected, rtol=1e-4, atol=1e-4)
    total = torch.tensor(found["attribution"].sum("part").values)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)
    assert found["position"].values.tolist() == [3, 15] * 3
    assert found["window"].values.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "opt", "phi", "qwen3"])
def test_heads_sum_to_their_sublayer(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens()
    heads = logit_attribution(model, tokens, 7, by="head")
    whole = logit_attribution(model, tokens, 7)
    for layer in range(model.n_layers):
        there = heads["attribution"].isel(part=(heads["layer"] == layer).values)
        names = [str(name) for name in there["part"].values if not str(name).startswith("mlp")]
        total = there.sel(part=names).sum("part")
        torch.testing.assert_close(
            torch.tensor(total.values), torch.tensor(whole["attribution"].sel(part=f"attn {layer}").values)
        )


def test_the_last_sublayer_is_worth_what_it_takes_away() -> None:
    """With the norm's scale held by hand, the logit without the last MLP is less by that MLP's share."""
    model, tokens = tiny_model("llama"), tiny_tokens()
    name = f"blocks.{model.n_layers - 1}.hook_mlp_out"
    found = logit_attribution(model, tokens, 7)
    share = torch.tensor(found["attribution"].sel(part=f"mlp {model.n_layers - 1}").values)
    norm, scale = model.module.model.norm, []
    handle = norm.register_forward_pre_hook(lambda _, args: scale.append(args[0].square().mean(-1, keepdim=True)))
    with torch.no_grad():
        before = model.forward(tokens)[:, -1, 7]
        with changed(model, {name: torch.zeros_like}):
            after = model.forward(tokens)[:, -1, 7]
    handle.remove()
    rescaled = after * ((scale[1] + norm.variance_epsilon) / (scale[0] + norm.variance_epsilon)).sqrt()[:, -1, 0]
    torch.testing.assert_close((before - rescaled).double(), share, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_divided_is_refused() -> None:
    llama, gemma = tiny_model("llama", with_tokenizer=True), tiny_model("gemma3")
    refused(lambda: logit_attribution(llama, "abc", "ab"), "2 ('a', 'b')", "one token")
    refused(lambda: logit_attribution(llama, "abc", 600), "0 … 263")
    refused(lambda: logit_attribution(gemma, tiny_tokens(), 7, by="head"), "matrix o", 'by="sublayer"')
    assert RECURRENT
    refused(lambda: logit_attribution(llama, "abc", "a", positions="none"), '"last"')
