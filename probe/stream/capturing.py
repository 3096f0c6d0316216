"""The capture of states and other tensors of the pass with forward hooks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int64
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from probe.boundary import filled, public
from probe.errors import InputError
from probe.model import (
    LanguageModel,
    Seen,
    Site,
    ending_after,
    hooked,
    not_run,
    require_layer,
    site_name,
    undisturbed,
)
from probe.stream.states import INDEX, ResidualStream, shard_path
from probe.text import Given, TokenRows, as_rows


@public
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


@public(sites=filled)
@undisturbed()
def capture(
    model: LanguageModel,
    windows: Given,
    *,
    sites: str | Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    batch_size: int = 8,
    dtype: Literal["float32", "model"] = "float32",
    out: Path | str | None = None,
    quiet: bool = True,
) -> ResidualStream:
    """Run token windows or prompts through a model and keep the states at chosen sites.

    The cost is one forward pass up to the deepest block that is asked for, without the head. The memory is windows ·
    positions · d_model numbers for each site; with `out` it is that of one batch, whatever the number of windows.

    Args:
        model: The model.
        windows: Windows of `load_windows`, prompts of `load_prompts`, or what that takes: a string, a list of strings,
            chats, or tokens (T,) or (W, T). Prompts of unequal lengths go through the model by length, without padding.
        sites: Full names ("blocks.3.hook_mlp_out", "ln_final.hook_in"), or short names inside a block ("mlp_out",
            "attn.hook_z", "mlp.hook_router_logits"), which are captured at each of `layers`; `model.support` lists
            what there is. By default `hook_resid_pre` at each layer, and `hook_resid_post` of the deepest: the states
            at all depths.
        layers: The layers of short names; by default all that have the site.
        batch_size: Windows in a pass.
        dtype: "float32" (default), or "model" for the model's own dtype; integers stay int64.
        out: An empty or new folder to stream the states to, in shards of one batch (safetensors).
        quiet: Show no progress bar on standard error.

    Returns:
        The states, on the CPU.

    Raises:
        InputError: If there is no such site, layer or dtype, if the windows are not of this model's ids or too long, if
            a site's module does not run once on every window, if a state is not finite, or if the folder is not empty
            or not writable, or is to hold windows of unequal lengths.
    """
    if batch_size < 1:
        raise InputError(f"a batch must hold at least one window, got batch_size={batch_size}; leave it out for 8")
    if dtype not in ("float32", "model"):
        raise InputError(
            f'the dtype of the states must be "float32" or "model", the model\'s own, got {dtype!r}: choose one'
        )
    rows = as_rows(model, windows, argument="windows")
    names = _site_names(model, sites, layers)
    watched = [model.site(name) for name in names]
    inside = [site.layer for site in watched if site.layer is not None]
    kept = torch.float32 if dtype == "float32" else model.dtype
    shape = (len(rows.ids), int(rows.lengths.max()), model.d_model)
    if out is not None and len(set(rows.lengths.tolist())) > 1:
        raise InputError(
            f"a stream on disk holds windows of one length, and these have {int(rows.lengths.min())} to {shape[1]} "
            "tokens: leave out= away, or capture each length into a folder of its own"
        )
    directory = None if out is None else _new_folder(Path(out))
    states: dict[str, Tensor] = {}
    with torch.no_grad():
        batches = tqdm(_batches(rows, batch_size), desc="capture", unit="batch", disable=quiet)
        for number, (indices, tokens) in enumerate(batches):
            filler = (
                _Filler(states, kept, tokens.shape, indices, shape[0])
                if directory is None
                else _Filler({}, kept, tokens.shape, indices, len(indices), int(indices[0]))
            )
            with hooked(watched, filler), ExitStack() as stack:
                # a whole pass also shows whether a site comes once; at load it was seen that the blocks do
                if len(inside) == len(watched) and max(inside) < model.n_layers - 1:
                    stack.enter_context(ending_after(model.blocks[max(inside)]))
                model.final_states(tokens)
            filler.require_all(names)
            if directory is not None:
                _save(filler.target, shard_path(directory, number))
    starts = tuple(range(0, shape[0], batch_size))
    if directory is not None:
        index = {"sites": names, "shape": shape, "dtype": str(kept).removeprefix("torch."), "starts": starts}
        (directory / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return ResidualStream(names, shape, kept, directory, states, starts, rows)


def _batches(rows: TokenRows, batch_size: int) -> list[tuple[Int64[Tensor, " _"], Int64[Tensor, "_ _"]]]:
    """Windows and their tokens, batch by batch: the longest first, so that what holds them fits the others."""
    groups = sorted(rows.groups(), key=lambda group: -group[1].shape[1])
    return [
        (indices[start : start + batch_size], tokens[start : start + batch_size])
        for indices, tokens in groups
        for start in range(0, len(indices), batch_size)
    ]


@dataclass(frozen=True)
class _Filler:
    """Copies each site's tensor into the target, and refuses the first one that is not finite.

    Attributes:
        target: The tensors by site, made as the first one comes.
        dtype: The dtype of what is not an integer.
        batch: Windows and positions of the batch.
        indices: Index of each window of the batch.
        windows: Number of rows in the target.
        first: Index of the window that is the target's first row.
        filled: Windows of the batch that have come, by site; a model may run them in several calls.
    """

    target: dict[str, Tensor]
    dtype: torch.dtype
    batch: torch.Size
    indices: Int64[Tensor, " part"]
    windows: int
    first: int = 0
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
            nothing, dtype = (torch.nan, self.dtype) if floating else (-1, torch.int64)
            self.target[site.name] = torch.full(size, nothing, dtype=dtype)
        target = self.target[site.name]
        for row, states in zip(self.indices[done : done + len(tensor)].tolist(), tensor, strict=True):
            target[row - self.first][tuple(slice(0, size) for size in states.shape)].copy_(states)
        # The sum of finite entries is finite unless it overflows, so every entry is tested only if the sum is not.
        if not floating or torch.isfinite(tensor.sum(dtype=torch.float32)):
            return
        finite = torch.isfinite(tensor)
        if not finite.all():
            window = int(self.indices[done + int((~finite).flatten(1).any(1).nonzero()[0])])
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


def _site_names(
    model: LanguageModel, sites: str | Sequence[str] | None, layers: int | Sequence[int] | None
) -> tuple[str, ...]:
    chosen = range(model.n_layers) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    for layer in chosen:
        require_layer(model, layer)
    if not chosen:
        raise InputError("layers= must name at least one layer, got none: leave it out for all")
    if sites is None:
        wanted = [*(f"blocks.{layer}.hook_resid_pre" for layer in chosen), f"blocks.{max(chosen)}.hook_resid_post"]
    else:
        wanted = []
        for site in [sites] if isinstance(sites, str) else sites:
            if site.startswith(("blocks.", "ln_final.")):
                wanted.append(site_name(model, site))
                continue
            names = [site_name(model, f"blocks.{layer}.{site}") for layer in chosen]
            having = [name for name in names if name in model.sites]
            wanted += having if having and layers is None else names
    for name in wanted:
        model.site(name)
    order = {name: index for index, name in enumerate(model.sites)}
    return tuple(sorted(set(wanted), key=order.__getitem__))


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
