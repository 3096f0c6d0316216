"""A recorded pass, and the ways in which its blocks run again at chosen positions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe import display
from probe.errors import InputError
from probe.model import LanguageModel
from probe.replay import axes as of_axes
from probe.replay import carried, suffix
from probe.replay.axes import Axes, Uncuttable, causal_mask
from probe.replay.calls import BlockCall, Path, accepts, caching, cast, tensors_of
from probe.replay.past import Carried, PastKeys, counted_updates, is_container, keys_of, unbounded
from probe.replay.profile import Profile, profile_of

logger = logging.getLogger("probe.replay")

Part = TypeVar("Part", bound="Recorded")

WAYS = ("keys", "carried", "rows", "sequences")
"""Ways of running a block at chosen positions, the cheapest first: over recorded keys, over the block's own cache as it
stood before each position, that way one row at a time, and in copies of the whole sequence."""


@dataclass(frozen=True, repr=False)
class Recorded(display.Shown):
    """A recorded pass, in which blocks run again at chosen positions, for a batch of windows.

    Attributes:
        model: The recorded model.
        tokens: The tokens, (window, position).
        positions: The chosen positions, (window, chosen).
        states: For each recorded block l the stream entering it and the one leaving it, by l and l + 1, (window,
            position, d_model); L is the stream that enters the final norm.
        calls: The recorded call of each of these blocks.
        seen: States at the further sites that were asked for, by site, (window, position, d_model).
        one_token: Whether every window is a single token whose states come from elsewhere (`alone`).
    """

    model: LanguageModel
    tokens: Int[Tensor, "window position"]
    positions: Int[Tensor, "window chosen"]
    states: Mapping[int, Float[Tensor, "window position d_model"]]
    calls: Mapping[int, BlockCall]
    seen: Mapping[str, Float[Tensor, "window position d_model"]] = field(default_factory=dict)
    one_token: bool = False
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _whole: tuple[Any, slice, slice] | None = field(default=None, repr=False, compare=False)

    # Parts

    def state(self, layer: int) -> Float[Tensor, "window chosen d_model"]:
        """Return the stream that enters block `layer` (the final norm for `layer = L`) at the chosen positions.

        Args:
            layer: Index of the block.

        Returns:
            The states.
        """
        return self._chosen(self.stream(layer))

    def stream(self, layer: int) -> Float[Tensor, "window position d_model"]:
        """Return the stream that enters block `layer` (the final norm for `layer = L`) at all positions.

        Args:
            layer: Index of the block.

        Returns:
            The states.

        Raises:
            InputError: If this depth was not recorded.
        """
        if layer not in self.states:
            raise InputError(
                f"a state must have been recorded to be read, and that of depth {layer} was not; recorded: "
                f"{', '.join(map(str, self.states))}: name its block in layers="
            )
        return self.states[layer]

    def _facts(self) -> dict[str, object]:
        windows, positions = self.tokens.shape
        facts: dict[str, object] = {"model": self.model.name, "windows": windows, "window_length": positions}
        facts |= {"chosen": self.positions.shape[1], "blocks": list(self.calls), "sites": list(self.seen)}
        return facts | {"one_token": self.one_token}

    def _chosen(self, states: Tensor) -> Tensor:
        return states.gather(1, self.positions[..., None].expand(-1, -1, states.shape[-1]))

    def select(self: Part, windows: slice, chosen: slice) -> Part:
        """Select the part of the context of some windows and some of their chosen positions."""
        rows = torch.arange(len(self.tokens), device=self.tokens.device)[windows]
        calls = {layer: replace(call, arguments=self._of_windows(layer, rows)) for layer, call in self.calls.items()}
        states = {layer: state[windows] for layer, state in self.states.items()}
        seen = {site: state[windows] for site, state in self.seen.items()}
        positions = self.positions[windows, chosen]
        return type(self)(
            self.model, self.tokens[windows], positions, states, calls, seen, self.one_token, (self, windows, chosen)
        )

    def alone_standing(self: Part) -> Part:
        """Return this part of a context as a context of its own, so that nothing is computed for the rest."""
        return replace(self, _whole=None)

    @property
    def profile(self) -> Profile:
        """The facts that are known of the model's blocks."""
        return profile_of(self.model)

    # A block again

    def replay(
        self,
        layer: int,
        states: Float[Tensor, "window alternative chosen d_model"],
        block: nn.Module | None = None,
    ) -> Float[Tensor, "window alternative chosen d_model"]:
        """Run block `layer` on `states` at the chosen positions, with everything before them as recorded.

        Args:
            layer: Index of the block.
            states: The stream that enters the block, several alternatives for each chosen position.
            block: A working copy to run instead, with the block's own attention, in the dtype of `states`.

        Returns:
            The stream that leaves the block, of the same shape.

        Raises:
            InputError: If the block's recorded call does not give again what the block gave.
        """
        return self._run(self.way(layer), layer, states, block)

    def way(self, layer: int) -> str:
        """Find the cheapest of `WAYS` in which block `layer`, run again, gives what it gave; it is proved here.

        Args:
            layer: Index of the block.

        Returns:
            The way.

        Raises:
            InputError: If none does.
        """
        key = ("way", layer)
        if key not in self._kept:
            self._kept[key] = self._whole[0].way(layer) if self._whole is not None else self._found(layer)
        found: str = self._kept[key]
        return found

    def at_positions(self, layer: int) -> bool:
        """Tell whether block `layer` runs at the chosen positions alone, not in copies of whole sequences."""
        return self.way(layer) != "sequences"

    def carried_width(self, layer: int) -> int:
        """Return the size of the largest state that block `layer` carries from one position into the next.

        Args:
            layer: Index of the block.

        Returns:
            Numbers in it; 0 if the block reads keys and values alone, or runs on whole sequences.
        """
        whole: Recorded = self if self._whole is None else self._whole[0]
        if whole.way(layer) in ("keys", "sequences"):
            return 0
        carried: dict[Any, list[Carried]] = {key: one for key, one in whole._kept.items() if key[0] == "carried"}
        return max(one.width for key, kept in carried.items() if key[1] == layer for one in kept)

    @torch.no_grad()
    def _found(self, layer: int) -> str:
        known = self.profile.ways.get(layer, WAYS[0])
        state = self.state(layer)
        alone = state[:, None]
        # Once a model: a second alternative must not move the first.
        alternatives = alone if layer in self.profile.ways else torch.cat([alone, 1.1 * alone], dim=1)
        for way in WAYS[WAYS.index(known) :]:
            try:
                if way == "sequences":
                    rows = torch.arange(len(self.tokens), device=self.tokens.device)
                    after = self.block_on_sequences(layer, self.states[layer], rows)
                    proved = self.one_token or self.same(after, self.left(layer))
                else:
                    proved = self.same(self._run(way, layer, alternatives)[:, 0], self.after(layer))
            except Exception as error:  # noqa: BLE001 - whatever a model's code raises, its blocks cannot run so
                logger.info("block %d of %s does not run by %s: %s", layer, self.model.name, way, error)
                continue
            if proved and self._moves_alike(way, layer):
                self.profile.ways[layer] = way
                return way
            logger.info("block %d of %s gives something else by %s", layer, self.model.name, way)
        raise InputError(_refusal(self.model, layer))

    def _moves_alike(self, way: str, layer: int) -> bool:
        """Compare a way with the whole sequence at a pushed state: at its own, recorded and live keys are the same."""
        if way == "sequences" or layer in self.profile.pushed:
            return True
        part = self.farthest()
        state = part.state(layer)[:, None]
        pushed = state + 0.5 * state.flip(-1)
        alike = self.same(part._run(way, layer, pushed), part._in_sequences(layer, pushed, None))
        if alike and bool(part.positions.max() > 0):
            self.profile.pushed.add(layer)
        return alike

    def farthest(self: Part) -> Part:
        """Select the one chosen position that lies deepest in its window."""
        window, column = divmod(int(self.positions.argmax()), self.positions.shape[1])
        return self.select(slice(window, window + 1), slice(column, column + 1))

    def after(self, layer: int) -> Float[Tensor, "window chosen d_model"]:
        """Return the stream that leaves block `layer` at the chosen positions, from the real run."""
        if not self.one_token:
            return self._chosen(self.left(layer))
        if ("after", layer) not in self._kept:
            rows = torch.arange(len(self.tokens), device=self.tokens.device)
            with torch.no_grad():
                self._kept["after", layer] = self.block_on_sequences(layer, self.states[layer], rows)
        after: Tensor = self._kept["after", layer]
        return after

    def left(self, layer: int) -> Float[Tensor, "window position d_model"]:
        """Return the stream that left block `layer` in the recorded pass, at all positions."""
        site = f"blocks.{layer}.hook_resid_post"  # kept where it is not the stream that enters the next block
        return self.seen[site] if site in self.seen else self.states[layer + 1]

    def _run(self, way: str, layer: int, states: Tensor, block: nn.Module | None = None) -> Tensor:
        if way == "keys":
            return self._over_keys(layer, states, block, self.past_keys(layer, states.dtype, block))
        if way == "sequences":
            return self._in_sequences(layer, states, block)
        return self._over_cache(layer, states, block, singly=way == "rows")

    def same(self, found: Tensor, expected: Tensor) -> bool:
        """Tell whether states are equal at every position, up to the rounding of a block's own arithmetic."""
        eps = max(torch.finfo(dtype).eps for dtype in (expected.dtype, self.model.dtype))
        return bool(((found - expected).norm(dim=-1) <= max(1e-4, 4 * eps) * expected.norm(dim=-1)).all())

    def require_same(self, layer: int, found: Tensor, expected: Tensor) -> None:
        """Refuse a block whose recorded call gives something else than the block gave.

        Args:
            layer: Index of the block.
            found: What the call gives.
            expected: What the block gave.

        Raises:
            InputError: If they differ by more than rounding.
        """
        if not self.same(found, expected):
            raise InputError(_refusal(self.model, layer))

    # Over recorded keys

    def past_keys(self, layer: int, dtype: torch.dtype, block: nn.Module | None) -> PastKeys:
        """Find a block's keys and values at all positions, from a run with an empty cache.

        Args:
            layer: Index of the block.
            dtype: The dtype of the arithmetic.
            block: A working copy of it; None: the block.

        Returns:
            The keys and values.

        Raises:
            Uncuttable: If the block keeps something else too.
        """
        if self._whole is not None:
            whole, windows, _ = self._whole
            parent: PastKeys = whole.past_keys(layer, dtype, block)
            return parent.select(windows)
        key = ("keys", layer, dtype)
        if key not in self._kept:
            cache = unbounded(self.profile.cache(self.model, layer, len(self.tokens)))
            if is_container(cache):
                raise Uncuttable("the cache is of another kind")
            with torch.no_grad(), counted_updates(cache, self.profile.updates.get(layer)) as count:
                rows = torch.arange(len(self.tokens), device=self.tokens.device)
                self.block_on_sequences(layer, self.states[layer].to(dtype), rows, block, cache)
            self._kept[key] = found = keys_of(cache)
            if not found.indexed and count[0]:
                self.profile.updates[layer] = count[0]
        past: PastKeys = self._kept[key]
        return past

    def _over_keys(self, layer: int, states: Tensor, block: nn.Module | None, past: PastKeys) -> Tensor:
        block = self.model.blocks[layer] if block is None else block
        cut = self._at_positions(layer, states.shape[1], states.dtype, joined=True)
        return self.calls[layer].run(block, states.flatten(1, 2), past, **cut).reshape(states.shape)

    def _at_positions(self, layer: int, alternatives: int, dtype: torch.dtype, *, joined: bool) -> dict[str, Any]:
        """The arguments of a recorded call cut to the chosen positions; they are kept, because blocks share them."""
        call, known = self.calls[layer], self.axes(layer)
        shared = tuple((path, id(tensor)) for path, tensor in tensors_of(call.arguments).items())
        key = ("cut", shared, alternatives, dtype, joined)
        if key not in self._kept:
            positions = self.positions[:, None].expand(-1, alternatives, -1).flatten(1)

            def cut(tensor: Tensor, axes: Axes) -> Tensor:
                return of_axes.of_positions(tensor, axes, positions, joined=joined, dtype=dtype)

            arguments = cast(of_axes.changed(call.arguments, known, cut), dtype)
            name = "attention_mask"
            if arguments.get(name) is None and accepts(self.model.blocks[layer], name):
                arguments[name] = causal_mask(positions, self.tokens.shape[1], dtype)
            self._kept[key] = arguments
        kept: dict[str, Any] = self._kept[key]
        return kept

    # Over the block's own cache

    def _over_cache(self, layer: int, states: Tensor, block: nn.Module | None, *, singly: bool) -> Tensor:
        key = ("carried", layer, states.dtype)
        if key not in self._kept:
            with torch.no_grad():
                self._kept[key] = carried.walked(self, layer, states.dtype, block)
        return carried.over_cache(self, layer, states, block, self._kept[key], singly=singly)

    # From a position on

    def replay_suffix(
        self,
        layer: int,
        start: int,
        states: Float[Tensor, "row suffix d_model"],
        windows: Int[Tensor, " row"],
        block: nn.Module | None = None,
    ) -> Float[Tensor, "row suffix d_model"]:
        """Run block `layer` on positions `start` … T − 1 of changed streams, with everything before them as recorded.

        Args:
            layer: Index of the block.
            start: The first position, in [0, T).
            states: The streams that enter the block at these positions.
            windows: The window that each row is an alternative of.
            block: A working copy to run instead, with the block's own attention, in the dtype of `states`.

        Returns:
            The streams that leave the block, of the same shape.

        Raises:
            InputError: If the block's recorded call does not give again what the block gave.
        """
        return suffix.run(self, self.suffix_way(layer, start), layer, start, states, windows, block)

    def suffix_way(self, layer: int, start: int) -> str:
        """Find the cheapest of `suffix.SUFFIX_WAYS` in which block `layer` goes on from `start`; it is proved here.

        Args:
            layer: Index of the block.
            start: The first position.

        Returns:
            The way; it holds for every later start, and is proved again for an earlier one.

        Raises:
            InputError: If none gives what the block gave.
        """
        length = self.tokens.shape[1] - start
        key = ("suffix", layer, length == 1, start == 0)
        way, proved = self._kept.get(key, ("", 0))
        if length > proved:
            with torch.no_grad():
                way = suffix.found(self, layer, start)
            self._kept[key] = way, length
        return str(way)

    def cache_before(self, layer: int, position: int, dtype: torch.dtype, block: nn.Module | None = None) -> Carried:
        """Find the cache of a block before one position of all windows; the latest one is kept.

        Args:
            layer: Index of the block.
            position: The position.
            dtype: The dtype of the arithmetic.
            block: A working copy of it; None: the block.

        Returns:
            The cache, a row for each window.
        """
        key = ("before", layer, dtype)
        kept: Carried | None = self._kept.get(key)
        if kept is None or kept.position != position:
            with torch.no_grad():
                self._kept[key] = kept = carried.before(self, layer, position, dtype, block)
        return kept

    # On whole sequences

    def _in_sequences(self, layer: int, states: Tensor, block: nn.Module | None) -> Tensor:
        """`replay` for any causal block: each state in a copy of its whole sequence, at T times the cost."""

        def run(sequences: Tensor, windows: Tensor) -> Tensor:
            return self.block_on_sequences(layer, sequences, windows, block)

        return self._each_in_its_sequence(self.states[layer], states, run)

    def _each_in_its_sequence(self, recorded: Tensor, states: Tensor, run: Any) -> Tensor:
        windows, alternatives, chosen, width = states.shape
        replayed = []
        for window in range(windows):
            columns = self.positions[window].repeat(alternatives)
            rows = torch.arange(len(columns), device=columns.device)
            sequences = recorded[window].to(states.dtype).repeat(len(columns), 1, 1)
            sequences = sequences.index_put((rows, columns), states[window].reshape(-1, width))
            after = run(sequences, torch.full_like(columns, window))
            replayed.append(after[rows, columns].reshape(alternatives, chosen, width))
        return torch.stack(replayed)

    def block_on_sequences(
        self,
        layer: int,
        sequences: Float[Tensor, "row position d_model"],
        windows: Int[Tensor, " row"],
        block: nn.Module | None = None,
        cache: Any = None,
    ) -> Float[Tensor, "row position d_model"]:
        """Run block `layer` on whole sequences, with its recorded call in the given windows.

        Args:
            layer: Index of the block.
            sequences: The stream entering it.
            windows: The window that each row comes from.
            block: A working copy to run instead, in the dtype of `sequences`.
            cache: A cache for the block to fill.

        Returns:
            The stream that leaves the block.
        """
        rows = cast(self._of_windows(layer, windows), sequences.dtype)
        rows = rows if cache is None else caching(rows)
        return self.calls[layer].run(self.model.blocks[layer] if block is None else block, sequences, cache, **rows)

    def axes(self, layer: int) -> dict[Path, Axes | None]:
        """Return the axes of the arguments of block `layer`."""
        key = ("axes", layer)
        if key not in self._kept:
            call, length = self.calls[layer], self.tokens.shape[1]
            self._kept[key] = self.profile.axes(self.model, layer, call.arguments, length)
        known: dict[Path, Axes | None] = self._kept[key]
        return known

    def _of_windows(self, layer: int, windows: Int[Tensor, " row"]) -> dict[str, Any]:
        """A recorded call's arguments for the given windows."""
        return of_axes.changed(
            self.calls[layer].arguments,
            self.axes(layer),
            lambda tensor, axes: of_axes.of_windows(tensor, axes, windows),
        )


def _refusal(model: LanguageModel, layer: int) -> str:
    return (
        f"a replay needs blocks whose recorded calls reproduce their outputs, and block {layer} of {model.name} "
        f"({model.architecture}) does not: use a model of another family"
    )
