"""Direct logit attribution: what each part of a model adds to a logit, with the final norm's statistics held fixed."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from probe.boundary import public
from probe.errors import InputError
from probe.jacobian import detached_tail
from probe.model import HuggingFaceModel, LanguageModel, token_of, undisturbed
from probe.stream import ResidualStream, capture
from probe.text import Given, Which, as_rows

__all__ = ["logit_attribution"]


def __dir__() -> list[str]:
    return __all__


By = Literal["block", "sublayer", "head"]
_WRITES = ("hook_attn_out", "hook_mixer_out", "hook_mlp_out")


@public
@undisturbed()
@torch.no_grad()
def logit_attribution(
    model: LanguageModel,
    prompts: Given,
    token: str | int | tuple[str | int, str | int],
    *,
    positions: Which = "last",
    by: By = "sublayer",
) -> xr.Dataset:
    r"""Divide a logit, or the difference of two, among the parts that add to the stream.

    .. math:: z = \sum_c \langle w(x), c \rangle + b, \qquad x = \sum_c c

    where x is the stream behind the last block, c what each part has added to it, and w(x) the direction of the logit
    as the final norm reads it with its root mean square or standard deviation held at that of x. The sum is exact. A
    soft cap comes behind it and is left out.

    Args:
        model: The model.
        prompts: What `probe.capture` takes.
        token: The token, as text of one token or as its id; or two of them, for the first logit minus the second.
        positions: Positions of each prompt: indices, "last", "counted", or a `probe.Substring`.
        by: Parts: each "block"; each "sublayer" (attention or mixer, and MLP); or each attention "head" and MLP.

    Returns:
        Variables `attribution` (part, row) and `logit` (row), float64; the coordinates `part` (its name), `layer` (-1
        for the embedding and for the constant) and `head` (-1 where there is none) along `part`, `window` and
        `position` along `row`. Attributions of all parts sum to the logit.

    Raises:
        InputError: If the token is not one, or the model's parts do not add up to its stream: by="block" always does.
    """
    if by not in get_args(By):
        raise InputError(f"by= must be one of {', '.join(get_args(By))}, got {by!r}: choose one")
    if not isinstance(model, HuggingFaceModel):
        raise InputError(
            f"an attribution needs a model that was laid out from its module, and {type(model).__name__} was not: load "
            "it with load_model"
        )
    rows = as_rows(model, prompts)
    windows, where = rows.chosen(positions)
    writes = [] if by == "block" else [short for short in _WRITES if f"blocks.0.{short}" in model.sites]
    heads = ["attn.hook_z"] if by == "head" else []
    stream = capture(model, rows, sites=["hook_resid_pre", "hook_resid_post", *writes, *heads])
    final = stream.at(("resid_post", model.n_layers - 1), positions)
    direction, constant, logit = _direction(model, final, token)
    parts: list[tuple[str, int, int, Tensor]] = [
        ("embedding", -1, -1, _along(direction, stream.at(("resid_pre", 0), positions)))
    ]
    for layer in range(model.n_layers):
        parts += _of_block(model, stream, layer, positions, by, direction)
    parts.append(("constant", -1, -1, constant))
    values = torch.stack([value for *_, value in parts])
    off = (values.sum(0) - logit).abs().max()
    if not off <= 1e-3 * max(1.0, float(values.abs().sum(0).max())):
        raise InputError(
            f"parts must add up to the logit, and by={by!r} those of {model.name} ({model.architecture}) are off by "
            f'{float(off):.2g}: take by="block"'
        )
    return xr.Dataset(
        {
            "attribution": (("part", "row"), values.numpy(), {"long_name": "share of the logit", "units": "logit"}),
            "logit": ("row", logit.numpy(), {"long_name": "logit before a soft cap", "units": "logit"}),
        },
        coords={
            "part": [name for name, *_ in parts],
            "layer": ("part", [layer for _, layer, *_ in parts]),
            "head": ("part", [head for *_, head, _ in parts]),
            "window": ("row", windows.numpy()),
            "position": ("row", where.numpy()),
        },
        attrs={"model": model.name, "token": str(token)},
    )


def _along(direction: Tensor, states: Tensor) -> Float[Tensor, " row"]:
    return (direction * states.double()).sum(-1)


def _direction(
    model: HuggingFaceModel, final: Tensor, token: str | int | tuple[str | int, str | int]
) -> tuple[Float[Tensor, "row d"], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """The direction of the logit at each row, the constant that is no part's, and the logit."""
    chosen = [token_of(model, one) for one in (token if isinstance(token, tuple) else (token,))]
    point = final.double().requires_grad_()
    with torch.enable_grad():
        logits = detached_tail(model, torch.float64)(point)[..., chosen]
        logit = logits[..., 0] - logits[..., 1] if len(chosen) == 2 else logits[..., 0]
        (direction,) = torch.autograd.grad(logit.sum(), point)
    return direction, (logit - (direction * point).sum(-1)).detach(), logit.detach()


def _of_block(
    model: HuggingFaceModel, stream: ResidualStream, layer: int, positions: Which, by: By, direction: Tensor
) -> list[tuple[str, int, int, Tensor]]:
    if by == "block":
        _, update = stream.updates(layer, positions)
        return [(f"block {layer}", layer, -1, _along(direction, update))]
    found: list[tuple[str, int, int, Tensor]] = []
    for short in _WRITES:
        if (short, layer) not in stream:
            continue
        kind = short.removeprefix("hook_").removesuffix("_out")
        written = _along(direction, stream.at((short, layer), positions))
        if by == "head" and short == "hook_attn_out":
            split = _heads(model, stream, layer, positions, direction)
            found += [(f"{layer}.{head}", layer, head, value) for head, value in enumerate(split)]
            written, kind = written - torch.stack(split).sum(0), "attn bias"
        found.append((f"{kind} {layer}", layer, -1, written))
    return found


def _heads(
    model: HuggingFaceModel, stream: ResidualStream, layer: int, positions: Which, direction: Tensor
) -> list[Tensor]:
    kind = model.at(layer)
    if ("attn.hook_z", layer) not in stream or (kind.form is not None and kind.form.attention_out_norm is not None):
        raise InputError(
            f"heads add to the stream by the matrix o alone, and in block {layer} of {model.name} "
            f'({model.architecture}) they do not: take by="sublayer"'
        )
    z = stream.at(("attn.hook_z", layer), positions).double()
    factor = model.site(f"blocks.{layer}.hook_attn_out").factor
    output = model.projections(layer)["o"].double().unflatten(1, z.shape[-2:])
    read = torch.einsum("nd,dhk->nhk", direction, output.cpu())
    return list((factor * read * z).sum(-1).T)
