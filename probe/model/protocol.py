"""The one boundary to every architecture: what the rest of the library needs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.model.hooks import Site


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
