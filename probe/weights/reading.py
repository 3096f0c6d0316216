"""Sources of matrices, read one at a time: a loaded model, a checkpoint never loaded, a fresh initialisation.

A checkpoint is read through a *skeleton*: the model's modules without values (on torch's meta device), made from its
configuration. For one matrix a block is copied, the sub-module that holds the matrix is filled from the file, and the
architecture's layout cuts the matrix out as in a loaded model: the same code takes joint matrices apart and transposes
a Conv1D. Memory: the largest sub-module, not the model.
"""

from __future__ import annotations

import copy
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe import display
from probe.errors import InputError
from probe.model import HuggingFaceModel, LanguageModel, require_layer
from probe.model.architectures import (
    LATENT_READERS,
    SPREADERS,
    ExpertStack,
    Layout,
    experts_in,
    gain_of,
    matrix_of,
    query_heads,
)
from probe.model.huggingface import LaidOut
from probe.model.loading import auto_class
from probe.model.making import MAKING

Matrix = Float[Tensor, "out in"]


@dataclass(frozen=True)
class Heads:
    """Numbers of heads into which the rows of the queries, and of the keys and values, are divided.

    Attributes:
        query: Number of query heads.
        key: Number of key and value heads; where it is smaller, several query heads share one.
    """

    query: int
    key: int


@runtime_checkable
class Weights(Protocol):
    """The matrices of a model by name; `weights_of` makes it of a name, a path or a loaded model."""

    @property
    def name(self) -> str:
        """The name that the user gave the model."""

    @property
    def description(self) -> str:
        """The weights' description in a report."""

    @property
    def architecture(self) -> str:
        """The family, for example "llama"."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""

    @property
    def recurrent(self) -> bool:
        """True if blocks carry a state along the positions instead of attention."""

    @property
    def heads(self) -> Heads | None:
        """The heads of attention; None where there are none or they are unknown."""

    @property
    def stored(self) -> tuple[str, ...]:
        """Names of the projections that every block has."""

    def matrix(self, layer: int, name: str) -> Matrix:
        """Read one projection, (out, in), in at least float32."""

    def gain(self, layer: int, name: str) -> Float[Tensor, " width"] | None:
        """Read the gain γ of the norm on the side of the stream, or of a latent, of a projection; None without one."""


@runtime_checkable
class Filler(Protocol):
    """A source of values for the sub-modules of a skeleton."""

    def fill(self, block: nn.Module, path: str, block_path: str, skeleton: nn.Module) -> None:
        """Fill the sub-module at a path of a block, which is a copy of the skeleton's block at `block_path`."""


@runtime_checkable
class PieceReader(Filler, Protocol):
    """A source of values that also reads one expert without the others."""

    def piece(self, name: str, expert: int, stack: ExpertStack) -> Tensor:
        """Read an expert's entries of a parameter, by the parameter's name in the model."""


_EXPERT = re.compile(r"experts\.(\d+)\.(gate|up|down)")


@dataclass(frozen=True, repr=False)
class ModuleWeights(display.Shown, LaidOut):
    """The matrices of a Hugging Face module, or of a skeleton of one with a source of values.

    Attributes:
        name: Name that the user gave it.
        module: The causal LM; on the meta device where it is a skeleton.
        layout: Paths of its parts.
        description: The weights' description in a report.
        filler: Source of a skeleton's values; None for a module that has values.
        permuted: Seed under which the entries of every matrix are permuted, or None.
    """

    name: str
    module: nn.Module
    layout: Layout
    description: str
    filler: Filler | None = None
    permuted: int | None = None

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"name": self.name, "architecture": self.architecture, "layers": self.n_layers}
        facts |= {"width": self.d_model, "matrices": list(self.stored)}
        return facts | {"read": "from the model" if self.filler is None else "one matrix at a time"}

    @cached_property
    def heads(self) -> Heads | None:
        """The heads of attention; None where there are none, they act in pairs, or the rows do not tell them."""
        query, form = query_heads(self.config), self.at(0).form
        if self.recurrent or query is None or (form is not None and form.paired_heads):
            return None
        if {"k_b", "v_b"} <= set(self.stored):
            return Heads(query, query)
        if not {"q", "k", "v"} <= set(self.stored):
            return None
        block, projections = self.blocks[0], self.at(0).projections
        queries, keys, values = (len(projections[name].weight(block, query)) for name in "qkv")
        # The configurations have many names for the number of key heads; the rows have one.
        if queries % query or keys % (queries // query) or keys != values:
            return None
        key = keys // (queries // query)
        return None if query % key else Heads(query, key)

    @cached_property
    def stored(self) -> tuple[str, ...]:
        """Names of the projections that every block has, of one shape in all of them."""
        first, *others = (self._shapes(layer) for layer in range(self.n_layers))
        return tuple(name for name, shape in first.items() if all(other.get(name) == shape for other in others))

    def _shapes(self, layer: int) -> dict[str, torch.Size]:
        """Shape of the module that holds each projection of a block: parts of one shape have parts alike."""
        block = self.blocks[layer]
        return {
            name: matrix_of(block.get_submodule(projection.module)).shape
            for name, projection in self.at(layer).projections.items()
        }

    def matrix(self, layer: int, name: str) -> Matrix:
        """Read one projection.

        Args:
            layer: Index of the block.
            name: One of `stored`, or of an expert "experts.3.gate", "experts.3.up" or "experts.3.down".

        Returns:
            The matrix as (out, in), in float32, or in float64 where it is stored so.

        Raises:
            InputError: If the model has no such block or projection.
        """
        expert = _EXPERT.fullmatch(name)
        if expert is not None:
            weight = self._of_expert(layer, int(expert[1]), expert[2])
        else:
            require_projection(self, layer, name)
            projection = self.at(layer).projections[name]
            block = self._filled(layer, projection.module)
            weight = projection.weight(block, query_heads(self.config) or 1).detach()
        if self.permuted is not None:
            order = torch.randperm(weight.numel(), generator=generator_of(self.permuted, layer, name))
            weight = weight.flatten()[order.to(weight.device)].view_as(weight)
        return weight if weight.dtype == torch.float64 else weight.float()

    def experts(self, layer: int) -> ExpertStack | None:
        """Find the experts of a block.

        Args:
            layer: Index of the block.

        Returns:
            Their number and projections; None where the block has none.
        """
        return experts_in(self.blocks[layer])

    def _of_expert(self, layer: int, expert: int, name: str) -> Tensor:
        require_layer(self, layer)
        stack = self.experts(layer)
        if stack is None or name not in stack.parameters or expert >= stack.count:
            has = "no experts" if stack is None else f"experts 0 … {stack.count - 1} with {', '.join(stack.names)}"
            raise InputError(
                f"an expert's projection must be one of its block, and block {layer} of this {self.architecture} has "
                f"{has}, got 'experts.{expert}.{name}': choose another"
            )
        parameter = stack.parameters[name]
        if isinstance(self.filler, PieceReader):
            path = f"{self.layout.blocks}.{layer}.{stack.module}.{parameter}"
            stored = self.filler.piece(path, expert, stack)
        else:
            whole = self._filled(layer, stack.module).get_submodule(stack.module).get_parameter(parameter).detach()
            stored = whole[stack.piece(expert, len(whole))]
        if stored.dtype.itemsize < 2 or not stored.is_floating_point():
            raise InputError(
                f"an expert's matrix must be stored in a floating dtype of 16 bits or more, and {self.name} stores "
                f"{str(stored.dtype).removeprefix('torch.')}: load the model dequantised and pass it instead"
            )
        return stack.cut(name, stored)

    def gain(self, layer: int, name: str) -> Float[Tensor, " width"] | None:
        """Read the gain of the norm between the stream, or a latent of it, and a projection.

        That is the norm before a matrix that reads the stream or a latent, and the norm after one that writes to the
        stream.

        Args:
            layer: Index of the block.
            name: A projection or a composite.

        Returns:
            γ, as the norm's own code makes it of its weight; None where no such norm is known, or it has no gain.
        """
        path = self.at(layer).norm_of(role_of(name))
        if path is None:
            return None
        width = self.matrix(layer, name).shape[1] if name in SPREADERS else self.d_model
        gain = gain_of(self._filled(layer, path).get_submodule(path), width)
        return None if gain is None else gain.float()

    def _filled(self, layer: int, path: str) -> nn.Module:
        """The block with values at a path: the module's own, or a filled copy of the skeleton's."""
        if self.filler is None:
            return self.blocks[layer]
        block = copy.deepcopy(self.blocks[layer])
        self.filler.fill(block, path, f"{self.layout.blocks}.{layer}", self.module)
        return block


def role_of(name: str) -> str:
    """Return the role of a projection: of an expert's "experts.3.up" it is "up".

    Args:
        name: The projection's name.

    Returns:
        The role.
    """
    return name.rpartition(".")[2]


READERS = ("q", "k", "v", *LATENT_READERS, "gate", "up", "in")
"""Projections that read the residual stream: their right singular vectors lie in it."""
WRITERS = ("o", "down", "out")
"""Projections that write to it: their left singular vectors lie in it."""


@dataclass(frozen=True, repr=False)
class ProjectedWeights(display.Shown):
    """The matrices of a user's own `LanguageModel`, by its `projections`; heads and norms are unknown.

    Attributes:
        model: The model.
    """

    model: LanguageModel
    heads: Heads | None = None

    @property
    def name(self) -> str:
        """The name that the user gave it."""
        return self.model.name

    @property
    def description(self) -> str:
        """The weights' description in a report."""
        return self.model.description

    @property
    def architecture(self) -> str:
        """The family."""
        return self.model.architecture

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.model.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.model.d_model

    @property
    def recurrent(self) -> bool:
        """True if blocks carry a state along the positions instead of attention."""
        return self.model.recurrent

    @cached_property
    def stored(self) -> tuple[str, ...]:
        """Names of the projections that every block has."""
        first, *others = (self.model.projections(layer) for layer in range(self.n_layers))
        return tuple(name for name in first if all(name in other for other in others))

    def matrix(self, layer: int, name: str) -> Matrix:
        """Read one projection, (out, in), in float32, or in float64 where it is stored so."""
        require_projection(self, layer, name)
        weight = self.model.projections(layer)[name].detach()
        return weight if weight.dtype == torch.float64 else weight.float()

    def gain(self, layer: int, name: str) -> None:
        """Return None: the norms are unknown."""


def require_projection(weights: Weights, layer: int, name: str) -> None:
    """Refuse a block or a projection that a model does not have.

    Args:
        weights: The model.
        layer: Index of a block.
        name: Name of a projection.

    Raises:
        InputError: If there is no such block or projection.
    """
    if name not in weights.stored:
        raise InputError(
            f"the name of a projection must be one that every block of this {weights.architecture} has "
            f"({', '.join(weights.stored)}), got {name!r}: choose one of them"
        )
    require_layer(weights, layer)


def of_model(model: LanguageModel) -> Weights:
    """Read the matrices of a loaded model in place.

    Args:
        model: Any `LanguageModel`.

    Returns:
        Its weights.
    """
    if isinstance(model, HuggingFaceModel):
        return ModuleWeights(model.name, model.module, model.layout, model.description)
    return ProjectedWeights(model)


def skeleton(config: Any, *, like: type[nn.Module] | None = None, trust_remote_code: bool = False) -> nn.Module:
    """Make a causal LM without values, on the meta device.

    Args:
        config: Its Hugging Face configuration.
        like: Its class; by default the one that transformers chooses for the configuration.
        trust_remote_code: Run the code that comes with the model's repository.

    Returns:
        The module.
    """
    with MAKING, torch.device("meta"):
        if like is not None:
            made: nn.Module = like(copy.deepcopy(config))
        else:
            made = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    return made.eval()


def generator_of(*names: object) -> torch.Generator:
    """Make a generator of random numbers whose stream depends on the given names alone."""
    digest = hashlib.sha256(" ".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
