"""The contents of a dynamics run, found by the text that a matrix belongs to.

A block's Jacobian at a position depends on the weights, the context and the tokens up to that position. Another
analysis that measures the same position of the same text under the same weights need not compute it again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.analysis.config import parse_layers
from probe.errors import InputError
from probe.runs import Run
from probe.runs.directory import require_format
from probe.runs.pieces import PieceFile


@dataclass(frozen=True)
class Place:
    """A measured position: the piece that holds it, and its place along `query`."""

    file: PieceFile
    query: int


class Kept:
    """The scores, and the Jacobians where they were kept, of a run of the dynamics analysis.

    Args:
        directory: Its run directory; the run need not be finished.
        fingerprint: Of the model that is to be measured: `weights` and `attention`.
        n_layers: Number of its blocks.
        context: Of the Jacobians that are wanted, as the option of this name.

    Raises:
        InputError: If the directory holds no dynamics run, or one of another model or context.
    """

    def __init__(self, directory: Path, fingerprint: dict[str, str], n_layers: int, context: str) -> None:
        self._run = Run(directory)
        if not (directory / "config.json").is_file():
            raise InputError(f"a dynamics run holds config.json, but {directory} does not: pass its run directory")
        record = self._run.record
        told = {"analysis": record["analysis"], "context": record["config"].get("context")}
        told |= {name: record["fingerprint"].get(name) for name in ("weights", "attention")}
        wanted = {"analysis": "dynamics", "context": context}
        wanted |= {name: fingerprint[name] for name in ("weights", "attention")}
        other = [name for name in wanted if told[name] != wanted[name]]
        if other:
            raise InputError(
                f"matrices can be used again only from a dynamics run with the same {other[0]}: {directory} has "
                f"{str(told[other[0]])[:12]}, and {wanted[other[0]][:12]} is wanted; leave dynamics= out"
            )
        require_format(self._run)
        self._layers = parse_layers(record["config"]["layers"], n_layers)
        self._places: dict[bytes, Place] = {}
        for file in self._run.files("scores"):
            piece = file.read(["tokens", "positions"])
            queries = file.labels["query"]
            assert isinstance(queries, range)
            query = iter(queries)
            for tokens, positions in zip(piece["tokens"], piece["positions"].tolist(), strict=True):
                for position in positions:
                    self._places[_key(tokens, position)] = Place(file, next(query))

    def find(self, tokens: Int[Tensor, " position"], position: int) -> Place | None:
        """Find a position of a window by its text.

        Args:
            tokens: The window.
            position: The position.

        Returns:
            Its place; None if the run did not measure it.
        """
        return self._places.get(_key(tokens, position))

    def jacobian(self, place: Place, layer: int) -> Float[Tensor, "d d"] | None:
        """Read the Jacobian of a block, if the run kept it (`keep_matrices=True`).

        Args:
            place: From `find`.
            layer: Which block.

        Returns:
            J, float32; None if it was not kept.
        """
        if "jacobian" not in place.file.axes or layer not in self._layers:
            return None
        return place.file.read(["jacobian"], layer=layer, query=place.query)["jacobian"]

    def score(self, name: str, place: Place, layer: int) -> float | None:
        """Read a score of K.

        Args:
            name: Of the score, as in `probe.spectra`.
            place: From `find`.
            layer: Which block.

        Returns:
            Its value; None if the run did not look at this block.
        """
        if layer not in self._layers:
            return None
        return float(place.file.read([name], matrix="K", layer=layer, query=place.query)[name])


def _key(tokens: Int[Tensor, " position"], position: int) -> bytes:
    """The text up to a position; what follows does not enter a causal model's state there."""
    return hashlib.sha256(tokens[: position + 1].to(torch.int64).numpy().tobytes()).digest()
