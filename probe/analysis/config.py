"""The options that analyses share: what a model, a text and a run directory are named by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from probe.analysis.fields import Among, AtLeast, described, settle, shown
from probe.errors import InputError
from probe.model.control import Control
from probe.model.in_memory import InMemory
from probe.model.names import DEFAULT_MODEL
from probe.text.names import DEFAULT_DATASET, Choice

__all__ = ["Among", "AtLeast", "Config", "ModelConfig", "RunOptions", "TextConfig", "parse_layers"]

if TYPE_CHECKING:
    from torch import nn

    from probe.model import LanguageModel

    Model: TypeAlias = str | Path | InMemory | nn.Module | LanguageModel
    Layers: TypeAlias = str | int | Sequence[int]
else:  # these types stand in large libraries; what is given is looked at where it is used
    Model = Layers = Any

_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu|mtia|xla)(:\d+)?")


def _typed_as_text(metavar: str) -> PrimitiveConstructorSpec[Any]:
    """The form on a command line of a field to which Python may also give an object."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [str(value)],
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of every analysis.

    Attributes:
        examples: What `--help` shows as examples: options as they are typed, and what they do.

    Raises:
        InputError: If an option has another type, lies below its bound or names something unknown.
    """

    examples: ClassVar[Mapping[str, str]] = {}

    device: str = "cpu"
    """Where it is computed: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Number format of the weights and of the states."""
    seed: int = 0
    """Seed of everything that is drawn at random."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__doc__ = described(cls)

    def __post_init__(self) -> None:
        for name in ("device", "dtype"):
            given = getattr(self, name)
            if type(given).__module__ == "torch":  # torch.device("cuda"), torch.bfloat16
                object.__setattr__(self, name, str(given).removeprefix("torch."))
        settle(self)
        if not _DEVICE.fullmatch(self.device):
            raise InputError(f"device= must be cpu, cuda, cuda:1, mps or the like, got {self.device!r}: choose one")

    def require_inputs(self) -> None:
        """Refuse inputs that are neither here nor to be fetched, before the large libraries are imported."""


Config.__doc__ = described(Config)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Options of every analysis of a language model.

    Raises:
        InputError: If the model is an object that cannot be used, or options contradict it or each other.
    """

    model: Annotated[Model, _typed_as_text("NAME")] = DEFAULT_MODEL
    """Alias, hub id, directory or .gguf file (a comma list makes one run each and a page that compares); in Python also
    a model in memory."""
    revision: str | None = None
    """Revision on the hub, for example step1000; a comma list makes one run each."""
    random_init: Annotated[int | None, tyro.conf.arg(metavar="SEED")] = None
    """Same architecture with fresh weights drawn under this seed."""
    shuffled_weights: Annotated[int | None, tyro.conf.arg(metavar="SEED")] = None
    """Entries of each weight matrix permuted under this seed, gains kept."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model's repository or directory."""
    layers: Annotated[Layers, _typed_as_text("all|INT,INT,...")] = "all"
    """Blocks to look at, for example 0,5,10."""

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            object.__setattr__(self, "model", _chosen(self.model))
        object.__setattr__(self, "layers", _layers_in_words(self.layers))
        if isinstance(self.model, InMemory) and self.model.is_here:
            self._use(self.model)
        super().__post_init__()
        Control(self.random_init, self.shuffled_weights)

    def _use(self, model: InMemory) -> None:
        """Take device and dtype from a model in memory, which is used as it is; refuse what only a name can have."""
        for name, found in (("device", model.loaded.device), ("dtype", model.loaded.dtype)):
            own, given = str(found).removeprefix("torch."), str(getattr(self, name)).removeprefix("torch.")
            if given not in (own, getattr(Config, name)) and f"{given}:0" != own:
                raise InputError(
                    f"a model in memory is used as it is, and {model} has {name} {own}, got {name}={given!r}: leave it "
                    "out, or move the model yourself"
                )
            object.__setattr__(self, name, own)
        if self.revision is not None or self.trust_remote_code:
            wrong = "revision" if self.revision is not None else "trust_remote_code"
            raise InputError(f"{wrong}= goes with a model that is named, and {model} is in memory: leave it out")
        asked = [name for name in ("random_init", "shuffled_weights") if getattr(self, name) is not None]
        asked += [name for name in ("init_seeds", "shuffled_seeds") if getattr(self, name, 0)]
        if asked and not model.has_controls:
            raise InputError(
                f"controls are made of a Hugging Face model, and {model} is a {type(model.loaded).__name__}, got "
                f"{asked[0]}={getattr(self, asked[0])}: pass "
                + ", ".join(f"{name}={0 if name.endswith('seeds') else None}" for name in asked)
            )

    def require_inputs(self) -> None:
        """Refuse a model that is neither here nor to be fetched, within seconds."""
        if isinstance(self.model, InMemory):
            return
        from probe.model import sources

        source = sources.resolve(str(self.model), self.revision)
        sources.require(source, weights=self.random_init is None, code=self.trust_remote_code)

    def layer_indices(self, n_layers: int) -> list[int]:
        """List the layers to look at, in a model of `n_layers`.

        Args:
            n_layers: Number of blocks of the model.

        Returns:
            Their indices, ascending.
        """
        return parse_layers(str(self.layers), n_layers)


def _chosen(given: object) -> str | InMemory:
    if isinstance(given, Mapping):  # in config.json
        return InMemory(**given)
    return str(given) if isinstance(given, Path) else given if isinstance(given, InMemory) else InMemory.of(given)


@dataclass(frozen=True, kw_only=True)
class TextConfig(ModelConfig):
    """Options of every analysis of a language model on a text.

    Raises:
        InputError: If both a data set and a file are named, or the data set or its split is unknown.
    """

    dataset: Annotated[str | None, tyro.conf.arg(help_behavior_hint="(default: wikitext-2, without --text)")] = None
    """wikitext-2, wikitext-103, sample, or OWNER/NAME or OWNER/NAME:CONFIGURATION of the hub, a document a row."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A UTF-8 file, where a line ' = Title = ' opens a document; or .jsonl, .json or .parquet, a document a row."""
    split: Annotated[
        str | None, tyro.conf.arg(help_behavior_hint="(default: test; of a data set of the hub the only one)")
    ] = None
    """Split of the data set, for example test, validation or train."""
    column: Annotated[str | None, tyro.conf.arg(help_behavior_hint="(default: the only column of text, or 'text')")] = (
        None
    )
    """Column of the documents, where these are rows."""
    windows: Annotated[int, AtLeast(1)] = 32
    """Number of scored windows."""
    window_length: Annotated[int, AtLeast(2)] = 256
    """Tokens in a window."""
    skip_first: Annotated[int, AtLeast(0)] = 1
    """Positions at the start of each window that enter no statistics: the first is an attention sink."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text is None and self.dataset is None:
            object.__setattr__(self, "dataset", DEFAULT_DATASET)
        settled_text(self)
        model = self.model
        if isinstance(model, InMemory) and model.is_here and model.loaded.tokenizer is None:
            raise InputError(
                f"a text needs the model's tokenizer, and {model} has none: pass model=probe.load_model(module, "
                "tokenizer=...)"
            )

    def require_inputs(self) -> None:
        """Refuse a model or a text that is neither here nor to be fetched, within seconds."""
        super().require_inputs()
        from probe.text import corpora

        corpora.require(self.chosen_text)

    @property
    def chosen_text(self) -> Choice:
        """The text that the options name."""
        return Choice(self.dataset, self.text, self.split, self.column)


def settled_text(config: Any) -> None:
    """Set the data set and the split of a configuration that names a text, or refuse them.

    Args:
        config: The instance, with the fields `dataset`, `text`, `split` and `column`.
    """
    choice = Choice(config.dataset, config.text, config.split, config.column)
    for name in ("dataset", "split"):
        object.__setattr__(config, name, getattr(choice, name))


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


def _numbers(text: str) -> list[int] | None:
    """The layers of a comma list, ascending and each once; None for "all"."""
    if text.strip() == "all":
        return None
    try:
        return sorted({int(index) for index in text.split(",")})
    except ValueError:
        raise InputError(f"layers must be all or numbers like 0,5,10, got {text!r}") from None


def _layers_in_words(given: Any) -> str:
    """The layers as a command line has them, of a text, a number or numbers in any sequence."""
    plain = given.tolist() if hasattr(given, "tolist") else given
    numbers = [plain] if isinstance(plain, int) else plain
    if isinstance(numbers, str):
        _numbers(numbers)
        return numbers
    items: list[Any] = list(numbers) if isinstance(numbers, Sequence) else []
    numbers = [item.item() if getattr(item, "shape", None) == () else item for item in items]
    if not numbers or any(type(number) is not int for number in numbers):
        raise InputError(f"layers= must be all or numbers like 0,5,10, got {shown(given)}: pass layers=[0, 5, 10]")
    return ",".join(map(str, numbers))


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
    layers = _numbers(text)
    if layers is None:
        return list(range(n_layers))
    if outside := [layer for layer in layers if not 0 <= layer < n_layers]:
        raise InputError(
            f"layers must lie between 0 and {n_layers - 1}, for the model has {n_layers} blocks, got {outside[0]}"
        )
    return layers
