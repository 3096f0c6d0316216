"""What a run is about: the model, its controls, the windows of the text and the positions, each made once a process.

A `Subject` is made from the options alone, so that a worker in another process makes its own (a model in memory stays
in the process of its user). What it has loaded it keeps, and frees with itself. Nothing large is imported before it is
needed.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from probe import machine, model, text
from probe.analysis.config import Config, ModelConfig, TextConfig
from probe.errors import InputError
from probe.model.in_memory import InMemory
from probe.model.names import BUNDLED

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from probe.model import LanguageModel
    from probe.text import Part, Windows

C = TypeVar("C", bound=Config)
T = TypeVar("T")

OWN = "model"
"""The variant that is the model itself."""
CONTEXT_CHARACTERS = 60
KEPT = 1 / 3  # of the machine's memory may hold the weights of variants


class Subject(Generic[C]):
    """The model, its controls and the text that a run's options name. It pickles as these options.

    Args:
        config: The options.

    Attributes:
        config: The options.
        loading: Seconds that went into loading weights so far.
    """

    def __init__(self, config: C) -> None:
        self.config = config
        self.loading = 0.0
        self._variants: OrderedDict[tuple[int | None, int | None], LanguageModel] = OrderedDict()
        self._kept: dict[Hashable, Any] = {}

    def __reduce__(self) -> tuple[type[Subject[C]], tuple[C]]:
        return type(self), (self.config,)

    def keep(self, name: Hashable, make: Callable[[], T]) -> T:
        """Make something once.

        Args:
            name: What it is found again by.
            make: Makes it.

        Returns:
            What was made.
        """
        if name not in self._kept:
            self._kept[name] = make()
        found: T = self._kept[name]
        return found

    @property
    def model(self) -> LanguageModel:
        """The model itself."""
        return self.variant(OWN)

    def variant(self, name: str) -> LanguageModel:
        """Load the model, or a control of it, once.

        Args:
            name: ``init-SEED`` for fresh weights, ``shuffled-SEED`` for permuted ones; any other name stands for the
                model itself, seen in another way.

        Returns:
            The model. Controls that no longer fit a third of the machine's memory are given up, the one that was not
            asked for longest first, and loaded again when they are asked for.
        """
        control = self.control(name)
        if control not in self._variants:
            start = time.perf_counter()
            self._variants[control] = self._load(*control)
            self.loading += time.perf_counter() - start
            self._give_up(control)
        self._variants.move_to_end(control)
        return self._variants[control]

    def control(self, name: str) -> tuple[int | None, int | None]:
        """Look up what is done to the weights of a variant.

        Args:
            name: As `variant` takes it.

        Returns:
            Seed of fresh weights and seed of permuted ones, None where they are the model's own.
        """
        kind, _, seed = name.partition("-")
        if kind in ("init", "shuffled"):
            return (int(seed), None) if kind == "init" else (None, int(seed))
        return getattr(self.config, "random_init", None), getattr(self.config, "shuffled_weights", None)

    def _load(self, random_init: int | None, shuffled_weights: int | None) -> LanguageModel:
        config = self._named(ModelConfig)
        if isinstance(config.model, InMemory):
            return config.model.variant(random_init, shuffled_weights)
        return model.load_model(
            str(config.model),
            revision=config.revision,
            device=config.device,
            dtype=config.dtype,
            random_init=random_init,
            shuffled_weights=shuffled_weights,
            trust_remote_code=config.trust_remote_code,
        )

    def _give_up(self, asked: tuple[int | None, int | None]) -> None:
        memory = machine.describe()["memory"]
        sizes = {control: _bytes(kept) for control, kept in self._variants.items()}
        for control in list(self._variants):
            if memory is None or sum(sizes.values()) <= KEPT * memory:
                return
            if control not in (asked, self.control(OWN)):
                del self._variants[control], sizes[control]

    def _named(self, kind: type[T]) -> T:
        """The options, of a kind that names what is asked for."""
        if not isinstance(self.config, kind):
            raise TypeError(f"options of {kind.__name__} name it, but these are {type(self.config).__name__}")
        return self.config

    @cached_property
    def layers(self) -> list[int]:
        """The layers that are looked at."""
        return self._named(ModelConfig).layer_indices(self.model.n_layers)

    def windows(self, part: Part = "all", count: int | None = None, *, at_most: bool = False) -> Windows:
        """Draw windows of the text, once.

        Args:
            part: Of the documents, as `probe.text.load_windows` takes it.
            count: How many; by default the option `windows`.
            at_most: Where the text has fewer, take them all.

        Returns:
            The windows.
        """
        config = self._named(TextConfig)
        wanted = config.windows if count is None else count

        def draw() -> Windows:
            return text.load_windows(
                self.model,
                dataset=config.dataset,
                text=config.text,
                split=config.split,
                column=config.column,
                windows=wanted,
                window_length=config.window_length,
                part=part,
                seed=config.seed,
                at_most=at_most,
            )

        return self.keep(("windows", part, wanted, at_most), draw)

    def draw(self, windows: Windows, count: int, *, followed: bool = False) -> Int[Tensor, "window chosen"]:
        """Draw positions of windows from those that count.

        Args:
            windows: The windows.
            count: Positions a window; fewer where a window has fewer.
            followed: Only positions that a token of the window follows.

        Returns:
            Positions, sorted, the same number in each window; see `draw_positions`.
        """
        config = self._named(TextConfig)
        return draw_positions(windows, count, skip_first=config.skip_first, seed=config.seed, followed=followed)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of what results depend on besides the options: weights, attention, and the text where one is read."""
        found: dict[str, str] = {}
        if isinstance(self.config, ModelConfig):
            found |= {"weights": self.model.weight_hash, "attention": self.model.attention}
        if isinstance(self.config, TextConfig):
            found |= {"text": self.windows("all", 1).sha256}
        return found

    @property
    def kind(self) -> str:
        """Kind of model in a claim across architectures: "transformer", "state-space" or "control"."""
        return kind_of(self._named(ModelConfig), recurrent=self.model.recurrent)

    def attributes(self, scored: Windows) -> dict[str, Any]:
        """Describe model and text for the Dataset.

        Args:
            scored: The windows that are measured.

        Returns:
            Attributes by name.
        """
        config = self._named(TextConfig)
        return model_attributes(config, self.model) | {
            "text": scored.name,
            "demonstration": int(config.text is None and config.dataset == "sample"),
            "n_scored_windows": scored.n_windows,
            "n_documents_scored": scored.n_documents,
            "window_length": scored.window_length,
        }

    def token_coordinates(self, windows: Windows, positions: Int[Tensor, "window chosen"]) -> dict[str, Any]:
        """Give the coordinates of measured tokens along `query`: window, position, document, title, token, context.

        Args:
            windows: The windows.
            positions: The measured positions of each.

        Returns:
            Coordinates by name, as `xarray.Dataset` takes them.
        """
        n_windows, chosen = positions.shape
        window = [row for row in range(n_windows) for _ in range(chosen)]
        position = positions.flatten().tolist()
        document = windows.document[window]
        decode = self.model.tokenizer.decode
        tokens, contexts = [], []
        for row, column in zip(window, position, strict=True):
            tokens.append(decode([int(windows.tokens[row, column])]))
            before = windows.tokens[row, max(0, column - CONTEXT_CHARACTERS) : column]
            contexts.append(decode(before.tolist())[-CONTEXT_CHARACTERS:])
        return {
            "window": ("query", window),
            "position": ("query", position),
            "document": ("query", document.numpy()),
            "title": ("query", [windows.titles[index] for index in document.tolist()]),
            "token": ("query", tokens),
            "context": ("query", contexts),
        }


def _bytes(loaded: LanguageModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in loaded.module.parameters())


def spread(layers: Sequence[int], count: int) -> list[int]:
    """Choose some of the layers, evenly spread, first and last among them.

    Args:
        layers: The layers.
        count: How many at most.

    Returns:
        The chosen ones.
    """
    import torch

    places = torch.linspace(0, len(layers) - 1, min(count, len(layers))).round().int().tolist()
    return [layers[place] for place in dict.fromkeys(places)]


def draw_positions(
    windows: Windows, count: int, *, skip_first: int, seed: int, followed: bool = False
) -> Int[Tensor, "window chosen"]:
    """Draw from each window's counted positions, under a seed.

    A window's positions depend on its tokens and the seed alone, whichever windows it is drawn with: analyses that read
    the same window measure it at the same positions, and can use each other's results.

    Args:
        windows: The windows.
        count: Positions a window; fewer where a window has fewer.
        skip_first: Positions at the start that do not count.
        seed: Of the draw.
        followed: Only positions that a token of the window follows.

    Returns:
        Positions, sorted, the same number in each window.

    Raises:
        InputError: If a window has no such position.
    """
    import torch

    counted = windows.counted(skip_first)
    if followed:
        counted[:, -1] = False
    drawn = torch.stack([_uniform(tokens, seed) for tokens in windows.tokens]).masked_fill(~counted, -1.0)
    chosen = min(count, int(counted.sum(1).min()))
    if chosen < 1:
        raise InputError(
            f"every window needs a position that counts, and one of {windows.window_length} tokens with the first "
            f"{skip_first} left out has none: pass a smaller skip_first= or a larger window_length="
        )
    found: Tensor = drawn.topk(chosen, dim=1).indices.sort(dim=1).values
    return found


def _uniform(tokens: Tensor, seed: int) -> Tensor:
    """Uniform numbers drawn from a window's tokens and a seed."""
    import torch

    digest = hashlib.sha256(seed.to_bytes(8, "big", signed=True) + tokens.numpy().tobytes()).digest()
    return torch.rand(len(tokens), generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))


def model_attributes(config: ModelConfig, named: Any) -> dict[str, Any]:
    """Describe the model, or its weights alone, for the Dataset of any analysis.

    Args:
        config: The options.
        named: A `LanguageModel`, or what `probe.weights.open_weights` gives.

    Returns:
        Attributes by name.
    """
    in_memory = isinstance(config.model, InMemory)
    return {
        "model": named.name,
        "revision": config.revision or (getattr(named, "revision", None) if in_memory else None) or "",
        "description": f"{named.description}, in memory" if in_memory else named.description,
        "architecture": named.architecture,
        "kind": kind_of(config, recurrent=named.recurrent),
        "d_model": named.d_model,
    }


def kind_of(config: ModelConfig, *, recurrent: bool) -> str:
    """Sort a model for claims across architectures, in which controls and our own small models decide nothing.

    Args:
        config: Names the model.
        recurrent: Whether it is a state-space model.

    Returns:
        "transformer", "state-space" or "control".
    """
    fresh = config.random_init is not None or config.shuffled_weights is not None
    if fresh or str(config.model).startswith(BUNDLED):
        return "control"
    return "state-space" if recurrent else "transformer"
