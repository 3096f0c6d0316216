"""Directions carried from depth to depth at chosen positions: what one block or several do to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.linalg import vector_norm

from probe import geometry, replay
from probe.boundary import public
from probe.directions.vectors import Directions, GivenDirections, directions_of
from probe.errors import InputError
from probe.jacobian import JacobianOptions, push_forward
from probe.jacobian.options import ContextName
from probe.model import LanguageModel
from probe.text import Given, TokenRows, Which, as_rows


@dataclass(frozen=True)
class Query:
    """The scored tokens: chosen positions of windows.

    Attributes:
        rows: The windows or prompts, each a row of tokens.
        positions: The chosen positions, (W, P).
        documents: The document of each row, (W,).
    """

    rows: TokenRows
    positions: Int[Tensor, "window chosen"]
    documents: Int[np.ndarray, " window"]

    @classmethod
    def of(cls, model: LanguageModel, tokens: Given, positions: Which) -> Query:
        """Take windows and positions as they came.

        Args:
            model: The model.
            tokens: As in `probe.block_jacobian`. Rows without documents are a document each.
            positions: As in `probe.block_jacobian`.

        Returns:
            The queries.
        """
        rows = as_rows(model, tokens, argument="tokens")
        documents = getattr(rows, "document", torch.arange(len(rows.ids)))
        return cls(rows, rows.positions(positions), documents.cpu().numpy())

    @property
    def coordinates(self) -> dict[str, tuple[str, Shaped[np.ndarray, " query"]]]:
        """Window, position and document of each query, window by window."""
        count = self.positions.shape[1]
        return {
            "window": ("query", np.repeat(np.arange(len(self.rows.ids)), count)),
            "position": ("query", self.positions.flatten().numpy()),
            "document": ("query", np.repeat(self.documents, count)),
        }

    def recorded(
        self, model: LanguageModel, layers: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Int[np.ndarray, " _"], replay.Context]]:
        """Record the windows in batches of one length.

        Args:
            model: The model.
            layers: The blocks that run again.
            batch_size: Windows in a pass.

        Yields:
            The indices of a batch's windows, and its context.

        Raises:
            InputError: If a batch holds no window.
        """
        if batch_size < 1:
            raise InputError(f"a batch must hold at least one window, got batch_size={batch_size}: leave it out for 8")
        for indices, tokens in self.rows.groups():
            for batch, part in zip(indices.split(batch_size), tokens.split(batch_size), strict=True):
                yield batch.numpy(), replay.record(model, part, self.positions[batch], layers=layers)


def carried(
    recorded: replay.Context,
    first: int,
    last: int,
    vectors: Float[Tensor, "n d"],
    options: JacobianOptions,
) -> Iterator[tuple[int, Float[Tensor, "n window chosen d"]]]:
    """Move vectors through blocks `first` … `last − 1`, each by its Jacobian at the recorded states.

    Args:
        recorded: The context.
        first: The depth at which they begin.
        last: The depth at which they end.
        vectors: The same vectors for all positions.
        options: Options of `block_jacobian`.

    Yields:
        The depth, from `first` on, and the vectors J_{l−1} ⋯ J_first v there.
    """
    device = recorded.model.device
    at = vectors.to(device, options.dtype)[:, None, None].expand(-1, *recorded.positions.shape, -1)
    yield first, at
    for layer in range(first, last):
        at = push_forward(recorded, layer, at, options)
        yield layer + 1, at


def require_depths(model: LanguageModel, first: int | None, last: int | None, given: Directions) -> tuple[int, int]:
    """Decide where directions begin and end.

    Args:
        model: The model.
        first: The depth at which they begin; None: the one that the directions state.
        last: The depth at which they end; None: L.
        given: The directions.

    Returns:
        Both depths.

    Raises:
        InputError: If the first is not known, they are not 0 ≤ first < last ≤ L, or the blocks between are given more
            than the stream.
    """
    start = given.depth if first is None else first
    if start is None:
        raise InputError(
            "directions must say at which depth of the stream they lie, and these say none: pass as from_layer= the "
            "block "
            "that they enter, 0 for the first"
        )
    end = model.n_layers if last is None else last
    if not 0 <= start < end <= model.n_layers:
        raise InputError(
            f"directions go from one depth to a later one, 0 ≤ from_layer < to_layer ≤ {model.n_layers}, got {start} "
            f"and {end}: "
            "choose two depths in this order"
        )
    replay.require_chain(model, start, end)
    return start, end


def require_context(context: ContextName) -> None:
    """Refuse one-token inputs, of which there is none that a second block would get.

    Args:
        context: As in `probe.block_jacobian`.

    Raises:
        InputError: If it is "alone".
    """
    if context == "alone":
        raise InputError(
            'directions are carried in a real context, got context="alone": multiply probe.block_jacobian(…, '
            'context="alone") by them instead'
        )


@public
def gain_and_turn(
    model: LanguageModel,
    tokens: Given,
    directions: GivenDirections,
    layer: int | None,
    positions: Which,
    *,
    to_layer: int | None = None,
    context: ContextName = "sequence",
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
) -> xr.Dataset:
    r"""Measure how much a block, or all blocks up to a depth, stretch and turn directions, at each chosen position.

    With C = J_{b−1}(t) ⋯ J_a(t), the exact Jacobian from the stream that enters block a to the stream that enters
    block b (for b = a + 1 the block's own J), at every b from a + 1 on:

    .. math:: \mathrm{gain} = \lVert C v \rVert / \lVert v \rVert, \qquad \mathrm{turn} = \angle(C v, v)

    and the same of what is added, C − I.

    Args:
        model: The model.
        tokens: As in `probe.block_jacobian`: windows, prompts, strings or ids; their lengths may differ.
        directions: (d,) or (n, d), or `Directions`; of any length.
        layer: a, the block whose input is varied; None: the depth that the directions state.
        positions: As in `probe.block_jacobian`.
        to_layer: The deepest b; by default a + 1, one block. `model.n_layers` means behind the last block.
        context: "sequence", the real context, or "detached", as in `probe.block_jacobian`.
        batch_size: Windows in a forward pass.
        dtype: The dtype of the arithmetic, `torch.float32` or `torch.float64`.

    Returns:
        Over (direction, depth, query), float64: `gain` and `update_gain` (1), `turn` and `update_turn` (degrees; NaN
        where the product is zero). A query is a window and a position; `document` is a coordinate of it.

    Raises:
        InputError: If the directions do not fit, or an option, depth or position does not exist.

    Cost: a direction takes about a backward pass of each position through each block, 2 · params FLOPs whatever T,
    where a whole Jacobian takes 10 d³ or more; many directions take the matrix (`probe.jacobian.push_forward`).
    """
    given = directions_of(directions, model.d_model)
    require_context(context)
    start = given.depth if layer is None else layer
    first, last = require_depths(model, start, (start or 0) + 1 if to_layer is None else to_layer, given)
    options, query = JacobianOptions(context=context, dtype=dtype), Query.of(model, tokens, positions)
    shape = (len(given), last - first, *query.positions.shape)
    found = {name: np.empty(shape) for name in _MEASURES}
    origin = given.vectors[:, None, None]
    for batch, recorded in query.recorded(model, range(first, last), batch_size):
        for depth, vectors in carried(recorded, first, last, given.vectors, options):
            if depth == first:
                continue
            moved = vectors.double().cpu()
            for kind, image in (("", moved), ("update_", moved - origin)):
                gain = vector_norm(image, dim=-1) / vector_norm(origin, dim=-1)
                found[f"{kind}gain"][:, depth - first - 1, batch] = gain
                turn = geometry.angle(image, origin.expand_as(image))
                found[f"{kind}turn"][:, depth - first - 1, batch] = turn
    dims = ("direction", "depth", "query")
    return xr.Dataset(
        {name: (dims, found[name].reshape(*shape[:2], -1), attributes) for name, attributes in _MEASURES.items()},
        coordinates(given, range(first + 1, last + 1)) | query.coordinates,
        described(model, query, given) | {"from_depth": first, "context": context},
    )


_MEASURES = {
    "gain": {"units": "1", "long_name": "‖C v‖ / ‖v‖"},
    "turn": {"units": "degree", "long_name": "angle between C v and v"},
    "update_gain": {"units": "1", "long_name": "‖(C − I) v‖ / ‖v‖"},
    "update_turn": {"units": "degree", "long_name": "angle between (C − I) v and v"},
}


def coordinates(given: Directions, depths: range) -> dict[str, Any]:
    """Make the coordinates of directions and depths.

    Args:
        given: The directions.
        depths: The depths.

    Returns:
        Coordinates for a Dataset.
    """
    meaning = {"long_name": "stream that enters block l; L is behind the last"}
    return {"direction": list(given.names), "depth": ("depth", np.asarray(depths), meaning)}


def described(model: LanguageModel, query: Query, given: Directions) -> dict[str, Any]:
    """Say of what a Dataset was measured.

    Args:
        model: The model.
        query: The scored tokens.
        given: The directions.

    Returns:
        Attributes.
    """
    attributes = {"model": model.name, "description": model.description, "d_model": model.d_model}
    attributes["text"] = str(getattr(query.rows, "name", "given tokens"))
    return attributes if given.site is None else attributes | {"site": given.site}
