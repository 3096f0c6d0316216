"""`load_model`: a `LanguageModel` from a name or from a loaded object.

The module itself is never changed: no part of it is replaced, and a pass with hooks equals one without to the bit.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from probe.errors import InputError
from probe.model import adapters, loading, sources
from probe.model.architectures import ARCHITECTURES
from probe.model.hooks import hooked
from probe.model.huggingface import HuggingFaceModel
from probe.model.protocol import LanguageModel


def load_model(
    name_or_object: str | Path | nn.Module | LanguageModel,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    random_init: int | None = None,
    shuffled_weights: int | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a model by name, or wrap one that is loaded.

    Args:
        name_or_object: An alias ("smollm2-135m-instruct-q4", "pythia-1b"), a hub id, a directory, a .gguf file; or a
            loaded Hugging Face causal LM, a TransformerLens `TransformerBridge`, or any `LanguageModel`. A loaded
            object is used as it is: neither moved nor cast nor put into another mode.
        tokenizer: Tokenizer of a loaded object; without one the model reads token ids only.
        revision: Branch, tag or commit on the hub, for example "step1000".
        device: Device for the weights, "cpu" by default.
        dtype: "float32" (default), "float64", "bfloat16" or "float16".
        random_init: Seed of a control: the same architecture with freshly initialised weights. No weights are read.
        shuffled_weights: Seed of a control: the entries of every matrix permuted, gains and biases kept, tied weights
            still tied.
        trust_remote_code: Run the code that comes with the model's repository.

    Returns:
        The model, in evaluation mode and with frozen parameters (a loaded object: as it was).

    Raises:
        InputError: If there is no such model, it cannot be read, it has no causal residual stream of constant width, or
            options contradict each other.
    """
    control = loading.Control(random_init, shuffled_weights)
    if isinstance(name_or_object, str | Path):
        if tokenizer is not None:
            raise InputError("tokenizer= goes with a loaded model, and a name brings its own tokenizer; leave it out")
        source = sources.resolve(str(name_or_object), revision)
        return _read(source, device or "cpu", dtype or "float32", control, trust_remote_code=trust_remote_code)
    if any(option is not None for option in (revision, device, dtype)):
        raise InputError(
            "a loaded model is used as it is: leave out revision=, device= and dtype=, or move the model yourself"
        )
    if not isinstance(name_or_object, nn.Module) or not hasattr(name_or_object, "config"):
        return _as_language_model(name_or_object, control)
    return _given(name_or_object, tokenizer, control)


def _read(
    source: sources.Source, device: str, dtype: str, control: loading.Control, *, trust_remote_code: bool
) -> HuggingFaceModel:
    target, torch_dtype = device_named(device), _dtype(dtype)
    module, tokenizer = loading.load(
        source, dtype=torch_dtype, random_init=control.random_init, trust_remote_code=trust_remote_code
    )
    module = module.to(target).requires_grad_(False)
    if control.shuffled_weights is not None:
        loading.shuffled(module, control.shuffled_weights)
    return _built(source.name, module, tokenizer, control.described(source.description), source.revision)


def _given(given: nn.Module, tokenizer: Any, control: loading.Control) -> HuggingFaceModel:
    module, description = given, "given as an object"
    if adapters.is_bridge(given):
        bridge: Any = given
        module, description = bridge.original_model, "given as a TransformerBridge, whose own attention code runs"
        tokenizer = bridge.tokenizer if tokenizer is None else tokenizer
    if control.random_init is not None:
        module = loading.fresh(module, control.random_init)
    elif control.shuffled_weights is not None:
        module = loading.shuffled(copy.deepcopy(module), control.shuffled_weights)
    return _built(_name_of(given), module, tokenizer, control.described(description), None)


def _built(name: str, module: nn.Module, tokenizer: Any, description: str, revision: str | None) -> HuggingFaceModel:
    model = HuggingFaceModel(name, module, tokenizer, description, adapters.layout_of(module), revision)
    return model if model.architecture in ARCHITECTURES else _checked(model)


def _checked(model: HuggingFaceModel) -> HuggingFaceModel:
    """Run a few tokens through a model whose layout is an adapter's, and keep the part of the layout that holds."""
    tokens = torch.arange(8).remainder(model.n_vocab)[None]
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        # Copies, because some blocks later add to an output in place.
        watching = hooked(map(model.site, model.sites), lambda site, tensor: seen.update({site.name: tensor.clone()}))
        with watching:
            logits = model.forward(tokens)
        ends = [seen[f"blocks.{layer}.hook_resid_post"] for layer in range(model.n_layers)]
        unembedded = model.unembed(ends[-1]) if ends[-1].shape[-1] == model.d_model else None
    widths = {state.shape[-1] for state in seen.values()}
    if unembedded is None or len(widths) > 1 or not torch.allclose(unembedded, logits, rtol=1e-3, atol=1e-3):
        raise InputError(
            f"a model needs a residual stream of constant width that its final norm and head read, and {model.name} "
            f"({model.architecture}) has none under the paths of its TransformerLens adapter; use another family"
        )
    tolerance = torch.finfo(model.dtype).eps ** 0.5
    for layer, end in enumerate(ends):
        added = [seen[f"blocks.{layer}.{name}"] for name in model.at(layer).added]
        rest = end - sum(added, seen[f"blocks.{layer}.hook_resid_pre"])
        if added and rest.norm() > tolerance * end.norm():
            bare = tuple(replace(kind, sites={}) for kind in model.layout.kinds)
            return replace(model, layout=replace(model.layout, kinds=bare))
    return model


def _as_language_model(model: Any, control: loading.Control) -> LanguageModel:
    members = [name for name in vars(LanguageModel) if not name.startswith("_")]
    # The class is asked first, because asking the object would compute its properties.
    missing = [name for name in members if not hasattr(type(model), name) and not hasattr(model, name)]
    if missing:
        raise InputError(
            "a model must be a name, a Hugging Face causal LM, a TransformerBridge or have LanguageModel's members; "
            f"got {type(model).__name__} without {', '.join(missing[:3])}"
        )
    if control != loading.Control():
        raise InputError("random_init= and shuffled_weights= need a Hugging Face module or a name; pass model.module")
    return cast("LanguageModel", model)


def _name_of(module: nn.Module) -> str:
    config: Any = module.config
    return str(getattr(config, "name_or_path", "")) or type(module).__name__


def device_named(name: str) -> torch.device:
    """Find the torch device of that name.

    Args:
        name: For example "cpu", "cuda", "cuda:1" or "mps".

    Returns:
        The device.

    Raises:
        InputError: If torch cannot use it on this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(
            f"the device must be one that torch can use here, got {name!r} ({first_line}); try cpu"
        ) from error
    return device


_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise InputError(f"the dtype must be one of {', '.join(_DTYPES)}, got {name!r}: choose one")
    return _DTYPES[name]
