"""Interventions written by hand: a plain hook on the module that a site names."""

from __future__ import annotations

from contextlib import contextmanager

import torch

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma3", "mamba")
"""Grouped queries, learned positions, a parallel block, a sliding window behind sandwich norms, a carried state."""


@contextmanager
def written(model, name, change):
    """Replace the first input or output of the site's module by `change` of it, which may write into what it gets."""
    site = model.site(name)

    def before(module, args, kwargs):
        if args:
            return (change(args[0].clone()), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"].clone())}

    def after(module, args, output):
        if isinstance(output, torch.Tensor):
            return change(output.clone())
        return (change(output[0].clone()), *output[1:])

    handle = (
        site.module.register_forward_pre_hook(before, with_kwargs=True)
        if site.side == "input"
        else site.module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


def logits_with(model, tokens, name, change):
    with written(model, name, change), torch.no_grad():
        return model.forward(tokens)


def hooks_of(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.module.modules())


def close(found, expected, tolerance=1e-5):
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
