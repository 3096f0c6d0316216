"""What a dynamics run holds of the trained model, found by the text that a matrix belongs to.

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

from probe.analyses.dynamics.work import MATRICES
from probe.analysis.config import parse_layers
from probe.errors import InputError
from probe.runs import Run


@dataclass(frozen=True)
class Place:
    """Where the matrices of one position lie: the unit, its window, which of the window's positions."""

    key: str
    window: int
    chosen: int


class Kept:
    """The scores, and the Jacobians where they were kept, of a run of the dynamics analysis.

    Args:
        directory: Its run directory; the run need not be finished.
        fingerprint: Of the model that is to be measured: `weights` and `attention`.
        n_layers: How many blocks it has.
        context: What the rest of the text is in the Jacobians that are wanted.

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
                f"{str(told[other[0]])[:12]}, and {wanted[other[0]][:12]} is wanted; leave --dynamics out"
            )
        self._layers = parse_layers(record["config"]["layers"], n_layers)
        self._places: dict[bytes, Place] = {}
        for path in sorted((directory / "units" / "scores").glob("model-*.safetensors")):
            unit = self._run.load("scores", path.stem, ["tokens", "positions"])
            for window, positions in enumerate(unit["positions"].tolist()):
                for chosen, position in enumerate(positions):
                    self._places[_key(unit["tokens"][window], position)] = Place(path.stem, window, chosen)

    def find(self, tokens: Int[Tensor, " position"], position: int) -> Place | None:
        """Where a position of a window was measured, if it was.

        Args:
            tokens: The window.
            position: The position.

        Returns:
            Its place; None if the run did not measure it.
        """
        return self._places.get(_key(tokens, position))

    def jacobian(self, place: Place, layer: int) -> Float[Tensor, "d d"] | None:
        """The Jacobian of a block, if the run kept it (`--keep-matrices`).

        Args:
            place: From `find`.
            layer: Which block.

        Returns:
            J, float32; None if it was not kept.
        """
        name = f"{place.key}-layer-{layer:03d}"
        if not self._run.has("matrices", name):
            return None
        return self._run.load("matrices", name)["jacobian"][place.window, place.chosen]

    def score(self, name: str, place: Place, layer: int) -> float | None:
        """A score of K.

        Args:
            name: Of the score, as in `probe.spectra`.
            place: From `find`.
            layer: Which block.

        Returns:
            Its value; None if the run did not look at this block.
        """
        if layer not in self._layers:
            return None
        scores = self._run.load("scores", place.key, [name])[name]  # (window, chosen, matrix, layer)
        return float(scores[place.window, place.chosen, MATRICES.index("K"), self._layers.index(layer)])


def _key(tokens: Int[Tensor, " position"], position: int) -> bytes:
    """The text up to a position; what follows does not enter a causal model's state there."""
    return hashlib.sha256(tokens[: position + 1].to(torch.int64).numpy().tobytes()).digest()
