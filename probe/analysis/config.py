"""The options that analyses share: what a model, a text and a run directory are named by."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from probe.errors import InputError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class AtLeast:
    """The least value of an option, as in `windows: Annotated[int, AtLeast(1)] = 32`.

    Attributes:
        bound: The value.
    """

    bound: float | int


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of every analysis.

    Attributes:
        examples: What `--help` shows as examples: options as they are typed, and what they do.

    Raises:
        InputError: If an option lies below its bound.
    """

    examples: ClassVar[Mapping[str, str]] = {}

    device: str = "cpu"
    """Where it is computed: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Number format of the weights and of the states."""
    seed: int = 0
    """Seed of everything that is drawn at random."""

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            for bound in getattr(hint, "__metadata__", ()):
                if isinstance(bound, AtLeast) and (value := getattr(self, name)) is not None and value < bound.bound:
                    raise InputError(f"{name}= must be at least {bound.bound}, got {value}: give a larger number")

    def require_inputs(self) -> None:
        """Refuse inputs that are neither here nor to be fetched, before the large libraries are imported."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Options of every analysis of a language model."""

    model: str = "smollm2-135m-instruct-q4"
    """Alias, hub id, directory or .gguf file; a comma list makes one run each and a page that compares them."""
    revision: str | None = None
    """Revision on the hub, for example step1000; a comma list makes one run each."""
    random_init: Annotated[int | None, tyro.conf.arg(metavar="SEED")] = None
    """Same architecture with fresh weights drawn under this seed."""
    shuffled_weights: Annotated[int | None, tyro.conf.arg(metavar="SEED")] = None
    """Entries of each weight matrix permuted under this seed, gains kept."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model's repository or directory."""
    layers: str = "all"
    """Blocks to look at, for example 0,5,10."""

    def require_inputs(self) -> None:
        """Refuse a model that is neither here nor to be fetched, within seconds."""
        from probe.model import sources

        source = sources.resolve(self.model, self.revision)
        sources.require(source, weights=self.random_init is None, code=self.trust_remote_code)

    def layer_indices(self, n_layers: int) -> list[int]:
        """List the layers to look at, in a model of `n_layers`.

        Args:
            n_layers: Number of blocks of the model.

        Returns:
            Their indices, ascending.
        """
        return parse_layers(self.layers, n_layers)


@dataclass(frozen=True, kw_only=True)
class TextConfig(ModelConfig):
    """Options of every analysis of a language model on a text.

    Raises:
        InputError: If both a data set and a file are named.
    """

    dataset: Annotated[str | None, tyro.conf.arg(help_behavior_hint="(default: wikitext-2, without --text)")] = None
    """wikitext-2, wikitext-103 or sample."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A UTF-8 file instead of a data set; a line ' = Title = ' opens a document."""
    split: str = "test"
    """Split of the data set: test, validation or train."""
    windows: Annotated[int, AtLeast(1)] = 32
    """Number of scored windows."""
    window_length: int = 256
    """Tokens in a window."""
    skip_first: int = 1
    """Positions at the start of each window that enter no statistics: the first is an attention sink."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text is not None and self.dataset is not None:
            raise InputError(
                f"only one text can be read, got data set {self.dataset} and file {self.text}: leave one of them out"
            )
        if self.text is None and self.dataset is None:
            object.__setattr__(self, "dataset", "wikitext-2")

    def require_inputs(self) -> None:
        """Refuse a model or a data set that is neither here nor to be fetched, within seconds."""
        super().require_inputs()
        from probe.text import corpora

        if self.dataset in corpora.DATASETS:
            corpora.require_dataset(self.dataset, self.split)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that change no result: the run directory, and what is printed."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Run directory, used as it is; runs/ANALYSIS/MODEL-KEY if none is named."""
    fresh: bool = False
    """Move an old run in that directory aside and begin anew."""
    dry_run: bool = False
    """Do a task or two of each stage, print the tasks with the time and memory that all would take, and stop."""
    quiet: bool = False
    """Show no progress."""


def parse_layers(text: str, n_layers: int) -> list[int]:
    """Parse layers from "all" or a comma list.

    Args:
        text: "all", or indices as in "0,5,10".
        n_layers: Number of blocks of the model.

    Returns:
        Indices, ascending, each once.

    Raises:
        InputError: If an index is no number or out of range.
    """
    if text.strip() == "all":
        return list(range(n_layers))
    try:
        layers = sorted({int(index) for index in text.split(",")})
    except ValueError:
        raise InputError(f"layers must be all or numbers like 0,5,10, got {text!r}") from None
    if outside := [layer for layer in layers if not 0 <= layer < n_layers]:
        raise InputError(
            f"layers must lie between 0 and {n_layers - 1}, for the model has {n_layers} blocks, got {outside[0]}"
        )
    return layers
