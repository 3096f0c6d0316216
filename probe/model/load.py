"""Load a model by name, or take one that is loaded: `load_model`.

The module itself is never changed: no part of it is replaced, and a pass with hooks is equal to the bit to one without.
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
    """Load a model by name, or take one that is loaded.

    Args:
        name_or_object: An alias ("smollm2-135m-instruct-q4", "pythia-1b"), a hub id, a directory, a .gguf file; or a
            loaded Hugging Face causal LM, a TransformerLens `TransformerBridge`, or anything that is a `LanguageModel`
            already. A loaded object is used as it is: neither moved nor cast nor put into another mode.
        tokenizer: For a loaded object; without one it reads token ids only.
        revision: Branch, tag or commit on the hub, for example "step1000".
        device: Where to put the weights; "cpu" unless given.
        dtype: "float32" unless given, or "float64", "bfloat16", "float16".
        random_init: Seed; the same architecture with freshly initialised weights. No weights are read.
        shuffled_weights: Seed; the entries of every matrix permuted, gains and biases kept, tied weights still tied.
        trust_remote_code: Run the code that comes with the model's repository.

    Returns:
        The model, in evaluation mode, its parameters frozen (of a loaded object: as they were).

    Raises:
        InputError: If there is no such model, it cannot be read, or it has no causal residual stream of constant width.
    """
    control = loading.Control(random_init, shuffled_weights)
    if isinstance(name_or_object, str | Path):
        if tokenizer is not None:
            raise InputError("a tokenizer goes with a loaded model, and a name brings its own; leave it out")
        source = sources.resolve(str(name_or_object), revision)
        return _read(source, device or "cpu", dtype or "float32", control, trust_remote_code=trust_remote_code)
    if any(option is not None for option in (revision, device, dtype)):
        raise InputError("a loaded model is used as it is: leave out revision, device and dtype, or move it yourself")
    if not isinstance(name_or_object, nn.Module) or not hasattr(name_or_object, "config"):
        return _already_one(name_or_object, control)
    return _given(name_or_object, tokenizer, control)


def _read(
    source: sources.Source, device: str, dtype: str, control: loading.Control, *, trust_remote_code: bool
) -> HuggingFaceModel:
    where, number = device_named(device), _dtype(dtype)
    module, tokenizer = loading.load(
        source, dtype=number, random_init=control.random_init, trust_remote_code=trust_remote_code
    )
    module = module.to(where).requires_grad_(False)
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
    """Run a few tokens through a model whose layout is an adapter's, and keep of the layout what proves true."""
    tokens = torch.arange(8).remainder(model.n_vocab)[None]
    model = replace(model, layout=model.layout.restricted_to(model.blocks))
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        # Copies: some blocks go on to add to an output in place.
        keep = hooked(map(model.site, model.sites), lambda site, tensor: seen.update({site.name: tensor.clone()}))
        with keep:
            logits = model.forward(tokens)
        ends = [seen[f"blocks.{layer}.hook_resid_post"] for layer in range(model.n_layers)]
        unembedded = model.unembed(ends[-1]) if ends[-1].shape[-1] == model.d_model else None
    widths = {state.shape[-1] for state in seen.values()}
    if unembedded is None or len(widths) > 1 or not torch.allclose(unembedded, logits, rtol=1e-3, atol=1e-3):
        raise InputError(
            f"a model needs a residual stream of constant width that its final norm and head read, and {model.name} "
            f"({model.architecture}) has none that its TransformerLens adapter leads to; use another family"
        )
    tolerance = torch.finfo(model.dtype).eps ** 0.5
    for layer, end in enumerate(ends):
        added = [seen[f"blocks.{layer}.{name}"] for name in model.layout.added]
        rest = end - sum(added, seen[f"blocks.{layer}.hook_resid_pre"])
        if added and rest.norm() > tolerance * end.norm():
            return replace(model, layout=replace(model.layout, places={}))
    return model


def _already_one(model: Any, control: loading.Control) -> LanguageModel:
    members = [name for name in vars(LanguageModel) if not name.startswith("_")]
    # The class is asked first, because asking the object would compute its properties.
    missing = [name for name in members if not hasattr(type(model), name) and not hasattr(model, name)]
    if missing:
        raise InputError(
            "a model must be a name, a Hugging Face causal LM, a TransformerBridge or have LanguageModel's members; "
            f"got {type(model).__name__} without {', '.join(missing[:3])}"
        )
    if control != loading.Control():
        raise InputError("random_init and shuffled_weights need a Hugging Face module or a name; pass model.module")
    return cast("LanguageModel", model)


def _name_of(module: nn.Module) -> str:
    config: Any = module.config
    return str(getattr(config, "name_or_path", "")) or type(module).__name__


def device_named(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: Cpu, cuda, cuda:1, mps.

    Returns:
        The device.

    Raises:
        InputError: If torch cannot use it here.
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
        raise InputError(f"the dtype must be one of {', '.join(_DTYPES)}; got {name!r}")
    return _DTYPES[name]
