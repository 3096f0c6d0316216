"""A Hugging Face causal LM as a `LanguageModel`: its parts are found by its layout."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe import display
from probe.boundary import public
from probe.errors import InputError
from probe.model.architectures import BlockLayout, Layout, SitePath, number_of, query_heads
from probe.model.hooks import Side, Site, evaluating
from probe.model.inner import ATTENTION_SITES, MLP_SITES, inner_sites
from probe.model.looking import Found, look
from probe.model.protocol import require_layer
from probe.model.support import Support, spans, support_of
from probe.model.token_ids import require_tokens

# Defaults of a pass: without a cache, with named outputs.
_PLAIN = {"use_cache": False, "return_dict": True}
_SITE = re.compile(r"blocks\.(\d+)\.([\w.]+)")


class LaidOut:
    """Facts about a causal LM that its module and its layout tell.

    Attributes:
        module: The causal LM.
        layout: Paths of the parts inside the module.
    """

    module: nn.Module
    layout: Layout

    @cached_property
    def config(self) -> Any:
        """The Hugging Face configuration of the language model (of the text part, if there are several)."""
        config: Any = self.module.config
        return config.get_text_config(decoder=True)

    @property
    def architecture(self) -> str:
        """The configuration's `model_type`."""
        return str(self.config.model_type)

    @cached_property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in depth order."""
        return tuple(cast("nn.ModuleList", self.module.get_submodule(self.layout.blocks)))

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @cached_property
    def _kinds(self) -> tuple[BlockLayout, ...]:
        return tuple(self._settled(self.layout.at(layer, block)) for layer, block in enumerate(self.blocks))

    @property
    def _stated(self) -> Layout:
        """The layout with what the configuration decides."""
        return replace(self.layout, kinds=tuple(map(self._settled, self.layout.kinds)))

    def _settled(self, kind: BlockLayout) -> BlockLayout:
        """A kind of block with what the configuration decides."""
        parallel = bool(getattr(self.config, kind.parallel)) if isinstance(kind.parallel, str) else kind.parallel
        sites = {name: site for name, site in kind.sites.items() if not (parallel and name == "hook_resid_mid")}
        return replace(kind, parallel=parallel, sites=sites)

    def at(self, layer: int) -> BlockLayout:
        """Return the layout of a block.

        Args:
            layer: Index of the block.

        Returns:
            Its sites, matrices and form: those that this block has.
        """
        return self._kinds[layer]

    @property
    def parallel(self) -> bool:
        """True if attention and MLP of a block read the same state."""
        return bool(self.at(0).parallel)

    @property
    def recurrent(self) -> bool:
        """True if no block has attention: all carry a state along the positions instead."""
        return all(kind.recurrent for kind in self._kinds)


@dataclass(frozen=True, eq=False, repr=False)
class HuggingFaceModel(LaidOut):
    """A Hugging Face causal language model as a `LanguageModel`; `load_model` builds it.

    Attributes:
        name: The name that the user gave.
        module: The causal LM, head included.
        tokenizer: Its tokenizer, or None.
        description: Phrase about its weights for reports.
        layout: Paths of the parts inside the module.
        revision: The hub's revision that was asked for, or None.
    """

    name: str
    module: nn.Module
    tokenizer: Any
    description: str
    layout: Layout
    revision: str | None = None

    @cached_property
    def trials(self) -> dict[int, tuple[str, str]]:
        """Results of running blocks: by layer, the method of its Jacobian, and the way that sets its cost."""
        return {}

    @public
    def method(self, layer: int) -> tuple[str, str, bool]:
        """Say how the Jacobian of a block is computed.

        Args:
            layer: Index of the block.

        Returns:
            The method, what sets its cost (a key of `probe.model.support.COSTS`), and whether it was tried.
        """
        require_layer(self, layer)
        if layer in self.trials:
            return *self.trials[layer], True
        packages = {type(module).__module__ for module in self.blocks[layer].modules()}
        if not all(package.startswith(("torch.", "transformers.", "peft.")) for package in packages):
            return "jacrev", "jacrev", False
        method = "frozen" if self.at(layer).form is None else "analytic"
        return method, method, False

    @property
    def support(self) -> Support:
        """The methods that work on this architecture and their cost; the parts that are left out, and the reasons."""
        return support_of(self)

    @cached_property
    def found(self) -> Found:
        """The stream, its blocks and what follows them, as two short passes show them."""
        return look(self.module, self._stated)

    @public
    def laid_out(self, layout: Layout) -> HuggingFaceModel:
        """Return the same model under another layout.

        Args:
            layout: The layout.

        Returns:
            The model; what a pass showed of it is kept.
        """
        model = replace(self, layout=layout)
        vars(model)["found"] = self.found
        return model

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.found.d_model

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, {self.architecture}, layers={self.n_layers}, width={self.d_model})"
        )

    def _repr_html_(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.module.parameters())
        return display.table(
            f"Language model {self.name}",
            {
                "weights": self.description,
                "architecture": self.architecture,
                "blocks": self.n_layers,
                "width of the stream": self.d_model,
                "parameters": f"{parameters:,}",
                "dtype, device": f"{str(self.dtype).removeprefix('torch.')}, {self.device}",
                "attention": self.attention,
                "tokenizer": "none, reads token ids only"
                if self.tokenizer is None
                else f"{len(self.tokenizer):,} tokens",
            },
        )

    @property
    def attention(self) -> str:
        """The attention implementation that runs, for example "sdpa"; "none" in a recurrent model."""
        return "none" if self.recurrent else str(self.config._attn_implementation)

    @property
    def n_vocab(self) -> int:
        """Number of logits."""
        return self.found.n_vocab

    @property
    def max_positions(self) -> int | None:
        """Longest window; None if the architecture sets no limit."""
        limit = None if self.recurrent else getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.module.parameters()).dtype

    @cached_property
    def weight_hash(self) -> str:
        """Sha256 over names, dtypes, shapes and bytes of the state dict in sorted order; reads every weight once."""
        return hash_of(self.module)

    # Sites and weights

    def _sites_of(self, layer: int) -> dict[str, SitePath]:
        stated, inner = dict(self.at(layer).sites), self._inner[layer]
        behind = {name: stated.pop(name) for name in ("hook_mlp_out",) if name in stated}
        return {
            "hook_resid_pre": SitePath("", "input"),
            **{name: inner[name] for name in ATTENTION_SITES if name in inner},
            **stated,
            **{name: inner[name] for name in MLP_SITES if name in inner},
            **behind,
            "hook_resid_post": SitePath("", "output"),
        }

    @cached_property
    def _inner(self) -> list[dict[str, SitePath]]:
        heads = query_heads(self.config)
        return [inner_sites(self.at(layer), block, heads) for layer, block in enumerate(self.blocks)]

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """The names of all sites, in the order of the forward pass."""
        inside = tuple(f"blocks.{layer}.{name}" for layer in range(self.n_layers) for name in self._sites_of(layer))
        return inside if self.found.tail.norm is None else (*inside, "ln_final.hook_in", "ln_final.hook_out")

    @public
    def site(self, name: str) -> Site:
        """Return the site of that name.

        Args:
            name: For example "blocks.3.hook_resid_post", "ln_final.hook_in".

        Returns:
            The module to hook, and its side.

        Raises:
            InputError: If this architecture has no such site.
        """
        inner = _SITE.fullmatch(name)
        if name not in self.sites:
            short = "" if inner is None else inner[2]
            having = [layer for layer in range(self.n_layers) if short in self._sites_of(layer)]
            if having and inner is not None and int(inner[1]) < self.n_layers:
                raise InputError(
                    f"a site must be one of its block, and of this {self.architecture} blocks {spans(having)} have "
                    f"{short}, got {name!r}: choose one of these layers"
                )
            inside = ", ".join(dict.fromkeys(name for layer in range(self.n_layers) for name in self._sites_of(layer)))
            raise InputError(
                f"a site must be one of this {self.architecture}'s, blocks.L.NAME with L below {self.n_layers} and "
                f"NAME of {inside}, or ln_final.hook_in, ln_final.hook_out; got {name!r}"
            )
        if inner is None:
            return Site(name, self.module.get_submodule(str(self.found.tail.norm)), _side(name))
        layer = int(inner[1])
        path = self._sites_of(layer)[inner[2]]
        block = self.blocks[layer]
        module = block.get_submodule(path.module)
        around, factor = block if path.flat else None, number_of(block, path.factor)
        return Site(name, module, path.side, layer, around, factor, path.reading)

    @public
    def projections(self, layer: int) -> dict[str, Tensor]:
        """Return the matrices of a block by name, joint ones taken apart.

        Args:
            layer: Index of the block.

        Returns:
            Each matrix as (out, in), which acts as `x @ matrix.T`, by name: `q k v o gate up down`, of a state-space
            block `in x dt out`. Grouped keys and values keep their own, smaller number of rows. Latent attention has
            no one matrix for queries, keys and values, because a norm stands between: `q_a`, `kv_a` and `k_rot` (the
            rotary part of the keys, one for all heads) read the stream, `q_b`, `k_b` and `v_b` the normed latents that
            `q_a` and `kv_a` make; rows of the latter stand head by head.
        """
        require_layer(self, layer)
        heads = query_heads(self.config) or 1
        block = self.blocks[layer]
        return {name: projection.weight(block, heads) for name, projection in self.at(layer).projections.items()}

    # Text

    def _require_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InputError(
                f"text needs a tokenizer, and {self.name} has none: pass tokenizer= to load_model, or pass tokens"
            )
        return self.tokenizer

    @public
    def encode(self, text: str) -> list[int]:
        """Turn a text into token ids, without special tokens.

        Args:
            text: Any text; it may be longer than the context.

        Returns:
            The ids.
        """
        return list(self._require_tokenizer().encode(text, add_special_tokens=False, verbose=False))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Token ids that are not text; empty without a tokenizer."""
        return frozenset() if self.tokenizer is None else frozenset(self.tokenizer.all_special_ids)

    @cached_property
    def bos_id(self) -> int | None:
        """The token that the tokenizer puts before a text; None if it puts none."""
        if self.tokenizer is None:
            return None
        first: int | None = next(iter(self.tokenizer.encode("a")), None)
        return first if first in self.special_ids else None

    # Passes

    @public
    def forward(
        self, tokens: Int[Tensor, "window position"], **kwargs: Any
    ) -> Float[Tensor, "window position n_vocab"]:
        """Run the whole module by its own code, without a cache, dropout off.

        Args:
            tokens: Int64 ids.
            **kwargs: Further arguments of the module.

        Returns:
            The logits, in the module's dtype.

        Raises:
            InputError: If the tokens are not windows of this model's ids.
        """
        tokens = require_tokens(self, tokens)
        with evaluating(self.module):
            output = self.module(input_ids=tokens.to(self.device), **_PLAIN | kwargs)
        return cast("Tensor", output.logits)

    @public
    def final_states(
        self, tokens: Int[Tensor, "window position"], **kwargs: Any
    ) -> Float[Tensor, "window position d_model"]:
        """Run the module without its head, as a capture does.

        Args:
            tokens: Int64 ids.
            **kwargs: Further arguments of the module, for example a cache.

        Returns:
            The input of the head.

        Raises:
            InputError: If the tokens are not windows of this model's ids.
        """
        tokens = require_tokens(self, tokens)
        trunk, seen = self.module.get_submodule(self.found.trunk), list[Tensor]()
        head = self.module.get_submodule(self.found.tail.head).register_forward_pre_hook(
            lambda _, arguments: seen.append(arguments[0])
        )
        try:
            with evaluating(self.module):
                output = trunk(input_ids=tokens.to(self.device), **_PLAIN | kwargs)
        finally:
            head.remove()
        return seen[-1] if seen else cast("Tensor", output.last_hidden_state)

    @public
    def embed(self, tokens: Int[Tensor, "window position"]) -> Float[Tensor, "window position d_model"]:
        """Return the token embeddings, scaled as the module scales them, without positions.

        Args:
            tokens: Int64 ids.

        Returns:
            The embeddings.

        Raises:
            InputError: If the tokens are not windows of this model's ids.
        """
        tokens = require_tokens(self, tokens)
        return cast("Tensor", self.module.get_submodule(self.found.embedding)(tokens.to(self.device)))

    @public
    def unembed(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch n_vocab"]:
        """Apply what follows the last block: final norm, head, the logits' scale or soft cap.

        Args:
            states: Outputs of the last block, of any floating dtype; they are cast to the stream's.

        Returns:
            The logits; for the module's own states they equal those of `forward`.

        Raises:
            InputError: If the states are not as wide as the stream.
        """
        if states.shape[-1:] != (self.d_model,):
            raise InputError(
                f"states= must have the width {self.d_model} of the stream, got a Tensor of shape "
                f"{tuple(states.shape)}: pass states of this model"
            )
        tail, states = self.found.tail, states.to(self.device, self.found.stream_dtype)
        with evaluating(self.module):
            return tail.logits(self.module, tail.normed(self.module, states))


def hash_of(module: nn.Module) -> str:
    """Hash the weights of a module with SHA-256.

    Args:
        module: The module.

    Returns:
        The hash in hexadecimal, over names, dtypes, shapes and bytes of the state dict in sorted order.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _side(name: str) -> Side:
    return "input" if name.endswith("hook_in") else "output"
