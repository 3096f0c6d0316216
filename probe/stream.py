"""States of the residual stream, and other tensors of the pass, captured with forward hooks.

A hook copies a tensor and changes nothing: the hooked pass equals the plain one to the bit. Hooks live in context
managers and are removed when these end, also after an exception. A capture runs the module without its head.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from probe import display
from probe.errors import InputError
from probe.model import LanguageModel, Seen, Site, hooked, not_run, require_windows, undisturbed

_INDEX = "stream.json"


@runtime_checkable
class TokenWindows(Protocol):
    """Anything that holds token windows, for example the result of `probe.load_windows`."""

    @property
    def tokens(self) -> Tensor:
        """Token ids, int64 (windows, positions)."""


@contextmanager
def watch(model: LanguageModel, sites: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Keep a copy of each site's tensor whenever its module runs, in a whole pass or in a call of a single block.

    Args:
        model: The model.
        sites: Names of sites.

    Yields:
        A dict, empty at first, that gets the latest copy of each site, (windows, positions, ...), detached. A site
        whose module has not run raises an `InputError` that says so.
    """
    seen = Seen()

    def keep(site: Site, tensor: Tensor) -> None:
        seen[site.name] = tensor.clone()

    with hooked([model.site(name) for name in sites], keep):
        yield seen


@dataclass(frozen=True, eq=False)
class ResidualStream:
    """Captured states by site: `stream["blocks.3.hook_resid_pre"]` is (windows, positions, d_model).

    Sites of a mixture of experts have axes of their own behind windows and positions (`probe.model.mixtures`).

    Attributes:
        sites: The names, in the order of the forward pass.
        shape: Windows, positions, d_model.
        dtype: Dtype of the states; indices of experts are int64.
        directory: Folder of the shards; None for a stream in memory.
    """

    sites: tuple[str, ...]
    shape: tuple[int, int, int]
    dtype: torch.dtype
    directory: Path | None
    _states: Mapping[str, Tensor]
    _starts: tuple[int, ...]

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
            return [_shard(self.directory, number).stat().st_size for number in range(len(self._starts))]
        return [states.numel() * states.itemsize for states in self._states.values()]

    def __getitem__(self, site: str) -> Shaped[Tensor, "window position ..."]:
        """Return the states at a site; a stream on disk reads that site only, and reads it again at every call.

        Args:
            site: One of `sites`.

        Returns:
            The states.

        Raises:
            InputError: If the site was not captured.
        """
        self._require(site)
        if self.directory is None:
            return self._states[site]
        states: Tensor | None = None
        for windows, part in self.parts(site):
            if states is None:
                states = part.new_empty((self.shape[0], *part.shape[1:]))
            states[windows] = part
        assert states is not None
        return states

    def parts(self, site: str) -> Iterator[tuple[slice, Shaped[Tensor, "part position ..."]]]:
        """Iterate over a site's states in the batches of the capture, with one in memory at a time.

        Args:
            site: One of `sites`.

        Yields:
            The windows, as a slice, and their states.
        """
        self._require(site)
        ends = (*self._starts[1:], self.shape[0])
        for number, (start, end) in enumerate(zip(self._starts, ends, strict=True)):
            windows = slice(start, end)
            if self.directory is None:
                yield windows, self._states[site][windows]
            else:
                with safe_open(_shard(self.directory, number), framework="pt") as shard:
                    yield windows, shard.get_tensor(site)

    def _require(self, site: str) -> None:
        if site not in self.sites:
            raise InputError(
                f"a site must have been captured to be read, and {site!r} was not; captured: {', '.join(self.sites)}"
            )

    @classmethod
    def open(cls, directory: Path | str) -> ResidualStream:
        """Open a stream that `capture(..., out=directory)` has written.

        Args:
            directory: The folder.

        Returns:
            The stream; its states stay on disk until they are read.

        Raises:
            InputError: If the folder holds no complete stream.
        """
        index = Path(directory) / _INDEX
        if not index.is_file():
            raise InputError(
                f"a captured stream's folder must hold {_INDEX}, and {directory} does not; capture it again"
            )
        saved = json.loads(index.read_text(encoding="utf-8"))
        windows, positions, width = saved["shape"]
        dtype = getattr(torch, saved["dtype"])
        return cls(
            tuple(saved["sites"]), (windows, positions, width), dtype, Path(directory), {}, tuple(saved["starts"])
        )


@undisturbed()
def capture(
    model: LanguageModel,
    windows: TokenWindows | Int[Tensor, "window position"],
    *,
    sites: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int = 8,
    dtype: Literal["float32", "model"] = "float32",
    out: Path | str | None = None,
    quiet: bool = True,
) -> ResidualStream:
    """Run token windows through a model and keep the states at chosen sites.

    The cost is one forward pass without the head. The memory is windows · positions · d_model numbers for each site;
    with `out` it is that of one batch, whatever the number of windows.

    Args:
        model: The model.
        windows: Windows of equal length, or their tokens, int64 (windows, positions).
        sites: Full names ("blocks.3.hook_mlp_out", "ln_final.hook_in"), or short names inside a block ("hook_mlp_out",
            "mlp.hook_router_logits"), which are captured at each of `layers`. By default `hook_resid_pre` at each
            layer, and `hook_resid_post` of the deepest: the states at all depths.
        layers: The layers of short names, all by default.
        batch_size: Windows in a pass.
        dtype: "float32" (default), or "model" for the model's own dtype; integers stay int64.
        out: An empty or new folder to stream the states to, in shards of one batch (safetensors).
        quiet: Show no progress bar on standard error.

    Returns:
        The states, on the CPU.

    Raises:
        InputError: If there is no such site, layer or dtype, if the tokens are not windows of this model's ids or too
            long, if a site's module does not run once on every window, if a state is not finite, or if the folder is
            not empty or not writable.
    """
    if batch_size < 1:
        raise InputError(f"a batch must hold at least one window, got batch_size={batch_size}; leave it out for 8")
    if dtype not in ("float32", "model"):
        raise InputError(
            f'the dtype of the states must be "float32" or "model", the model\'s own, got {dtype!r}: choose one'
        )
    tokens = _tokens_of(model, windows)
    names = _site_names(model, sites, layers)
    watched = [model.site(name) for name in names]
    kept = torch.float32 if dtype == "float32" else model.dtype
    shape = (tokens.shape[0], tokens.shape[1], model.d_model)
    directory = None if out is None else _new_folder(Path(out))
    starts = tuple(range(0, shape[0], batch_size))
    states: dict[str, Tensor] = {}
    with torch.no_grad():
        for number, start in enumerate(tqdm(starts, desc="capture", unit="batch", disable=quiet)):
            batch = tokens[start : start + batch_size]
            filler = (
                _Filler(states, kept, batch.shape, start, start, shape[0])
                if directory is None
                else _Filler({}, kept, batch.shape, start, 0, len(batch))
            )
            with hooked(watched, filler):
                model.final_states(batch)
            filler.require_all(names)
            if directory is not None:
                _save(filler.target, _shard(directory, number))
    if directory is not None:
        index = {"sites": names, "shape": shape, "dtype": str(kept).removeprefix("torch."), "starts": starts}
        (directory / _INDEX).write_text(json.dumps(index), encoding="utf-8")
    return ResidualStream(names, shape, kept, directory, states, starts)


def _tokens_of(model: LanguageModel, windows: TokenWindows | Tensor) -> Int[Tensor, "window position"]:
    tokens = require_windows(model, getattr(windows, "tokens", windows))
    if model.max_positions is not None and tokens.shape[1] > model.max_positions:
        raise InputError(
            f"a window must fit the model's {model.max_positions} positions, got {tokens.shape[1]}: pass shorter ones"
        )
    return tokens


@dataclass(frozen=True)
class _Filler:
    """Copies each site's tensor into the target, and refuses the first one that is not finite.

    Attributes:
        target: The tensors by site, made as the first one comes.
        dtype: The dtype of what is not an integer.
        batch: Windows and positions of the batch.
        first_window: The window with which the batch begins.
        start: Its row in the target.
        windows: Number of rows in the target.
        filled: Windows of the batch that have come, by site; a model may run them in several calls.
    """

    target: dict[str, Tensor]
    dtype: torch.dtype
    batch: torch.Size
    first_window: int
    start: int
    windows: int
    filled: dict[str, int] = field(default_factory=dict)

    def __call__(self, site: Site, tensor: Tensor) -> None:
        done = self.filled.get(site.name, 0)
        self.filled[site.name] = done + len(tensor)
        if tensor.shape[1] != self.batch[1]:
            raise InputError(not_run(site.name, f"ran on {tensor.shape[1]} of {self.batch[1]} positions"))
        if self.filled[site.name] > self.batch[0]:
            raise InputError(
                not_run(site.name, f"ran on {self.filled[site.name]} windows in a batch of {self.batch[0]}")
            )
        floating = tensor.is_floating_point()
        if site.name not in self.target:
            size = (self.windows, *tensor.shape[1:])
            self.target[site.name] = torch.empty(size, dtype=self.dtype if floating else torch.int64)
        start = self.start + done
        self.target[site.name][start : start + len(tensor)].copy_(tensor)
        # The sum of finite entries is finite unless it overflows, so every entry is tested only if the sum is not.
        if not floating or torch.isfinite(tensor.sum(dtype=torch.float32)):
            return
        finite = torch.isfinite(tensor)
        if not finite.all():
            window = self.first_window + done + int((~finite).flatten(1).any(1).nonzero()[0])
            where = "after the last layer" if site.layer is None else f"at layer {site.layer}"
            raise InputError(
                f"states must be finite, and {site.name} ({where}) is NaN or infinite in window {window}; load the "
                'model with dtype="float32", or leave that window out'
            )

    def require_all(self, names: Iterable[str]) -> None:
        """Refuse a batch of which a site has not seen every window: the rest of the target was never written.

        Args:
            names: The sites.

        Raises:
            InputError: If a site's module did not run on all windows.
        """
        for name in names:
            if self.filled.get(name, 0) != self.batch[0]:
                raise InputError(not_run(name, f"ran on {self.filled.get(name, 0)} of {self.batch[0]} windows"))


def _site_names(model: LanguageModel, sites: Sequence[str] | None, layers: Sequence[int] | None) -> tuple[str, ...]:
    chosen = range(model.n_layers) if layers is None else layers
    if outside := [layer for layer in chosen if not 0 <= layer < model.n_layers]:
        raise InputError(
            f"layers= must lie in 0 … {model.n_layers - 1} for {model.name}, got {outside[0]}: choose others"
        )
    if not chosen:
        raise InputError("layers= must name at least one layer, got none: leave it out for all")
    if sites is None:
        wanted = [*(f"blocks.{layer}.hook_resid_pre" for layer in chosen), f"blocks.{max(chosen)}.hook_resid_post"]
    else:
        wanted = [
            name
            for site in sites
            for name in ([site] if _is_full(site) else [f"blocks.{layer}.{site}" for layer in chosen])
        ]
    for name in wanted:
        model.site(name)
    order = {name: index for index, name in enumerate(model.sites)}
    return tuple(sorted(set(wanted), key=order.__getitem__))


def _is_full(site: str) -> bool:
    """Tell whether a name says where it is; names inside a block may have a dot of their own."""
    return "." in site and not site.startswith("mlp.")


def _shard(directory: Path, number: int) -> Path:
    return directory / f"shard-{number:05d}.safetensors"


def _new_folder(directory: Path) -> Path:
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"a stream needs an empty folder, and {directory} is not empty: pass another out=")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"a stream needs a folder to write to, and {directory} cannot be made ({error.strerror}): pass another out="
        ) from error
    return directory


def _save(states: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(states, path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"a stream needs a folder with room for it, and {path} cannot be written ({error}): pass another out="
        ) from error
