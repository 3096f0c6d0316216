"""The options of the lens: the Python API's argument, the command line and `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from probe.analysis import AtLeast, TextConfig, control_names
from probe.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The bounds that each statistic must clear; the defaults were fixed before any model was measured.

    Attributes:
        threshold_stable: Distance of two fits on disjoint documents, ‖M₁ − M₂‖ over the geometric mean of their norms.
        threshold_reads: KL of the logit lens less that of the lens, nat.
        threshold_own_context: Cosine by the context's own Jacobian less that by the mean one.
        margin_own_context: The same beyond the difference between two disjoint mean fits.
        threshold_corpus: Share of the variance of M that lies between two corpora.
        threshold_corpus_p: Value of p below which corpora are called different.
        threshold_learned: Log participation ratio of M, trained less control.
        threshold_causal: Spearman's ρ of predicted and measured logit change.
        margin_causal: The same beyond random directions.
        threshold_documents: Fewer documents than this decide nothing.
        threshold_seeds: Fewer seeds of a control than this decide nothing.
    """

    threshold_stable: float = 0.3
    threshold_reads: float = 0.0
    threshold_own_context: float = 0.1
    margin_own_context: float = 0.05
    threshold_corpus: float = 0.25
    threshold_corpus_p: float = 0.01
    threshold_learned: float = 0.0
    threshold_causal: float = 0.5
    margin_causal: float = 0.05
    threshold_documents: int = 12
    threshold_seeds: int = 5


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Worth of a Jacobian lens: how stable it is, what it reads, and what of it is learned.

    A lens is fitted twice, on disjoint documents, and read on documents that were not fitted. Each document gives one
    window. Where the text has too few documents, a third of them are held out, and the rest is divided.

    Raises:
        InputError: If two second texts are named.
    """

    examples: ClassVar[Mapping[str, str]] = {
        "--model bundled/transformer --dataset sample": "a bundled model, in minutes",
        "--dataset wikitext-2 --other-text my-text.txt": "the default model, and how much the corpus matters",
        "--dataset wikitext-2 --dry-run": "what a full run would take",
    }

    windows: Annotated[int, AtLeast(1)] = 12
    """Held-out documents, which are read and not fitted."""
    fit_windows: Annotated[int, AtLeast(2)] = 24
    """Documents of each of the two fits."""
    window_length: Annotated[int, AtLeast(20)] = 128
    """Tokens of each document."""
    skip_first: Annotated[int, AtLeast(0)] = 16
    """Positions at the start that count neither as source nor as target."""
    positions_per_window: Annotated[int, AtLeast(1)] = 4
    """Positions of each held-out document that are read."""
    targets: Literal["later", "same"] = "later"
    """Sum over all later targets, as the reference has it; or the same position alone."""
    other_dataset: str | None = None
    """A second data set, on which a lens is fitted for the claim about the corpus."""
    other_text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A second text, likewise."""
    other_split: str | None = None
    """Split of the second data set."""
    control_windows: Annotated[int, AtLeast(2)] = 12
    """Documents on which each control is fitted, the first of the first fit."""
    init_seeds: Annotated[int, AtLeast(0)] = 5
    """Fresh initialisations that serve as controls (at least 5 for a verdict)."""
    shuffled_seeds: Annotated[int, AtLeast(0)] = 5
    """Draws of shuffled weights that serve as controls."""
    blocks_seeds: Annotated[int, AtLeast(0)] = 5
    """Controls with fresh blocks that keep the model's embedding, final norm and head."""
    tuned_steps: Annotated[int, AtLeast(0)] = 250
    """Steps in which the tuned lens is trained, from the affine one; 0: none."""
    affine: bool = True
    """Also read by an affine lens, a ridge regression on the documents of the first fit."""
    steered: Annotated[int, AtLeast(1)] = 4
    """Tokens along whose directions the stream is steered."""
    strength: float = 0.05
    """Length of a steering step over ‖h‖."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    """Thresholds and margins of the claims."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.other_text is not None and self.other_dataset is not None:
            raise InputError("only one second text can be named, got other_dataset= and other_text=: leave one out")

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the controls: fresh initialisations, shuffled weights, fresh blocks between the model's own ends."""
        fresh = control_names("init", self.init_seeds, self.random_init)
        shuffled = control_names("shuffled", self.shuffled_seeds, self.shuffled_weights)
        return fresh + shuffled + control_names("blocks", self.blocks_seeds, None)
