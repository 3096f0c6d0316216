"""The one boundary to every architecture: `LanguageModel`, and `load_model` which makes one.

A `LanguageModel` says what the rest of the library needs: the blocks in depth order, the width of the residual stream,
a forward pass by the module's own code, the unembedding, and *sites*: names of tensors inside the pass, as
TransformerLens gives them (`blocks.3.hook_resid_post`), each resolved to a module to hook. The module itself is never
changed: no part of it is replaced, and a pass with hooks is equal to the bit to one without.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe import adapters, loading, sources
from probe.errors import InputError
from probe.hooks import Site, evaluating, first_tensor, hooked, with_first_tensor
from probe.huggingface import HuggingFaceModel
from probe.layouts import LAYOUTS

__all__ = ["HuggingFaceModel", "LanguageModel", "Site", "evaluating", "first_tensor", "load_model", "with_first_tensor"]


@runtime_checkable
class LanguageModel(Protocol):
    """What the rest of the library needs of a model. `W` windows, `T` positions, `d` the stream's width."""

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def description(self) -> str:
        """What a report says about its weights, for example "chat-tuned, dequantised from 4 bit"."""

    @property
    def architecture(self) -> str:
        """The family, for example "llama"."""

    @property
    def attention(self) -> str:
        """The attention implementation that runs, for example "sdpa"; "none" in a recurrent model."""

    @property
    def module(self) -> nn.Module:
        """The plain torch module."""

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, or None."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""

    @property
    def n_vocab(self) -> int:
        """Number of logits."""

    @property
    def max_positions(self) -> int | None:
        """Longest window, None if the architecture sets no limit."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in depth order."""

    @property
    def parallel(self) -> bool:
        """Attention and MLP of a block read the same state."""

    @property
    def recurrent(self) -> bool:
        """Blocks carry a state along the positions instead of attention."""

    @property
    def weight_hash(self) -> str:
        """Sha256 of all weights."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of all sites, in the order of the forward pass."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Token ids that are no text."""

    @property
    def bos_id(self) -> int | None:
        """The token that the tokenizer puts before a text, None if it puts none."""

    def site(self, name: str) -> Site:
        """Give the site of that name."""

    def projections(self, layer: int) -> dict[str, Tensor]:
        """Give the matrices of a block, each (out, in)."""

    def encode(self, text: str) -> list[int]:
        """Turn a text into token ids, no special ones added."""

    def embed(self, tokens: Int[Tensor, "window position"]) -> Float[Tensor, "window position d_model"]:
        """Give the token embeddings."""

    def forward(
        self, tokens: Int[Tensor, "window position"], **kwargs: Any
    ) -> Float[Tensor, "window position n_vocab"]:
        """Run the whole module."""

    def final_states(
        self, tokens: Int[Tensor, "window position"], **kwargs: Any
    ) -> Float[Tensor, "window position d_model"]:
        """Run the module up to the final norm."""

    def unembed(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch n_vocab"]:
        """Turn states behind the last block into logits."""


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
        name_or_object: an alias ("smollm2-135m-instruct-q4", "pythia-1b"), a hub id, a directory, a .gguf file; or a
            loaded Hugging Face causal LM, a TransformerLens `TransformerBridge`, or anything that is a `LanguageModel`
            already. A loaded object is used as it is: neither moved nor cast nor put into another mode.
        tokenizer: for a loaded object; without one it reads token ids only.
        revision: branch, tag or commit on the hub, for example "step1000".
        device: where to put the weights; "cpu" unless given.
        dtype: "float32" unless given, or "float64", "bfloat16", "float16".
        random_init: seed; the same architecture with freshly initialised weights. No weights are read.
        shuffled_weights: seed; the entries of every matrix permuted, gains and biases kept, tied weights still tied.
        trust_remote_code: run the code that comes with the model's repository.

    Returns:
        The model, in evaluation mode, its parameters frozen (of a loaded object: as they were).

    Raises:
        InputError: there is no such model, it cannot be read, or it has no causal residual stream of constant width.
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
    return model if model.architecture in LAYOUTS else _checked(model)


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
        name: cpu, cuda, cuda:1, mps.

    Returns:
        The device.

    Raises:
        InputError: torch cannot use it here.
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
