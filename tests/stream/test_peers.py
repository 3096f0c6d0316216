"""Sites and interventions by TransformerLens, on a copy of the same module: same names, same numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from probe.attribution import logit_attribution
from probe.model import changed, load_model
from probe.stream import capture
from tests.plant.tiny import tiny_module, tiny_tokens

FAMILIES = pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "qwen3"])


def bridge_of(module: Any) -> Any:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    twin = copy.deepcopy(module)
    return build_bridge_from_module(twin, type(twin).__name__, hf_config=twin.config, device="cpu")


@FAMILIES
def test_a_cache_of_the_peer_holds_the_same_tensors(architecture: str) -> None:
    module, tokens = tiny_module(architecture), tiny_tokens()
    model = load_model(module)
    with torch.no_grad():
        _, cache = bridge_of(module).run_with_cache(tokens)
    stream = capture(model, tokens, sites=[name for name in model.sites if name.startswith("blocks.")])
    names = [name for name in stream if name in cache]
    assert len(names) >= 4 * 11, names
    for name in names:
        theirs = cache[name]
        theirs = theirs.transpose(1, 2) if name.endswith("hook_pattern") else theirs  # theirs has heads before queries
        torch.testing.assert_close(stream[name], theirs.reshape(stream[name].shape), rtol=1e-4, atol=1e-5)


@FAMILIES
@pytest.mark.parametrize("site", ["attn.hook_z", "hook_mlp_out", "hook_resid_pre", "attn.hook_v", "mlp.hook_post"])
def test_an_intervention_of_the_peer_gives_the_same_logits(architecture: str, site: str) -> None:
    module, tokens = tiny_module(architecture), tiny_tokens()
    model, name = load_model(module), f"blocks.2.{site}"

    def halve(tensor: Tensor, **_: Any) -> Tensor:
        tensor = tensor.clone()
        tensor[:, 3:7] *= 0.5
        return tensor

    with torch.no_grad():
        theirs = bridge_of(module).run_with_hooks(tokens, fwd_hooks=[(name, lambda tensor, hook: halve(tensor))])
        with changed(model, {name: halve}):
            ours = model.forward(tokens)
        assert (ours - model.forward(tokens)).abs().max() > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_peer_attributes_the_logit_alike(architecture: str) -> None:
    """Direct logit attribution: its scaled components times a row of the unembedding."""
    module, tokens = tiny_module(architecture), tiny_tokens()
    model, bridge = load_model(module), bridge_of(module)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens)
    found = logit_attribution(model, tokens, 7)
    scale, norm = cache["ln_final.hook_scale"][:, -1], module.get_submodule(model.found.tail.norm)  # type: ignore[attr-defined]
    row = module.get_output_embeddings().weight[7].detach() * norm.weight.detach()
    for layer in range(model.n_layers):
        for kind in ("attn", "mlp"):
            written = cache[f"blocks.{layer}.hook_{kind}_out"][:, -1]
            centred = written - written.mean(-1, keepdim=True) if architecture == "gpt2" else written
            theirs = (centred / scale * row).sum(-1)
            ours = torch.tensor(found["attribution"].sel(part=f"{kind} {layer}").values)
            torch.testing.assert_close(ours.float(), theirs, rtol=1e-3, atol=1e-4)
