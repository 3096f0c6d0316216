"""What a layer-update run is made of: the Python API's argument, the command line and `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from probe.analysis.config import Among, AtLeast, TextConfig
from probe.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Thresholds of the claims: the defaults were fixed before any model was measured.

    Attributes:
        threshold_alignment: Median cosine of update and tokenwise part.
        threshold_alignment_over_mean: By how much that cosine must exceed the mean baseline's.
        threshold_residual_distinct: Difference of the shares of update and residual in the 4 leading directions.
        threshold_error_predicts_output: Spearman's ρ of relative error and KL.
        threshold_residual_matters: Median log ratio of KL, residual to covariance-matched direction.
        threshold_mlp_helps: Median log ratio of relative errors, linear to MLP, in the high-error regime.
        threshold_low_dimensional: Log ratio of errors (rank 4 to 64) and of instabilities (32 to 256 neighbours).
        threshold_documents: Fewer scored documents than this decide nothing.
        threshold_error_spread: Below this standard deviation of the log relative error a rank correlation says nothing.
    """

    threshold_alignment: float = 0.9
    threshold_alignment_over_mean: float = 0.05
    threshold_residual_distinct: float = 0.1
    threshold_error_predicts_output: float = 0.7
    threshold_residual_matters: float = 0.0
    threshold_mlp_helps: float = 0.02
    threshold_low_dimensional: float = 0.0
    threshold_documents: int = 12
    threshold_error_spread: float = 0.1


FITS = (
    "zero",
    "mean",
    "diagonal",
    "linear",
    "low_rank",
    "local",
    "local_diagonal",
    "local_orthogonal",
    "mlp",
    "mlp_random",
    "alone",
    "mlp_alone",
)
"""The classes of tokenwise maps, baselines first and the functions that the architecture itself holds last."""


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Is a block's update a function of the token's own state alone, and what is the rest?

    Maps are fitted on windows of one set of documents and scored on windows of others. The documents for fitting fall
    into two halves: the first fits the maps, the second an independent fit that cuts the regimes.

    Raises:
        InputError: If a map is to replace a block's output that is not fitted.
    """

    examples: ClassVar[Mapping[str, str]] = {
        "--dataset sample": "the default model on the text that ships",
        "--model pythia-70m,pythia-160m --dataset wikitext-2": "from the hub: a run each and a page that compares",
        "--model ./my-model --text my-text.txt --layers 0,5,10 --dry-run": "what a run on three blocks would take",
    }

    classes: Annotated[tuple[str, ...], Among(FITS)] = FITS
    """Classes of tokenwise maps, a comma list; mlp starts at the ridge optimum, mlp_random at random."""
    fit_windows: Annotated[int, AtLeast(1)] = 256
    """Windows for fitting, both halves together (there may be fewer in the text)."""
    positions_per_window: Annotated[int, AtLeast(1)] = 8
    """Positions scored in each scored window."""
    control_positions_per_window: int = 2
    """How many of them enter the sweep, the floor and the fits to permuted updates."""
    bank_tokens: int = 20_000
    """Tokens of one half among which the local classes look for neighbours."""
    neighbours: Annotated[int, AtLeast(1)] = 256
    """k of the local classes."""
    rank: Annotated[int, AtLeast(1)] = 64
    """r of the local and of the low-rank class."""
    mlp_width: Annotated[int, AtLeast(1)] = 512
    """Hidden units of the MLP classes."""
    mlp_steps: Annotated[int, AtLeast(1)] = 600
    """Optimiser steps of the MLP classes."""
    sweep: bool = True
    """Sweep k and r of the local class, and compare two disjoint banks."""
    sweep_neighbours: tuple[int, ...] = (32, 64, 128, 256)
    """Values of k in the sweep."""
    sweep_ranks: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Values of r in the sweep."""
    floor: bool = True
    """Fit the classes to the block run on the token alone, too: the error that no context explains."""
    replacement: Literal["none", "one", "both"] = "both"
    """Replace the block's output at one position, or also at all counted positions at once (on a subsample)."""
    replaced: Annotated[tuple[str, ...], Among(FITS)] = ("mean", "linear", "local", "mlp")
    """Classes whose output replaces the block's."""
    all_windows: int = 4
    """Windows in which all positions are replaced at once, and one query of each is followed to later positions."""
    draws: Annotated[int, AtLeast(1)] = 4
    """Draws of the random controls of the replacement."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    """Thresholds and margins of the claims."""

    def __post_init__(self) -> None:
        super().__post_init__()
        missing = [name for name in self.replaced if name not in self.classes]
        if missing and self.replacement != "none":
            raise InputError(
                f"only maps that are fitted can replace a block's output: {missing[0]!r} is in replaced= but not in "
                "classes=; add it there, or leave it out here"
            )

    @property
    def deciding(self) -> str:
        """The fit around which the controls of the replacement are built, and whose error cuts the layers' regimes."""
        candidates = self.classes if self.replacement == "none" else self.replaced
        return next(fit for fit in ("local", "linear", *candidates) if fit in candidates)
