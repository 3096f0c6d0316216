"""The tasks of a continuity run: singular vectors of one block of the model or of a control, and how they carry on.

A matrix is read, decomposed and dropped before the next is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe import weights
from probe.analyses.continuity.config import Config
from probe.analyses.continuity.schema import SCHEMA
from probe.analysis import Subject
from probe.analysis.subject import OWN
from probe.errors import InputError
from probe.model.in_memory import InMemory
from probe.runs import Piece, Run, Task
from probe.spectra.singular import Triplets, product_triplets
from probe.weights.bases import Bases
from probe.weights.reading import Weights

FOLDED, TRIMMED = "folded", "trimmed"
"""The model's weights with the norms' gains multiplied in, and without the outlier coordinates of the stream."""
STAGES = {OWN: "vectors", FOLDED: "folded", TRIMMED: "trimmed"}
"""The stage that finds the vectors of a variant; those of controls are found in "controls"."""
CONTROL_RANK = 2  # triplets that are kept of what is no more than a control
LEVEL = 0.99  # of random |cosines| that stay below `SIDE_haar_high`
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Matrices(Subject[Config]):
    """The matrices of a model and of its controls, read from files one at a time; no model is loaded."""

    @cached_property
    def own(self) -> Weights:
        """The weights of the model itself."""
        config = self.config
        if isinstance(config.model, InMemory):
            found = weights.weights_of(config.model.loaded)
            if config.random_init is not None:
                return weights.fresh_twin(found, config.random_init)
            seed = config.shuffled_weights
            return found if seed is None else weights.shuffled_twin(found, seed)
        return weights.open_weights(
            str(config.model),
            revision=config.revision,
            random_init=config.random_init,
            shuffled_weights=config.shuffled_weights,
            trust_remote_code=config.trust_remote_code,
        )

    def weights_of(self, variant: str) -> Weights:
        """Find the weights of a variant: the model's own, or those of a control, made once.

        Args:
            variant: One of `variants`.

        Returns:
            The weights.
        """
        kind, _, seed = variant.partition("-")
        if kind == "init":
            return self.keep(variant, lambda: weights.fresh_twin(self.own, int(seed)))
        return self.keep(variant, lambda: weights.shuffled_twin(self.own, int(seed))) if seed else self.own

    @cached_property
    def layers(self) -> list[int]:
        """The blocks that are compared: two or more in a row.

        Raises:
            InputError: If the options name others.
        """
        layers = self.config.layer_indices(self.own.n_layers)
        if len(layers) < 2 or layers[-1] - layers[0] != len(layers) - 1:
            raise InputError(
                f"continuity compares neighbouring blocks, so layers= must be two or more in a row, got "
                f"{self.config.layers}; give {layers[0]} to {max(layers[-1], layers[0] + 1)}, or all"
            )
        return layers

    @cached_property
    def names(self) -> list[str]:
        """The projections, composites last."""
        return list(weights.bases.comparable(self.own, composites=self.config.composites))

    @property
    def composites(self) -> list[str]:
        """Those of the projections that are composites."""
        return [name for name in self.names if name in weights.heads.COMPOSITES]

    @cached_property
    def variants(self) -> list[str]:
        """The model, its weights with gains folded in where one is known, without outlier coordinates, the controls."""
        known = self.config.folded and any(
            weights.bases.stream_sides(name) and self.own.gain(self.layers[0], name) is not None
            for name in self.own.stored
        )
        trimmed = self.config.outlier_share > 0
        return [OWN, *[FOLDED] * known, *[TRIMMED] * trimmed, *self.config.controls]

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """The hash of the weights."""
        return {"weights": weights.checkpoint.weight_hash(self.own)}

    def triplets(self, name: str, matrix: Tensor, rank: int) -> dict[str, Tensor]:
        """Decompose a matrix whose entries are rounded to the number format of the options first.

        Args:
            name: Of the projection.
            matrix: (out, in).
            rank: Number of leading triplets; fewer of a smaller matrix.

        Returns:
            The fields of `Bases` of this one block, vectors in float32, each under its name and the projection's.
        """
        rounded = matrix.to(self.config.device, _DTYPES[self.config.dtype])
        exact = rounded if self.config.dtype == "float64" else rounded.float()
        found: Triplets = weights.leading_triplets(
            exact, min(rank, *exact.shape), method=self.config.method, seed=self.config.seed
        )
        return {
            f"left.{name}": found.left.float(),
            f"singular.{name}": found.singular,
            f"right.{name}": found.right.float(),
            f"norm.{name}": torch.tensor(found.norm, dtype=torch.float64),
            f"error.{name}": torch.tensor(found.error, dtype=torch.float64),
        }


def decompose(subject: Matrices, task: Task, run: Run) -> dict[str, Tensor]:
    """Find the leading triplets of every projection of one block, and of the model itself those of each head.

    Args:
        subject: The matrices.
        task: Its labels `variant` and `block`.
        run: Not read.

    Returns:
        Arrays by name and projection.
    """
    variant, block = task["variant"], task["block"]
    rank = max(CONTROL_RANK, *subject.config.subspaces) if variant in (OWN, FOLDED) else CONTROL_RANK
    found: dict[str, Tensor] = {}
    for name in subject.names:
        matrix = weights.bases.prepared(subject.weights_of(variant), block, name, folded=variant == FOLDED)
        if matrix is not None:
            found |= subject.triplets(name, matrix, rank)
    for name in subject.composites if variant == OWN else []:
        factors = (factor.to(subject.config.device) for factor in weights.heads.head_factors(subject.own, block, name))
        heads = [product_triplets(*pair) for pair in zip(*factors, strict=True)]
        found[f"left_heads.{name}"] = torch.cat([head.left for head in heads], 1).float()
        found[f"right_heads.{name}"] = torch.cat([head.right for head in heads], 1).float()
    return found


def choose_coordinates(subject: Matrices, task: Task, run: Run) -> dict[str, Tensor]:
    """Choose the coordinates of the stream that are kept: all but those that hold most of the leading vectors.

    Args:
        subject: The matrices.
        task: The only one of its stage.
        run: With the model's vectors.

    Returns:
        Coordinates by space and projection.
    """
    found = {}
    for name in subject.names:
        for side in weights.bases.stream_sides(name):
            array = f"{weights.bases.SIDES[side]}.{name}"
            leading = run.piece("vectors", [array])[array][..., 0]
            found[f"{side}_kept.{name}"] = weights.curves.kept_coordinates(leading, subject.config.outlier_share)
    return found


def decompose_trimmed(subject: Matrices, task: Task, run: Run) -> dict[str, Tensor]:
    """Find the leading triplets of one block's projections without the outlier coordinates of the stream.

    Args:
        subject: The matrices.
        task: Its label `block`.
        run: With the coordinates that are kept.

    Returns:
        Arrays by name and projection; none of a projection that lies inside a mixer.
    """
    kept = run.piece("coordinates")
    found: dict[str, Tensor] = {}
    for name in subject.names:
        if not weights.bases.stream_sides(name):
            continue
        matrix = weights.matrix_of(subject.own, task["block"], name)
        for dim, side in enumerate(("output", "input")):
            if f"{side}_kept.{name}" in kept:
                matrix = matrix.index_select(dim, kept[f"{side}_kept.{name}"].to(matrix.device))
        found |= subject.triplets(name, matrix, CONTROL_RANK)
    return found


def measure_docs(subject: Matrices, task: Task, run: Run) -> Piece:
    """Measure DOCS of each stored projection in two neighbouring blocks, by columns.

    Args:
        subject: The matrices.
        task: Its label `layer`.
        run: Not read.

    Returns:
        `docs` by projection.
    """
    own, layer = subject.own, task["layer"]
    values = [
        weights.docs_similarity(*(own.matrix(block, name).to(subject.config.device) for block in (layer, layer + 1)))
        for name in own.stored
    ]
    return Piece({"docs": np.array(values)}, {"projection": own.stored})


def compare(subject: Matrices, task: Task, run: Run) -> Piece:
    """Compare the vectors of neighbouring blocks of one variant.

    Args:
        subject: The matrices.
        task: Its label `variant`.
        run: With the vectors of all blocks.

    Returns:
        What is known of every variant; of the model itself all else too.
    """
    bases = bases_of(subject, run, task["variant"])
    found = described(bases, subject.config.subspaces, subject.layers[0])
    if task["variant"] != OWN:
        compared = {name: array for name, array in found.items() if "variant" in SCHEMA[name].dims}
        return Piece(compared, found.labels)
    arrays = {**found, "directions": _directions(bases, subject.own.d_model)}
    if not subject.composites:
        return Piece(arrays, found.labels)
    return Piece(arrays | _heads(subject, run), {**found.labels, "composite": subject.composites})


def bases_of(subject: Matrices, run: Run, variant: str) -> dict[str, Bases]:
    """Read the leading triplets of a variant.

    Args:
        subject: The matrices.
        run: With the vectors of all blocks.
        variant: One of the subject's.

    Returns:
        The bases of each projection that the variant has.
    """
    parts = [field.name for field in fields(Bases)]
    names = [f"{part}.{name}" for name in subject.names for part in parts]
    held = run.piece(STAGES.get(variant, "controls"), names, variant=variant)
    return {
        name: Bases(**{part: held[f"{part}.{name}"] for part in parts})
        for name in subject.names
        if f"left.{name}" in held
    }


def described(bases: Mapping[str, Bases], subspaces: Sequence[int], first: int = 0) -> Piece:
    """Describe bases that were computed, as `probe.weights.bases.described` does.

    Args:
        bases: By projection, of the same blocks.
        subspaces: Dimensions k.
        first: Index of the first block.

    Returns:
        The variables with their labels, and what random |cosines| stay below.
    """
    data = weights.bases.described(bases, subspaces, first)
    arrays = {str(name): array.values for name, array in data.items()}
    for side in weights.bases.SIDES:
        widths = data[f"{side}_width"].values.tolist()
        arrays[f"{side}_haar_high"] = np.array([weights.haar_quantile(width, LEVEL) for width in widths])
    return Piece(arrays, {str(axis): data[axis].values.tolist() for axis in data.dims})


def _directions(bases: Mapping[str, Bases], width: int) -> Float[Tensor, "projection block coordinate"]:
    """The leading direction in the stream of what reads it or writes to it; NaN of composites, which do both."""
    found = []
    for name, base in bases.items():
        sides = weights.bases.stream_sides(name)
        nothing = torch.full((len(base.norm), width), torch.nan)
        found.append(base.side(sides[0])[..., 0] if len(sides) == 1 else nothing)
    return torch.stack(found)


def _heads(subject: Matrices, run: Run) -> dict[str, np.ndarray]:
    """The best |cosine| of each head of a block to a head of the next, mean over heads (composite, layer)."""
    found = {}
    for side, part in weights.bases.SIDES.items():
        values = []
        for name in subject.composites:
            heads = run.piece("vectors", [f"{part}_heads.{name}"])[f"{part}_heads.{name}"]
            values.append([float(weights.best_cosines(one, other).mean()) for one, other in pairwise(heads)])
        found[f"{side}_heads"] = np.array(values)
    return found | {"heads_null": np.array(weights.nulls.haar_best_match(*heads.shape[1:]))}
