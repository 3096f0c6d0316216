"""The one boundary to every architecture: all that the rest of the library asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.boundary import public
from probe.errors import InputError
from probe.model.hooks import Site


@runtime_checkable
class LanguageModel(Protocol):
    """All that the rest of the library asks of a model."""

    @property
    def name(self) -> str:
        """The name that the user gave."""

    @property
    def description(self) -> str:
        """A phrase about the weights for reports, for example "chat-tuned, dequantised from 4 bit"."""

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
        """The device that holds the weights."""

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
        """Longest window; None if the architecture sets no limit."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in depth order."""

    @property
    def parallel(self) -> bool:
        """True if attention and MLP of a block read the same state."""

    @property
    def recurrent(self) -> bool:
        """True if blocks carry a state along the positions instead of attention."""

    @property
    def weight_hash(self) -> str:
        """Sha256 of all weights."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of all sites, in the order of the forward pass."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Token ids that are not text."""

    @property
    def bos_id(self) -> int | None:
        """The token that the tokenizer puts before a text; None if it puts none."""

    def site(self, name: str) -> Site:
        """Return the site of that name."""

    def projections(self, layer: int) -> dict[str, Tensor]:
        """Return the matrices of a block by name, each (out, in)."""

    def encode(self, text: str) -> list[int]:
        """Turn a text into token ids, without special tokens."""

    def embed(self, tokens: Int[Tensor, "window position"]) -> Float[Tensor, "window position d_model"]:
        """Return the token embeddings."""

    def forward(
        self, tokens: Int[Tensor, "window position"], **kwargs: Any
    ) -> Float[Tensor, "window position n_vocab"]:
        """Run the whole module."""

    def final_states(
        self, tokens: Int[Tensor, "window position"], **kwargs: Any
    ) -> Float[Tensor, "window position d_model"]:
        """Run the module up to the final norm."""

    def unembed(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch n_vocab"]:
        """Turn outputs of the last block into logits."""


@runtime_checkable
class HasBlocks(Protocol):
    """A named model with blocks, or the weights of one."""

    @property
    def name(self) -> str:
        """The name that the user gave."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""


@public
def require_layer(model: HasBlocks, layer: int) -> None:
    """Refuse a block that a model does not have.

    Args:
        model: The model, or its weights.
        layer: Index of the block.

    Raises:
        InputError: If there is no such block.
    """
    if not 0 <= layer < model.n_layers:
        raise InputError(
            f"a layer must lie in 0 … {model.n_layers - 1} for {model.name}, got {layer}: choose a block of the model"
        )
