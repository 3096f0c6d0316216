"""Nulls as sources of weights: a fresh initialisation, and the model's own entries permuted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from probe.errors import InputError
from probe.model.loading import Control, seeded
from probe.weights.reading import ModuleWeights, Weights, generator_of, skeleton


@dataclass(frozen=True)
class Initialiser:
    """Values drawn as the model's own class initialises them, the same at every reading.

    Attributes:
        seed: Of the draws; every sub-layer of every block has its own stream of it.
    """

    seed: int

    def fill(self, block: nn.Module, path: str, place: str, skeleton: nn.Module) -> None:
        """Initialise the sub-layer that holds a sub-module: some classes do it for a whole mixer.

        Args:
            block: A copied block; its sub-layer gets values.
            path: Of the sub-module inside the block.
            place: The block's path in the skeleton, which with the sub-layer names the stream of random numbers.
            skeleton: The whole model, which knows how its modules are initialised.
        """
        whole: Any = skeleton
        name = path.split(".", 1)[0]
        part = block.get_submodule(name).to_empty(device="cpu")

        def initialise(module: nn.Module) -> None:
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:  # what the class leaves as torch made it
                reset()
            whole._init_weights(module)

        with seeded(generator_of(self.seed, place, name).initial_seed()), torch.no_grad():
            part.apply(initialise)  # what is inside comes first, as in transformers


def fresh_twin(weights: Weights, seed: int) -> ModuleWeights:
    """The same architecture, freshly initialised, one sub-layer at a time.

    The draws have the distribution of `load_model(..., random_init=seed)` (up to a factor on a matrix that some classes
    apply afterwards, which moves no singular vector), but are not the same draws.

    Args:
        weights: Of a Hugging Face model.
        seed: Of the draw.

    Returns:
        The twin.
    """
    own = _of_module(weights)
    module = own.module if own.filler is not None else skeleton(own.module.config, like=type(own.module))
    description = Control(random_init=seed).described(own.description)
    return replace(own, module=module, filler=Initialiser(seed), permuted=None, description=description)


def shuffled_twin(weights: Weights, seed: int) -> ModuleWeights:
    """The same model with the entries of every matrix permuted, gains kept.

    Args:
        weights: Of a Hugging Face model.
        seed: Of the permutations; every matrix has its own.

    Returns:
        The twin.
    """
    description = Control(shuffled_weights=seed).described(weights.description)
    return replace(_of_module(weights), permuted=seed, description=description)


def _of_module(weights: Weights) -> ModuleWeights:
    if not isinstance(weights, ModuleWeights):
        raise InputError(
            f"a control needs a model whose modules are known, and {weights.name} is no Hugging Face module; leave "
            "fresh and shuffled controls out"
        )
    return weights
