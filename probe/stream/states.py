"""The captured states, in memory or on disk, as a mapping from sites."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64, Shaped
from safetensors import safe_open
from torch import Tensor

from probe import display
from probe.boundary import public, shown
from probe.errors import InputError
from probe.model import (
    spelled,
)
from probe.text import Substring, TokenRows, Which, positions_in

if TYPE_CHECKING:
    import xarray as xr

INDEX = "stream.json"


@dataclass(frozen=True, eq=False, repr=False)
class ResidualStream(Mapping[Any, Tensor]):
    """Captured states by site: `stream["blocks.3.hook_resid_pre"]` is (windows, positions, d_model).

    It is a mapping, in the order of the pass. A site is also found by its short name and its layer,
    `stream["resid_pre", 3]`. Sites inside attention, MLP and mixtures of experts have axes of their own behind windows
    and positions (`probe.model.inner`, `probe.model.mixtures`). Of windows of several lengths, what lies behind a
    window's end is NaN, or -1 among integers.

    Attributes:
        sites: The names, in the order of the forward pass.
        shape: Windows, positions of the longest, d_model.
        dtype: Dtype of the states; indices of experts are int64.
        directory: Folder of the shards; None for a stream in memory.
        rows: The tokens that were captured; None for a stream that was opened from disk.
    """

    sites: tuple[str, ...]
    shape: tuple[int, int, int]
    dtype: torch.dtype
    directory: Path | None
    _states: Mapping[str, Tensor]
    _starts: tuple[int, ...]
    rows: TokenRows | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(sites={len(self.sites)}, shape={self.shape}, {self.dtype})"

    def _repr_html_(self) -> str:
        windows, positions, width = self.shape
        memory = display.size(sum(self._bytes))
        ends = self.sites if len(self.sites) < 3 else (self.sites[0], "…", self.sites[-1])
        return display.table(
            "Residual stream",
            {
                "windows × positions × width": f"{windows:,} × {positions:,} × {width:,}",
                f"{len(self.sites)} sites": ", ".join(ends),
                "dtype": str(self.dtype).removeprefix("torch."),
                "kept": f"{memory} in memory" if self.directory is None else f"{memory} on disk, in {self.directory}",
            },
        )

    @property
    def _bytes(self) -> list[int]:
        if self.directory is not None:
            return [shard_path(self.directory, number).stat().st_size for number in range(len(self._starts))]
        return [states.numel() * states.itemsize for states in self._states.values()]

    # A mapping

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __contains__(self, site: object) -> bool:
        return self._found(site) is not None

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.sites)

    @public
    def __getitem__(self, site: str | tuple[str, int]) -> Shaped[Tensor, "window position ..."]:
        """Return the states at a site; a stream on disk reads that site only, and reads it again at every call.

        Args:
            site: One of `sites`, or a short name and a layer: `"resid_pre", 3`.

        Returns:
            The states.

        Raises:
            InputError: If the site was not captured.
        """
        name = self._require(site)
        if self.directory is None:
            return self._states[name]
        states: Tensor | None = None
        for windows, part in self.parts(name):
            if states is None:
                states = part.new_empty((self.shape[0], *part.shape[1:]))
            states[windows] = part
        assert states is not None
        return states

    @public
    def get(self, site: Any, default: Any = None) -> Any:
        """Return the states at a site, or a default if it was not captured.

        Args:
            site: As in `stream[site]`.
            default: What is returned otherwise.

        Returns:
            The states or the default.
        """
        return default if self._found(site) is None else self[site]

    @public
    def parts(self, site: str | tuple[str, int]) -> Iterator[tuple[slice, Shaped[Tensor, "part position ..."]]]:
        """Iterate over a site's states in the batches of the capture, with one in memory at a time.

        Args:
            site: As in `stream[site]`.

        Yields:
            The windows, as a slice, and their states.
        """
        name = self._require(site)
        ends = (*self._starts[1:], self.shape[0])
        for number, (start, end) in enumerate(zip(self._starts, ends, strict=True)):
            windows = slice(start, end)
            if self.directory is None:
                yield windows, self._states[name][windows]
            else:
                with safe_open(shard_path(self.directory, number), framework="pt") as shard:
                    yield windows, shard.get_tensor(name)

    def _found(self, site: object) -> str | None:
        if isinstance(site, tuple) and len(site) == 2 and isinstance(site[0], str):
            return self._by_layer(site[0]).get(site[1])
        return site if isinstance(site, str) and site in self.sites else None

    def _require(self, site: Any) -> str:
        name = self._found(site)
        if name is None:
            layered = isinstance(site, tuple) and len(site) == 2
            asked = f"{site[0]!r} of layer {site[1]!r}" if layered else shown(site)
            raise InputError(
                f"a site must have been captured to be read, and {asked} was not; captured: {', '.join(self.sites)}"
            )
        return name

    def _by_layer(self, short: str) -> dict[int, str]:
        """Names of the captured sites of one short name, by layer."""
        parts = {name: parted(name) for name in self.sites}
        inner = spelled(short, {inside for _, inside in parts.values()})
        return {layer: name for name, (layer, inside) in parts.items() if layer is not None and inside == inner}

    # Through depth, and at positions

    @property
    def lengths(self) -> Int64[Tensor, " window"]:
        """Number of positions of each window."""
        return torch.full((self.shape[0],), self.shape[1]) if self.rows is None else self.rows.lengths

    @public
    def layers(self, short: str) -> list[int]:
        """List the layers at which a site was captured.

        Args:
            short: Its short name: "resid_pre", "mlp_out", "attn.hook_z".

        Returns:
            Their indices, ascending.
        """
        return list(self._by_layer(short))

    @public
    def site(self, short: str) -> Shaped[Tensor, "layer window position ..."]:
        """Stack a site over the layers at which it was captured.

        Args:
            short: Its short name: "resid_pre", "mlp_out", "attn.hook_z".

        Returns:
            The states, (layers, windows, positions, ...); `layers(short)` has the layers.

        Raises:
            InputError: If the site was captured at no layer.
        """
        names = self._by_layer(short)
        if not names:
            raise InputError(
                f"a site must have been captured to be read, and short={short!r} was not at any layer; captured: "
                f"{', '.join(dict.fromkeys(parted(name)[1] for name in self.sites))}"
            )
        return torch.stack([self[name] for name in names.values()])

    @public
    def updates(
        self, layer: int, positions: Which | None = None
    ) -> tuple[Shaped[Tensor, "*rows d_model"], Shaped[Tensor, "*rows d_model"]]:
        """Return the states that enter a block, and what the block adds to each.

        Args:
            layer: Index of the block, whose `hook_resid_pre` was captured, and whose output: its `hook_resid_post` or
                the next block's `hook_resid_pre`.
            positions: As `at` takes it; by default all.

        Returns:
            States and updates, (windows, positions, d_model) each, or (N, d_model) at chosen positions: what
            `probe.maps` are fitted to.

        Raises:
            InputError: If one of the two was not captured.
        """
        ends = ("resid_post", layer), ("resid_pre", layer + 1)
        behind = next((name for name in ends if self._found(name) is not None), ends[0])
        before, after = (
            self[name] if positions is None else self.at(name, positions) for name in (("resid_pre", layer), behind)
        )
        return before, after - before

    @public
    def at(self, site: str | tuple[str, int], positions: Which = "counted") -> Shaped[Tensor, "n ..."]:
        """Return the states at chosen positions, window by window: one row each, as maps and graphs take them.

        Args:
            site: As in `stream[site]`.
            positions: Indices, (P,) for all windows or (W, P), negative ones counted from a window's end; "last";
                "counted", all that enter statistics; or a `probe.Substring`.

        Returns:
            (N, ...); `stream.rows.chosen(positions)` has the window and the position of each.

        Raises:
            InputError: If the site was not captured, there is no such position, or the stream comes from disk, where
                the tokens are not kept, and positions are not indices.
        """
        states = self[site]
        if self.rows is not None:
            return states[self.rows.chosen(positions)]
        if isinstance(positions, str | Substring):
            raise InputError(
                "positions by name need the tokens, which a stream on disk does not keep: pass indices, for example "
                "windows.positions(...) of the windows that were captured"
            )
        windows, length = states.shape[:2]
        chosen = positions_in(positions, torch.full((windows,), length))
        return states[torch.arange(windows)[:, None], chosen].flatten(0, 1)

    # In other forms

    def to_numpy(self) -> dict[str, npt.NDArray[Any]]:
        """Return all sites as arrays, which share the memory of a stream that is in memory.

        Returns:
            Arrays by name.
        """
        return {name: self[name].numpy() for name in self.sites}

    def to_xarray(self) -> xr.Dataset:
        """Return all sites as a Dataset: a variable for each short name, over the layers at which it was captured.

        Returns:
            Variables (layer, window, position, ...), named `resid_pre`, `attn_z` and so on; a site that was captured
            at fewer layers than another is NaN at the rest. The coordinate `token` holds the token ids, -1 behind a
            window's end, where they are known.
        """
        import xarray as xr

        found = []
        for inner in dict.fromkeys(parted(name)[1] for name in self.sites):
            layers = self._by_layer(inner)
            values = self.site(inner) if layers else self[f"ln_final.{inner}"]
            name = inner.replace("hook_", "").replace(".", "_") if layers else f"ln_final_{inner.replace('hook_', '')}"
            axes = [*(["layer"] if layers else []), "window", "position"]
            further = [f"{name}_{axis}" for axis in range(values.ndim - len(axes))]
            if further and values.shape[-1] == self.shape[2]:
                further[-1] = "d_model"
            coordinates = {"layer": list(layers)} if layers else {}
            found.append(xr.DataArray(values.numpy(), dims=[*axes, *further], coords=coordinates, name=name))
        data = xr.merge(found, join="outer")
        if self.rows is None:
            return data
        tokens = np.full(self.shape[:2], -1)
        for row, ids in enumerate(self.rows.ids):
            tokens[row, : len(ids)] = ids.numpy()
        return data.assign_coords(token=(("window", "position"), tokens))

    @classmethod
    @public
    def open(cls, directory: Path | str) -> ResidualStream:
        """Open a stream that `capture(..., out=directory)` has written.

        Args:
            directory: The folder.

        Returns:
            The stream; its states stay on disk until they are read.

        Raises:
            InputError: If the folder holds no complete stream.
        """
        index = Path(directory) / INDEX
        if not index.is_file():
            raise InputError(
                f"directory= must be a captured stream's folder, which holds {INDEX}, and {directory} is not: capture "
                "it again"
            )
        saved = json.loads(index.read_text(encoding="utf-8"))
        windows, positions, width = saved["shape"]
        dtype = getattr(torch, saved["dtype"])
        return cls(
            tuple(saved["sites"]), (windows, positions, width), dtype, Path(directory), {}, tuple(saved["starts"])
        )


def parted(name: str) -> tuple[int | None, str]:
    """Split the name of a site.

    Args:
        name: The full name.

    Returns:
        The layer and the name inside the block; None and the name behind the module for other sites.
    """
    head, _, rest = name.partition(".")
    if head != "blocks":
        return None, rest
    layer, _, inner = rest.partition(".")
    return int(layer), inner


def shard_path(directory: Path, number: int) -> Path:
    """Name the file of a batch.

    Args:
        directory: The stream's folder.
        number: Index of the batch.

    Returns:
        Its path.
    """
    return directory / f"shard-{number:05d}.safetensors"
