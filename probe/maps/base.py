"""The base of all maps: checks, score, and files without pickle."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probe import display
from probe.boundary import public
from probe.errors import InputError
from probe.geometry import explained_variance

Validation = tuple[Float[Tensor, "held d_in"], Float[Tensor, "held d_out"]]


AnyMap = TypeVar("AnyMap", bound="Map")


@dataclass(eq=False)
class Map(display.Shown, ABC):
    """A map from rows of x to rows of y. The constructor stores options, `fit` computes; fitted values end in ``_``.

    Attributes:
        d_in_: Width of x.
        d_out_: Width of y.
    """

    d_in_: int = field(init=False, repr=False)
    d_out_: int = field(init=False, repr=False)

    @public
    def fit(
        self: AnyMap,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        *,
        groups: Int[Tensor, " token"] | None = None,
        validation: Validation | None = None,
    ) -> AnyMap:
        """Fit the map.

        Args:
            x: States, (N, d), any float dtype.
            y: Targets of the same tokens, (N, e).
            groups: The document of each token, (N,). Local maps never let a query use its own document; the MLP
                holds whole documents out when there are no validation pairs. The others ignore it.
            validation: Pairs (x, y) of other documents: `LinearMap` chooses its ridge by them, `MLPMap` stops by
                them. The others ignore them.

        Returns:
            The map itself.

        Raises:
            InputError: If shapes do not agree, there are fewer than two rows, or a value is not finite.
        """
        check_pair(x, y)
        if groups is not None and groups.shape != x.shape[:1]:
            raise InputError(
                f"groups must name a document for each row of x, got {len(groups)} for {len(x)} rows: pass (n,)"
            )
        if validation is not None:
            check_pair(*validation, widths=(x.shape[1], y.shape[1]))
        self.d_in_, self.d_out_ = x.shape[1], y.shape[1]
        self._fit(x, y, groups, validation)
        return self

    @public
    def predict(
        self, x: Float[Tensor, "query d_in"], *, groups: Int[Tensor, " query"] | None = None
    ) -> Float[Tensor, "query d_out"]:
        """Predict the targets of new tokens.

        Args:
            x: States, (n, d).
            groups: The document of each query, (n,): only local maps use it. None says that no query comes from a
                document of the fitted tokens.

        Returns:
            Predictions, (n, e): float64 for float64 states, else float32.

        Raises:
            InputError: If the map is not fitted, or x has another width or values that are not finite.
        """
        self._check_queries(x, groups)
        return self._predict(x.to(working_dtype(x)), groups)

    @public
    def score(
        self,
        x: Float[Tensor, "query d_in"],
        y: Float[Tensor, "query d_out"],
        *,
        groups: Int[Tensor, " query"] | None = None,
    ) -> float:
        """Score predictions by explained variance, ``R² = 1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖²``, over all tokens and coordinates.

        Args:
            x: States, (n, d).
            y: Their true targets, (n, e).
            groups: As for `predict`.

        Returns:
            At most 1; below 0 where the mean of these targets would have been better.

        Raises:
            InputError: If the map is not fitted, shapes do not agree with each other or with the fitted pairs, there
                are fewer than two rows, or a value is not finite.
        """
        self._check_targets(x, y)
        return float(explained_variance(y.double(), self.predict(x, groups=groups).double()))

    @public
    def save(self, path: str | Path) -> None:
        """Write options and fitted values to one safetensors file, whole or not at all.

        Args:
            path: The file.

        Raises:
            InputError: If the map is not fitted, or the file cannot be written.
        """
        self._check_fitted()
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                tensors[item.name] = value.contiguous()
            else:
                values[item.name] = value
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial, metadata={"map": type(self).__name__, "values": json.dumps(values)})
            partial.replace(path)
        except OSError as error:
            raise InputError(
                f"path= must be a file that can be written, and {path} is not ({error.strerror}): name another"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    @public
    def load(cls: type[AnyMap], path: str | Path) -> AnyMap:
        """Read a map that `save` wrote; ``Map.load`` reads a map of any class.

        Args:
            path: The file.

        Returns:
            The fitted map, on the CPU.

        Raises:
            InputError: If the file is missing, is not a saved map, or holds a map of another class.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise InputError(f"a saved map must be a readable safetensors file, got {path}: {error}") from error
        kind = metadata.get("map", "no map")
        matching = [known for known in _descendants(cls) if known.__name__ == kind]
        if not matching:
            raise InputError(f"{path} must hold a {cls.__name__}, got {kind}: load it by its own class or by Map.load")
        stored.update(json.loads(metadata["values"]))
        options = {item.name for item in fields(matching[0]) if item.init}
        loaded: AnyMap = matching[0](**{name: value for name, value in stored.items() if name in options})
        for name in stored.keys() - options:
            setattr(loaded, name, stored[name])
        return loaded

    @abstractmethod
    def _fit(self, x: Tensor, y: Tensor, groups: Tensor | None, validation: Validation | None) -> None:
        """Compute the fitted values from checked input."""

    @abstractmethod
    def _predict(self, x: Tensor, groups: Tensor | None) -> Tensor:
        """Predict from checked states in the working dtype."""

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        if not hasattr(self, "d_in_"):
            return facts | {"fitted": "not yet: call fit(x, y)"}
        fitted = (one.name for one in fields(self) if not one.init and one.name not in ("d_in_", "d_out_"))
        values = {name: getattr(self, name) for name in fitted}
        return facts | {"fitted": f"{self.d_in_} → {self.d_out_} coordinates"} | values

    def _check_fitted(self) -> None:
        if not hasattr(self, "d_in_"):
            raise InputError(f"{type(self).__name__} must be fitted before it is used: call fit(x, y) first")

    def _check_queries(self, x: Tensor, groups: Tensor | None) -> None:
        self._check_fitted()
        if x.ndim != 2 or x.shape[1] != self.d_in_:
            raise InputError(f"x must have the width of the fitted states, (n, {self.d_in_}), got {tuple(x.shape)}")
        if groups is not None and groups.shape != x.shape[:1]:
            raise InputError(
                f"groups must name a document for each row of x, got {len(groups)} for {len(x)} rows: pass (n,)"
            )
        check_finite("x", x)

    def _check_targets(self, x: Tensor, y: Tensor) -> None:
        """Refuse pairs that are not as wide as the fitted ones, which would broadcast against predictions."""
        self._check_fitted()
        check_pair(x, y, widths=(self.d_in_, self.d_out_))


def check_pair(x: Tensor, y: Tensor, *, widths: tuple[int, int] | None = None) -> None:
    """Refuse pairs whose shapes do not agree or that hold values that are not finite."""
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2:
        raise InputError(f"x and y must be (n, d) and (n, e) with n ≥ 2, got {tuple(x.shape)} and {tuple(y.shape)}")
    if widths is not None and (x.shape[1], y.shape[1]) != widths:
        raise InputError(f"x and y must be {widths} wide as the fitted ones, got {x.shape[1]} and {y.shape[1]}")
    check_finite("x", x)
    check_finite("y", y)


def check_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinity, naming the first row that holds one."""
    for start, block in row_blocks(values):
        bad = ~torch.isfinite(block).all(1)
        if bad.any():
            row = start + int(bad.nonzero()[0])
            raise InputError(f"{name} must be finite, got NaN or infinity in row {row}: leave such rows out")


def working_dtype(x: Tensor) -> torch.dtype:
    """Choose float64 for float64, else float32: half precision is for storage, not for arithmetic."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def row_blocks(values: Tensor, *, elements: int = 2**22) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks of consecutive rows of at most so many elements, each with the index of its first row."""
    rows = max(1, elements // max(1, values.shape[1]))
    for start in range(0, max(1, len(values)), rows):
        yield start, values[start : start + rows]


def _descendants(kind: type[Map]) -> list[Any]:
    """A class and all its subclasses."""
    return [kind, *(below for child in kind.__subclasses__() for below in _descendants(child))]
