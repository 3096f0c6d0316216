"""Control weights of a model's own architecture: which are asked for."""

from __future__ import annotations

from dataclasses import dataclass

from probe.errors import InputError


@dataclass(frozen=True)
class Control:
    """Choice of control weights; without a seed the model keeps its own.

    Attributes:
        random_init: Seed of a fresh initialisation.
        shuffled_weights: Seed under which the entries of every matrix are permuted.

    Raises:
        InputError: If both are given.
    """

    random_init: int | None = None
    shuffled_weights: int | None = None

    def __post_init__(self) -> None:
        if self.random_init is not None and self.shuffled_weights is not None:
            raise InputError(
                "only one control can be loaded at a time, got random_init= and shuffled_weights=: give one of them"
            )

    def described(self, description: str) -> str:
        """Describe the weights for reports.

        Args:
            description: Description of the model's own weights.

        Returns:
            The description of the control's.
        """
        if self.random_init is not None:
            return f"random weights (seed {self.random_init})"
        if self.shuffled_weights is not None:
            return f"{description}, the entries of each matrix permuted (seed {self.shuffled_weights})"
        return description
