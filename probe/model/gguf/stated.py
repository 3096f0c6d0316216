"""The keys of a GGUF file, and which of them were asked for: what nothing asks for is refused."""

from __future__ import annotations

import math
from typing import Any

from probe.errors import InputError
from probe.model.gguf.container import GGUFFile


class Stated:
    """The keys of a file under its architecture's name; it remembers which were asked for.

    Args:
        file: The file.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.prefix = f"{file.architecture}."
        self._asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Return what a key says.

        Args:
            key: Its name after the architecture's.
            default: What stands for an absent key.

        Returns:
            The value.
        """
        self._asked.add(key)
        return self.file.value(self.prefix + key, default)

    def alike(self, key: str) -> Any:
        """Return a size that may be stated once or once a block.

        Args:
            key: Its name after the architecture's.

        Returns:
            The number, or None if the key is absent.

        Raises:
            InputError: If the numbers of the blocks differ.
        """
        value = self.get(key)
        if not isinstance(value, list):
            return value
        if len(set(value)) != 1:
            raise self.refusal(key, "one number for all blocks")
        return value[0]

    def require(self, key: str) -> Any:
        """Return what a key says that must be there.

        Args:
            key: Its name after the architecture's.

        Returns:
            The value.

        Raises:
            InputError: If it is absent.
        """
        if (value := self.get(key)) is None:
            raise InputError(
                f"a GGUF file must state its sizes, and {self.file.path} has no {self.prefix}{key}: fetch it again"
            )
        return value

    def expect(self, key: str, *values: Any) -> None:
        """Refuse a key that says anything else.

        Args:
            key: Its name after the architecture's.
            *values: What it may say, if it is there.

        Raises:
            InputError: If it says something else.
        """
        if (value := self.get(key)) is not None and not any(_close(value, allowed) for allowed in values):
            raise self.refusal(key, " or ".join(str(allowed) for allowed in values))

    def refusal(self, key: str, takes: str) -> InputError:
        """Make the refusal of a key.

        Args:
            key: Its name after the architecture's.
            takes: What transformers' model has there.

        Returns:
            The error.
        """
        return InputError(
            f"a GGUF file must say nothing that transformers' model does not take, and {self.file.path} states "
            f"{self.prefix}{key} = {_short(self.file.value(self.prefix + key))} where it has {takes}: load the model "
            "from its original weights"
        )

    def require_all_asked(self) -> None:
        """Refuse a key that nothing has asked for.

        Raises:
            InputError: If there is one.
        """
        for name in self.file.fields:
            if name.startswith(self.prefix) and name.removeprefix(self.prefix) not in self._asked:
                raise self.refusal(name.removeprefix(self.prefix), "no such setting")


def _close(value: Any, allowed: Any) -> bool:
    if isinstance(value, float) and isinstance(allowed, int | float):
        return math.isclose(value, allowed, rel_tol=1e-5)
    return bool(value == allowed)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
