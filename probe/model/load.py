"""`load_model`: a `LanguageModel` from a name or from a loaded object.

The module itself is never changed: no part of it is replaced, and a pass with hooks equals one without to the bit.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from probe.boundary import public, shown
from probe.errors import InputError
from probe.model import adapters, loading, sources
from probe.model.architectures import BlockLayout, Layout, Matrix, matrix_of
from probe.model.control import Control
from probe.model.huggingface import HuggingFaceModel
from probe.model.matrices import matrices_in
from probe.model.names import DEFAULT_MODEL
from probe.model.protocol import LanguageModel
from probe.model.support import kinds_of, left_out, spans
from probe.model.tracing import probe_tokens

logger = logging.getLogger("probe.model")


@public
def load_model(
    name_or_object: str | Path | nn.Module | LanguageModel = DEFAULT_MODEL,
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
            object is used as it is: neither moved nor cast nor put into another mode. By default the model that needs
            no network, "smollm2-135m-instruct-q4".
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
    control = Control(random_init, shuffled_weights)
    if isinstance(name_or_object, str | Path):
        if tokenizer is not None:
            raise InputError(
                f"tokenizer= goes with a loaded model, and a name brings its own tokenizer, got {shown(tokenizer)}: "
                "leave it out"
            )
        source = sources.resolve(str(name_or_object), revision)
        return _read(source, device or "cpu", dtype or "float32", control, trust_remote_code=trust_remote_code)
    given = {"revision": revision, "device": device, "dtype": dtype}
    if any(option is not None for option in given.values()):
        named = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        raise InputError(f"a loaded model is used as it is, got {named}: leave it out, or move the model yourself")
    if tokenizer is not None and not all(callable(getattr(tokenizer, name, None)) for name in ("encode", "decode")):
        raise InputError(
            f"tokenizer= must encode and decode, got {shown(tokenizer)}: pass one of transformers, or leave it out to "
            "pass token ids"
        )
    if isinstance(name_or_object, HuggingFaceModel):
        return _wrapped_again(name_or_object, tokenizer, control)
    if not isinstance(name_or_object, nn.Module) or not hasattr(name_or_object, "config"):
        return _as_language_model(name_or_object, tokenizer, control)
    return _given(name_or_object, tokenizer, control)


def _read(
    source: sources.Source, device: str, dtype: str, control: Control, *, trust_remote_code: bool
) -> HuggingFaceModel:
    target, torch_dtype = device_named(device), _dtype(dtype)
    module, tokenizer = loading.load(
        source, dtype=torch_dtype, random_init=control.random_init, trust_remote_code=trust_remote_code
    )
    module = module.to(target).requires_grad_(False)
    if control.shuffled_weights is not None:
        loading.shuffled(module, control.shuffled_weights)
    return _built(source.name, module, tokenizer, control.described(source.description), source.revision)


def _given(given: nn.Module, tokenizer: Any, control: Control) -> HuggingFaceModel:
    given = _opened(given)
    module, description = given, "given as an object"
    if adapters.is_bridge(given):
        bridge: Any = given
        module, description = bridge.original_model, "given as a TransformerBridge, whose own attention code runs"
        tokenizer = bridge.tokenizer if tokenizer is None else tokenizer
    return _built(_name_of(given), _controlled(module, control), tokenizer, control.described(description), None)


def _wrapped_again(model: HuggingFaceModel, tokenizer: Any, control: Control) -> HuggingFaceModel:
    """The model as it is, or a control of it or the same with another tokenizer."""
    if tokenizer is None and control == Control():
        return model
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    module = _controlled(model.module, control)
    return _built(model.name, module, tokenizer, control.described(model.description), model.revision)


def _controlled(module: nn.Module, control: Control) -> nn.Module:
    """The module, or another with control weights."""
    if control.random_init is not None:
        return loading.fresh(module, control.random_init)
    if control.shuffled_weights is not None:
        return loading.shuffled(copy.deepcopy(module), control.shuffled_weights)
    return module


def _opened(given: nn.Module) -> nn.Module:
    """The model inside what `torch.compile` and PEFT put around it; adapters that PEFT put into its layers stay."""
    while True:
        wrapper: Any = given
        if hasattr(wrapper, "_orig_mod"):
            given = wrapper._orig_mod
        elif hasattr(wrapper, "peft_config") and hasattr(wrapper, "get_base_model"):
            given = wrapper.get_base_model()
        else:
            return given


def _built(name: str, module: nn.Module, tokenizer: Any, description: str, revision: str | None) -> HuggingFaceModel:
    model = HuggingFaceModel(name, module, tokenizer, description, adapters.layout_of(module), revision)
    try:
        model = model.laid_out(_looked_at(model))
    except InputError as error:
        inside = _causal_inside(module)
        if inside is None:
            raise
        logger.info("%s; its %s is tried", error, type(inside).__name__)
        try:
            return _built(name, inside, tokenizer, f"{description}, the {type(inside).__name__} inside", revision)
        except InputError as other:
            logger.info("%s", other)
        raise
    for part in left_out(model, kinds_of(model)):
        logger.warning("%s has no %s in blocks %s: %s", name, part.what, spans(part.layers), part.why)
    return model


def _causal_inside(module: nn.Module) -> nn.Module | None:
    """The causal language model with a head of its own that a model of several parts holds, if there is one."""
    from transformers import PreTrainedModel

    inside = (part for part in module.modules() if part is not module and isinstance(part, PreTrainedModel))
    return next((part for part in inside if part.get_output_embeddings() is not None), None)


def _looked_at(model: HuggingFaceModel) -> Layout:
    """The layout with the blocks and sites that a short pass shows; names alone prove nothing."""
    found, kinds, order = model.found, list[BlockLayout](), list[int]()
    stated = replace(model.layout, blocks=found.blocks)
    blocks = cast("nn.ModuleList", model.module.get_submodule(found.blocks))
    seen: list[dict[str, Matrix]] | None = None
    for layer, (block, sums) in enumerate(zip(blocks, found.sums, strict=True)):
        sites = {**sums.sites, **found.mixtures[layer]}
        if "hook_mlp_out" in sites:  # in the order of the pass it comes behind what happens inside the MLP
            sites["hook_mlp_out"] = sites.pop("hook_mlp_out")
        kind = replace(stated.at(layer, block), sites=sites, parallel=sums.parallel, scale=sums.scale)
        same = _that_multiply(kind, block, found.more)
        if len(same) < len(kind.projections):
            first = next(one.module for name, one in kind.projections.items() if name not in same)
            kind = replace(kind, projections=same, form=None, withheld=first)
        elif not kind.projections or _is_joined(kind, block):
            if seen is None:
                tokens = probe_tokens(found.n_vocab).to(model.device)
                seen = matrices_in(model.module, found.blocks, found.sums, tokens)
            kind = replace(kind, projections=seen[layer])
        if kind not in kinds:
            kinds.append(kind)
        order.append(kinds.index(kind))
    return replace(stated, embedding=found.embedding, kinds=tuple(kinds), order=tuple(order))


def _that_multiply(kind: BlockLayout, block: nn.Module, more: frozenset[nn.Module]) -> dict[str, Matrix]:
    """The stated matrices whose modules hold them and multiply by them, and do nothing else."""
    same = {}
    for name, one in kind.projections.items():
        module = block.get_submodule(one.module)
        if module not in more and isinstance(getattr(module, "weight", None), torch.Tensor):
            same[name] = one
    return same


def _is_joined(kind: BlockLayout, block: nn.Module) -> bool:
    """Tell whether a matrix stated as `q` alone makes more than the queries: it has other rows than `o` has columns."""
    q, o = (kind.projections.get(name) for name in "qo")
    if kind.form is not None or q is None or o is None or getattr(q, "cut", None) is not None:
        return False
    rows, columns = len(matrix_of(block.get_submodule(q.module))), matrix_of(block.get_submodule(o.module)).shape[1]
    return rows != columns and rows % columns == 0


def _as_language_model(model: Any, tokenizer: Any, control: Control) -> LanguageModel:
    members = [name for name in vars(LanguageModel) if not name.startswith("_")]
    # The class is asked first, because asking the object would compute its properties.
    missing = [name for name in members if not hasattr(type(model), name) and not hasattr(model, name)]
    if missing:
        raise InputError(
            "a model must be a name, a Hugging Face causal LM, a TransformerBridge or have LanguageModel's members; "
            f"got {type(model).__name__} without {', '.join(missing[:3])}"
        )
    if control != Control():
        raise InputError("random_init= and shuffled_weights= need a Hugging Face module or a name; pass model.module")
    if tokenizer is not None:
        raise InputError(
            f"tokenizer= goes with a Hugging Face module, and a {type(model).__name__} has its own: leave it out"
        )
    return cast("LanguageModel", model)


def _name_of(module: nn.Module) -> str:
    config: Any = module.config
    return str(getattr(config, "name_or_path", "")) or type(module).__name__


@public
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
