r"""Acting along lens directions, and how well the lens tells what will happen.

The direction of a token at layer l is its row of ``W_U J_l``. At a position with the state h behind block l, `steer`
adds to h, `ablate` takes a span out of it, `swap` exchanges two coordinates in it; call the change δ. The lens predicts
the change of the logits there as

.. math:: \mathrm{unembed}(h_L + J_l \delta) - \mathrm{unembed}(h_L),

with h_L the real stream behind the last block; a run of the blocks behind l measures it. By default each position is
changed by itself, all others as they were, so that both speak of the same position.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from probe import replay
from probe.boundary import public
from probe.directions import unembedding_rows
from probe.directions.vectors import GivenDirections, directions_of
from probe.errors import InputError
from probe.geometry import random_directions
from probe.lens.effect import LensEffect
from probe.lens.jacobian_lens import require_raw
from probe.lens.reading import Lens, Transport, _layers, own_lens
from probe.model import LanguageModel, undisturbed
from probe.patching import patch
from probe.patching.effects import token_ids, token_texts
from probe.patching.intervening import is_intervened
from probe.text import Given, TokenRows, Which, as_rows

logger = logging.getLogger("probe.lens")

Along = Literal["lens", "logit", "random"] | GivenDirections
"""Where directions come from: "lens", the rows of W_U J_l; "logit", those of W_U; "random", isotropic ones as long as
those of the lens; or directions of one's own, one for each token."""
Tokens = Sequence[int | str] | Int[Tensor, " token"] | Int[np.ndarray, " token"] | int | str
_PARALLEL = 0.99  # from this cosine on a swap is warned of
_SAME = 1 - 1e-6
_ROWS = 256  # rows of logits at a time
_ALTERNATIVES = 2048  # positions that pass through a block at a time

Change = Callable[[Tensor, Tensor], Tensor]
"""From states (..., d) and vectors (..., n, d) to the changes of the states, (..., direction, d); float64."""


def steered(states: Tensor, vectors: Tensor, strength: float | int = 0.05) -> Float[Tensor, "... n d"]:
    """Compute what steering adds, ``strength · ‖h‖ · v / ‖v‖``, for each vector by itself.

    Args:
        states: States h, (..., d).
        vectors: Vectors v, (..., n, d).
        strength: Norm of the change over that of the state.

    Returns:
        The changes, (..., n, d).
    """
    found: Tensor = (
        strength * states.norm(dim=-1, keepdim=True)[..., None] * torch.nn.functional.normalize(vectors, dim=-1)
    )
    return found


def ablated(states: Tensor, vectors: Tensor) -> Float[Tensor, "... 1 d"]:
    """Compute what projecting the span of all vectors out of states adds, ``−Q Qᵀ h``.

    Args:
        states: States h, (..., d).
        vectors: Vectors, (..., n, d); they may depend on each other.

    Returns:
        The change, (..., 1, d).
    """
    _, sizes, basis = torch.linalg.svd(torch.nn.functional.normalize(vectors, dim=-1), full_matrices=False)
    kept = sizes > sizes[..., :1] * max(vectors.shape[-2:]) * torch.finfo(sizes.dtype).eps
    share = (states[..., None, :] @ basis.mT) * kept[..., None, :]
    found: Tensor = -share @ basis
    return found


def swapped(states: Tensor, vectors: Tensor, strength: float | int = 1.0) -> Float[Tensor, "... 1 d"]:
    """Compute what the exchange of two coordinates adds, ``V (σ(c) − c)`` with ``c = V⁺ h`` and σ the exchange.

    Of two unit vectors it is a reflection, ``h − 2 w (w·h)`` with w along their difference.

    Args:
        states: States h, (..., d).
        vectors: The two vectors, (..., 2, d).
        strength: A multiple of the change.

    Returns:
        The change, (..., 1, d).
    """
    coordinates = states[..., None, :] @ torch.linalg.pinv(vectors)
    found: Tensor = strength * (coordinates.flip(-1) - coordinates) @ vectors
    return found


@public
def steer(
    model: LanguageModel,
    prompts: Given,
    lens: Lens,
    tokens: Tokens,
    *,
    layers: int | Sequence[int] | None = None,
    positions: Which = "last",
    strength: float | int = 0.05,
    along: Along = "lens",
    read: Tokens | None = None,
    together: bool = False,
    folded: bool = False,
    seed: int = 0,
) -> LensEffect:
    """Add ``strength · ‖h‖ · v̂`` to the stream behind a block, v̂ the unit direction of a token, each token by itself.

    Args:
        model: The model.
        prompts: What `probe.load_prompts` takes or gives.
        lens: What predicts, and by default gives the directions: a `JacobianLens`, an `AffineLens`, another affine
            `Transport`, "logit" (J = I) or "own" (the context's own Jacobian at each position).
        tokens: The tokens to steer towards: ids, or texts that are one token each.
        layers: The layers, each by itself: the stream behind these blocks; None: all that the lens has.
        positions: The same number in each prompt: indices, (P,) or (W, P), "last", or a `probe.Substring`.
        strength: Norm of what is added over that of the state; negative steers away.
        along: Where the directions come from: "lens", the rows of W_U J_l; "logit", those of W_U; "random", isotropic
            ones as long as the lens's; or directions of one's own, one for each token.
        read: Tokens whose logits are compared; None: of each direction that of its own token.
        together: Change all positions at once: then what is measured at a position includes what the changes before it
            do, which the prediction does not.
        folded: Take the rows of W_U with the final norm's gain folded in; by default those of the matrix, as the
            reference does.
        seed: Seed of random directions.

    Returns:
        The effect, over (layer, prompt, position, token); with `read`, (layer, prompt, position, direction, token).

    Raises:
        InputError: If the lens is of another model or lacks a layer, there is no such position or token, or directions
            are not one for each token.
    """
    ask = _Ask.of(model, prompts, lens, tokens, layers, positions, along, folded, seed, together)
    return _effect(ask, "steer", lambda states, vectors: steered(states, vectors, strength), read, each=True)


@public
def ablate(
    model: LanguageModel,
    prompts: Given,
    lens: Lens,
    tokens: Tokens,
    *,
    layers: int | Sequence[int] | None = None,
    positions: Which = "last",
    along: Along = "lens",
    read: Tokens | None = None,
    together: bool = False,
    folded: bool = False,
    seed: int = 0,
) -> LensEffect:
    """Project the span of the directions of several tokens out of the stream behind a block.

    Args:
        model: The model.
        prompts: As `steer` takes them.
        lens: As `steer` takes it.
        tokens: The tokens whose directions are taken out, all at once.
        layers: As `steer` takes them.
        positions: As `steer` takes them.
        along: As `steer` takes it.
        read: Tokens whose logits are compared; None: those that are taken out.
        together: As `steer` takes it.
        folded: As `steer` takes it.
        seed: Seed of random directions.

    Returns:
        The effect, over (layer, prompt, position, token).

    Raises:
        InputError: If the lens is of another model or lacks a layer, there is no such position or token, or directions
            are not one for each token.
    """
    ask = _Ask.of(model, prompts, lens, tokens, layers, positions, along, folded, seed, together)
    return _effect(ask, "ablate", ablated, read)


@public
def swap(
    model: LanguageModel,
    prompts: Given,
    lens: Lens,
    tokens: Tokens,
    *,
    layers: int | Sequence[int] | None = None,
    positions: Which = "last",
    strength: float | int = 1.0,
    unit: bool = False,
    along: Along = "lens",
    read: Tokens | None = None,
    together: bool = False,
    folded: bool = False,
    seed: int = 0,
) -> LensEffect:
    """Swap the coordinates of two tokens in the stream behind a block.

    With V the two directions and c = V⁺ h, the state becomes h + V (σ(c) − c). Directions of unequal length that are
    nearly parallel amplify: this is warned of from a cosine of .99 on. Of unit vectors the exchange is a reflection,
    which never does.

    Args:
        model: The model.
        prompts: As `steer` takes them.
        lens: As `steer` takes it.
        tokens: Two tokens.
        layers: As `steer` takes them.
        positions: As `steer` takes them.
        strength: A multiple of the change; 2 is the reference's double strength.
        unit: Take unit vectors; by default the directions as they are, as the reference does.
        along: As `steer` takes it.
        read: Tokens whose logits are compared; None: the two.
        together: As `steer` takes it.
        folded: As `steer` takes it.
        seed: Seed of random directions.

    Returns:
        The effect, over (layer, prompt, position, token).

    Raises:
        InputError: If there are not two different tokens or their directions are parallel, the lens is of another model
            or lacks a layer, or there is no such position or token.
    """
    ask = _Ask.of(model, prompts, lens, tokens, layers, positions, along, folded, seed, together)
    if len(ask.ids) != 2 or int(ask.ids[0]) == int(ask.ids[1]):
        raise InputError(f"a swap must be of two different tokens, got {ask.ids.tolist()}: pass a pair")
    warned = set[float]()

    def change(states: Tensor, vectors: Tensor) -> Tensor:
        taken = torch.nn.functional.normalize(vectors, dim=-1) if unit else vectors
        _require_apart(ask, taken, warned)
        return swapped(states, taken, strength)

    return _effect(ask, "swap", change, read)


def _require_apart(ask: _Ask, vectors: Float[Tensor, "*batch two d"], warned: set[float]) -> None:
    """Warn of directions that are nearly parallel, and refuse those that are."""
    cosine = torch.cosine_similarity(vectors[..., 0, :], vectors[..., 1, :], dim=-1).flatten()
    at = int(cosine.abs().argmax())
    largest = float(cosine[at])
    names = " and ".join(map(repr, token_texts(ask.model, ask.ids)))
    if abs(largest) > _SAME:
        raise InputError(
            f"two directions must differ to be swapped, and those of {names} have cosine {largest:.7f}: choose others"
        )
    if abs(largest) < _PARALLEL or largest in warned:
        return
    warned.add(largest)
    pair = vectors.flatten(0, -3)[at]
    gain = float(torch.linalg.matrix_norm(torch.linalg.pinv(pair) @ pair.flip(0), 2))
    logger.warning(
        "the directions of %s are nearly parallel, cosine %.4f: their swap multiplies what a state has in their plane "
        "by up to %.3g; unit=True makes it a reflection",
        names,
        largest,
        gain,
    )


@dataclass(frozen=True)
class _Ask:
    """A question, checked: which directions at which places."""

    model: LanguageModel
    rows: TokenRows
    lens: Lens
    ids: Int[Tensor, " token"]
    layers: list[int]
    where: Int[Tensor, "prompt position"]
    along: Any
    head: Float[Tensor, "token d"] | None
    seed: int
    together: bool

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        prompts: Given,
        lens: Lens,
        tokens: Tokens,
        layers: int | Sequence[int] | None,
        positions: Which,
        along: Along,
        folded: bool,
        seed: int,
        together: bool,
    ) -> _Ask:
        require_raw(model)
        if isinstance(lens, str):
            if lens not in ("logit", "own"):
                raise InputError(f'a lens must be "logit", "own" or a fitted one, got {lens!r}: pass one')
        else:
            lens.require(model)
        if is_intervened() and not together:
            raise InputError(
                "changes of one position by itself are measured on the plain pass, and an intervention is in place: "
                "leave its context, or pass together=True"
            )
        if isinstance(along, str) and along not in ("lens", "logit", "random"):
            raise InputError(f'along= must be "lens", "logit", "random" or directions, got {along!r}: choose one')
        rows = as_rows(model, prompts)
        ids = token_ids(model, tokens, 1)[0]
        if layers is None:
            layers = getattr(lens, "layers", None)
        if isinstance(along, str):
            head = unembedding_rows(model, ids, folded=folded).vectors
        else:
            along = directions_of(along, model.d_model, argument="along").vectors
            if len(along) != len(ids):
                raise InputError(
                    f"directions must be one for each of {len(ids)} tokens, got {len(along)}: pass as many"
                )
            head = None
        return cls(
            model, rows, lens, ids, _layers(model, layers), rows.positions(positions), along, head, seed, together
        )

    def matrices(self, layer: int, tokens: Tensor, where: Tensor) -> Float[Tensor, "prompt position d d"]:
        """Return the linear part of the lens, for some prompts; axes of one where it is the same for all."""
        identity = torch.eye(self.model.d_model)
        if layer == self.model.n_layers - 1 or self.lens == "logit":
            return identity[None, None].double()
        if isinstance(self.lens, str):
            return own_lens(self.model, tokens, where, layers=layer)[:, :, 0].double().cpu()
        lens: Transport = self.lens
        offset = lens.transport(torch.zeros(1, len(identity)), layer)
        return (lens.transport(identity, layer) - offset).double().mT[None, None]

    def vectors(self, layer: int, matrices: Tensor) -> Float[Tensor, "prompt position token d"]:
        """Return the directions at a layer."""
        if self.head is None:
            found: Tensor = self.along[None, None]
        elif self.along == "logit":
            found = self.head[None, None]
        else:
            found = self.head @ matrices
            if self.along == "random":
                generator = torch.Generator().manual_seed(self.seed * self.model.n_layers + layer)
                norms = found.norm(dim=-1).mean((0, 1))
                found = random_directions(norms, self.model.d_model, generator)[0][None, None]
        if not bool((found.isfinite().all(-1) & (found.norm(dim=-1) > 0)).all()):
            raise InputError(f"directions must be finite and not zero, and one at layer {layer} is not: leave it out")
        return found


@undisturbed()
@torch.no_grad()
def _effect(ask: _Ask, action: str, change: Change, read: Tokens | None, *, each: bool = False) -> LensEffect:
    """Predict and measure, layer by layer."""
    own = each and read is None
    chosen = ask.ids if read is None else token_ids(ask.model, read, 1, argument="read")[0]
    directions = len(ask.ids) if each else 1
    shape = (len(ask.layers), *ask.where.shape, directions)
    predicted, measured = (torch.empty(*shape, len(chosen)) for _ in range(2))
    size = torch.empty(shape)
    last, at_once = ask.model.n_layers, 1 if ask.lens == "own" else 8  # own matrices are d² a position
    for indices, group in ask.rows.groups():
        for these, tokens in zip(indices.split(at_once), group.split(at_once), strict=True):
            where = ask.where[these]
            first = min(ask.layers) + 1
            context = replay.record(ask.model, tokens, where, layers=range(min(first, last - 1), last))
            before = _logits(ask.model, context.state(last), chosen)
            for at, layer in enumerate(ask.layers):
                states = context.state(layer + 1)
                exact = states.double().cpu()
                matrices = ask.matrices(layer, tokens, where)
                delta = change(exact, ask.vectors(layer, matrices))
                new = (exact[:, :, None] + delta).to(states)
                delta = (new - states[:, :, None]).double().cpu()
                size[at, these] = (delta.norm(dim=-1) / exact.norm(dim=-1)[..., None]).float()
                carried = (delta @ matrices.mT).to(states.device)
                moved = (context.state(last).double()[:, :, None] + carried).to(states)
                predicted[at, these] = _logits(ask.model, moved, chosen) - before[:, :, None]
                measured[at, these] = _measured(ask, context, layer, new, chosen, tokens, where) - before[:, :, None]
    if own:
        predicted, measured = (side.diagonal(dim1=-2, dim2=-1) for side in (predicted, measured))
    elif not each:
        predicted, measured, size = predicted[..., 0, :], measured[..., 0, :], size[..., 0]
    data = _dataset(ask, predicted, measured, size, chosen, each=each, own=own)
    name = ask.lens if isinstance(ask.lens, str) else type(ask.lens).__name__
    return LensEffect(data, ask.model.name, action, name, ask.along if isinstance(ask.along, str) else "given")


def _measured(
    ask: _Ask,
    context: replay.Context,
    layer: int,
    new: Float[Tensor, "prompt position direction d"],
    chosen: Tensor,
    tokens: Tensor,
    where: Tensor,
) -> Float[Tensor, "prompt position direction token"]:
    """Logits of real runs with the new states in place."""
    if ask.together:
        site = f"blocks.{layer}.hook_resid_post"
        runs = [
            patch(ask.model, tokens, {site: new[:, :, one]}, positions=where, read=where).after[..., chosen]
            for one in range(new.shape[2])
        ]
        return torch.stack(runs, 2)
    at_once = max(1, _ALTERNATIVES // (new.shape[0] * new.shape[1]))
    parts = [context.run_on(layer + 1, part.transpose(1, 2)).transpose(1, 2) for part in new.split(at_once, 2)]
    return _logits(ask.model, torch.cat(parts, 2), chosen)


def _logits(model: LanguageModel, states: Float[Tensor, "*batch d"], chosen: Tensor) -> Float[Tensor, "*batch token"]:
    """Logits of some tokens, a few rows at a time because a row of all is long."""
    index = chosen.to(states.device)
    parts = [
        model.unembed(part)[..., index].float().cpu() for part in states.reshape(-1, states.shape[-1]).split(_ROWS)
    ]
    return torch.cat(parts).reshape(*states.shape[:-1], len(chosen))


def _dataset(
    ask: _Ask, predicted: Tensor, measured: Tensor, size: Tensor, chosen: Tensor, *, each: bool, own: bool
) -> xr.Dataset:
    places = ("layer", "prompt", "position")
    axes = (*places, "token") if own or not each else (*places, "direction", "token")
    data = xr.Dataset({
        "predicted": (axes, predicted.numpy(), {"long_name": "change of the logit, predicted by the lens"}),
        "measured": (axes, measured.numpy(), {"long_name": "change of the logit, measured"}),
        "size": (
            (*places, "token") if own else axes[:-1],
            size.numpy(),
            {"long_name": "norm of the change of the state, over that of the state"},
        ),
    })
    for variable in data.values():
        variable.attrs["units"] = "1"
    data = data.assign_coords(
        layer=ask.layers,
        token=token_texts(ask.model, chosen),
        document=("prompt", ask.rows.document.numpy()),
        at=(("prompt", "position"), ask.where.numpy()),
    )
    return data.assign_coords(direction=token_texts(ask.model, ask.ids)) if "direction" in axes else data
