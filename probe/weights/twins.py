"""Controls as sources of weights: a fresh initialisation, and the model's own entries permuted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from probe.boundary import public
from probe.errors import InputError
from probe.model.control import Control
from probe.model.loading import seeded
from probe.weights.reading import ModuleWeights, Weights, generator_of, skeleton


@dataclass(frozen=True)
class Initialiser:
    """Values drawn as the model's own class initialises them, the same at every reading.

    Attributes:
        seed: Seed of the draws; every sub-layer of every block has its own stream.
    """

    seed: int

    def fill(self, block: nn.Module, path: str, block_path: str, skeleton: nn.Module) -> None:
        """Initialise the whole sub-layer that holds a sub-module, as some classes do for a whole mixer.

        Args:
            block: A copied block; its sub-layer gets values.
            path: Path of the sub-module inside the block.
            block_path: Path of the block in the skeleton; with the sub-layer it names the stream of random numbers.
            skeleton: The whole model, whose class initialises modules.
        """
        whole: Any = skeleton
        name = path.split(".", 1)[0]
        part = block.get_submodule(name).to_empty(device="cpu")

        def initialise(module: nn.Module) -> None:
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:  # for modules that the class leaves as torch made them
                reset()
            whole._init_weights(module)

        with seeded(generator_of(self.seed, block_path, name).initial_seed()), torch.no_grad():
            part.apply(initialise)  # children first, as in transformers


@public
def fresh_twin(weights: Weights, seed: int) -> ModuleWeights:
    """Make a twin of the same architecture, freshly initialised one sub-layer at a time.

    The draws have the distribution of `load_model(..., random_init=seed)` (up to a factor that some classes apply to a
    matrix afterwards, which moves no singular vector), but are not the same draws.

    Args:
        weights: Weights of a Hugging Face model.
        seed: Seed of the draw.

    Returns:
        The twin.
    """
    original = _of_module(weights)
    module = original.module
    if original.filler is None:
        module = skeleton(module.config, like=type(module))
    description = Control(random_init=seed).described(original.description)
    return replace(original, module=module, filler=Initialiser(seed), permuted=None, description=description)


@public
def shuffled_twin(weights: Weights, seed: int) -> ModuleWeights:
    """Make a twin with the entries of every matrix permuted, and the gains kept.

    Args:
        weights: Weights of a Hugging Face model.
        seed: Seed of the permutations; every matrix has its own.

    Returns:
        The twin.
    """
    description = Control(shuffled_weights=seed).described(weights.description)
    return replace(_of_module(weights), permuted=seed, description=description)


def _of_module(weights: Weights) -> ModuleWeights:
    if not isinstance(weights, ModuleWeights):
        raise InputError(
            f"a fresh or shuffled control needs a Hugging Face model, and {weights.name} is of another kind: leave "
            "these controls out"
        )
    return weights
