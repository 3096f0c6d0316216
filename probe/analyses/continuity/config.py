"""The options of a continuity run: the Python API's argument, the command line and `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from probe.analysis import AtLeast, ModelConfig, control_names
from probe.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Bounds that each statistic must clear; the defaults were fixed before any model was measured.

    Attributes:
        threshold_trained: By how much the mean |cosine| of neighbours must exceed what 99 % of random means stay below.
        threshold_init: By how much it must exceed that of fresh initialisations.
        threshold_permuted: P value, under permuted orders of the blocks, that must not be reached.
        threshold_projections: By how much each reader, and each writer, must exceed v.
        threshold_adjacency: Spearman's ρ of lag and |cosine|.
        threshold_gap: σ₁/σ₂ below which a leading vector means nothing.
        threshold_blocks: Fewer blocks of adjacent pairs than this decide nothing.
        threshold_seeds: Fewer fresh initialisations than this decide nothing.
    """

    threshold_trained: float = 0.0
    threshold_init: float = 0.1
    threshold_permuted: float = 0.01
    threshold_projections: float = 0.1
    threshold_adjacency: float = -0.5
    threshold_gap: float = 1.05
    threshold_blocks: int = 3
    threshold_seeds: int = 5


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Do the leading singular vectors of neighbouring blocks' weights point the same way?

    No text is read and the model is never loaded: its matrices are read from the file one at a time.

    Raises:
        InputError: If a subspace has no dimension, or the share of outliers is none.
    """

    examples: ClassVar[Mapping[str, str]] = {
        "": "the default model",
        "--model pythia-160m --revision step0,step1000,main": "through training",
        "--init-seeds 1 --permutations 99": "a first look, with weaker controls",
    }

    subspaces: tuple[int, ...] = (1, 2, 4, 8)
    """Dimensions k of the leading subspaces that are compared."""
    composites: bool = True
    """Also W_O W_V and W_Qᵀ W_K, summed over heads and head by head."""
    folded: bool = True
    """Repeat with the gains of the norms multiplied in: a reader acts on γ ⊙ x̂."""
    outlier_share: float = 0.005
    """Share of the stream's coordinates, those that hold most of the leading vectors, left out in a repeat."""
    init_seeds: Annotated[int, AtLeast(0)] = 5
    """Fresh initialisations that serve as controls (at least 5 for a verdict)."""
    shuffled_seeds: Annotated[int, AtLeast(0)] = 1
    """Draws of shuffled weights that serve as controls."""
    permutations: Annotated[int, AtLeast(1)] = 999
    """Random orders of the blocks."""
    block_length: Annotated[int, AtLeast(1)] = 3
    """Adjacent pairs that are resampled together."""
    method: Literal["auto", "dense", "randomised"] = "auto"
    """How singular triplets are found; auto: dense up to a short side of 2,048."""
    docs: bool = False
    """Also DOCS of neighbouring blocks (arXiv 2501.16650), which takes all columns: slow for wide models."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    """Thresholds and margins of the claims."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.subspaces or min(self.subspaces) < 1:
            raise InputError(f"subspaces= must be dimensions from 1 on: got {self.subspaces}; give 1,2,4,8 for example")
        if not 0 <= self.outlier_share < 1:
            raise InputError(
                f"outlier_share= is a share of the coordinates, in [0, 1): got {self.outlier_share}; give 0.005"
            )

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the controls: fresh initialisations, then shuffled weights."""
        fresh = control_names("init", self.init_seeds, self.random_init)
        return fresh + control_names("shuffled", self.shuffled_seeds, self.shuffled_weights)
