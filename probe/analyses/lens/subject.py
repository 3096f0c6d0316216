"""The subject of a run of the lens: which documents are fitted, which are read, and the matrices of a fit."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe import text
from probe.analyses.lens.config import Config
from probe.analyses.lens.schema import GROUPS, PREDICTORS
from probe.analysis import Run, Subject
from probe.analysis.subject import OWN
from probe.errors import InputError
from probe.lens import Estimator, JacobianLens
from probe.model import HuggingFaceModel, LanguageModel, load_model
from probe.text import Windows

MEMORY = 2**29


class LensSubject(Subject[Config]):
    """The model, its controls, and the documents that are fitted and read."""

    @cached_property
    def drawn(self) -> Windows:
        """One window of each document, those that are held out first."""
        config = self.config
        windows = self.windows("all", config.windows + 2 * config.fit_windows, at_most=True)
        first = {document: row for row, document in reversed(list(enumerate(windows.document.tolist())))}
        rows = torch.tensor(sorted(first.values()))
        if len(rows) < 6:
            raise InputError(
                f"a lens is measured on at least 6 documents, and {windows.name} has {len(rows)} of "
                f"{config.window_length} tokens: pass a longer text, or a smaller window_length="
            )
        return part_of(windows, rows)

    @cached_property
    def held(self) -> Windows:
        """The documents that are read."""
        return part_of(self.drawn, torch.arange(self.n_held))

    @property
    def n_held(self) -> int:
        """Number of held-out documents: as many as asked for, or a third."""
        asked, there = self.config.windows + 2 * self.config.fit_windows, self.drawn.n_windows
        return self.config.windows if there >= asked else max(2, min(self.config.windows, there // 3))

    @cached_property
    def fits(self) -> dict[str, Int[Tensor, " document"]]:
        """The rows of `drawn` of each fit; of the second corpus those of `other`."""
        rest = torch.arange(self.n_held, self.drawn.n_windows)
        found = {"first": rest[0::2], "second": rest[1::2]}
        if self.other is not None:
            found["other"] = torch.arange(self.other.n_windows)
        return found

    @cached_property
    def other(self) -> Windows | None:
        """One window of each document of the second corpus."""
        config = self.config
        if config.other_text is None and config.other_dataset is None:
            return None
        windows = text.load_windows(
            self.model,
            dataset=config.other_dataset,
            text=config.other_text,
            split=config.other_split,
            windows=config.fit_windows,
            window_length=config.window_length,
            seed=config.seed,
            at_most=True,
        )
        first = {document: row for row, document in reversed(list(enumerate(windows.document.tolist())))}
        return part_of(windows, torch.tensor(sorted(first.values())))

    @cached_property
    def fitted(self) -> list[tuple[str, int]]:
        """The documents along `fitted`: the group and the row in it."""
        return [(group, int(row)) for group in GROUPS if group in self.fits for row in self.fits[group]]

    def tokens(self, place: int) -> Int[Tensor, " position"]:
        """Return the tokens of a document along `fitted`."""
        group, row = self.fitted[place]
        windows = self.other if group == "other" else self.drawn
        assert windows is not None
        return windows.tokens[row]

    def places(self, group: str, count: int | None = None) -> list[int]:
        """List the places along `fitted` of a group, or the first of them."""
        return [place for place, (name, _) in enumerate(self.fitted) if name == group][:count]

    @cached_property
    def controlled(self) -> list[int]:
        """The places along `fitted` on which controls are fitted."""
        return self.places("first", self.config.control_windows)

    @cached_property
    def positions(self) -> Int[Tensor, "window chosen"]:
        """The positions that are read, a seeded draw from those that count in a fit."""
        return self.draw(self.held, self.config.positions_per_window, followed=True)

    @cached_property
    def sources(self) -> list[int]:
        """The source layers: those that are looked at, but the last block."""
        found = [layer for layer in self.layers if layer < self.model.n_layers - 1]
        if not found:
            raise InputError("layers= must name a block before the last, whose lens is the identity: pass others")
        return found

    def queries(self, window: int) -> range:
        """Name the read tokens of a held-out document: their places along `query`."""
        chosen = self.positions.shape[1]
        return range(window * chosen, (window + 1) * chosen)

    @property
    def estimator(self) -> Estimator:
        """The estimator of each document's matrices."""
        config = self.config
        return Estimator.of(self.model, targets=config.targets, layers=self.sources, skip_first=config.skip_first)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """As of every subject, and the hash of the second corpus."""
        return super().fingerprint | ({} if self.other is None else {"other": self.other.sha256})

    @property
    def predictors(self) -> list[str]:
        """Jacobians by which a change is predicted; where the lens itself leaves later positions out, it is "same"."""
        return [name for name in PREDICTORS if name != "same" or self.config.targets != "same"]

    @cached_property
    def steered(self) -> list[int]:
        """Tokens along whose directions the stream is steered: drawn from those of the fitted documents."""
        counts = torch.bincount(torch.cat([self.tokens(place) for place in self.places("first")]))
        counts[list(self.drawn.special_ids & set(range(len(counts))))] = 0
        common = counts.argsort(descending=True, stable=True)[: 10 * self.config.steered]
        common = common[counts[common] > 0]
        order = torch.randperm(len(common), generator=torch.Generator().manual_seed(self.config.seed))
        return sorted(int(token) for token in common[order[: self.config.steered]])

    def _load(self, random_init: int | None, shuffled_weights: int | None) -> LanguageModel:
        if random_init is None or random_init >= 0:
            return super()._load(random_init, shuffled_weights)
        return with_own_ends(super()._load(-1 - random_init, None), self.model)

    def control(self, name: str) -> tuple[int | None, int | None]:
        """Look up a control; "blocks-SEED", fresh blocks between the model's own ends, has the seed −1 − SEED."""
        kind, _, seed = name.partition("-")
        return (-1 - int(seed), None) if kind == "blocks" else super().control(name)

    def lens(self, run: Run, group: str = "first", variant: str = OWN) -> JacobianLens:
        """Average the matrices of a fit that finished tasks have saved.

        Args:
            run: The run.
            group: The fit, or "same": of the documents of the first, J at the source's own position; of a control
                "first".
            variant: Of the model.

        Returns:
            The lens.
        """
        same = group == "same"
        places = self.places("first" if same else group) if variant == OWN else self.controlled

        def make() -> JacobianLens:
            mean = torch.zeros(())
            for place in places:
                one = same_matrices(run, place) if same else matrices(run, variant, place)
                mean = mean + one.double() / len(places)
            return JacobianLens(tuple(self.sources), mean.float(), self.model.n_layers - 1, len(places))

        return self.keep(("lens", group, variant), make)


def matrices(run: Run, variant: str, place: int) -> Float[Tensor, "source d d"]:
    """Read the matrices of a fitted document.

    Args:
        run: The run.
        variant: Of the model.
        place: Its place along `fitted`.

    Returns:
        J of each source layer.
    """
    return run.piece("documents", ["jacobian"], variant=variant, fitted=place)["jacobian"]


def same_matrices(run: Run, place: int) -> Float[Tensor, "source d d"]:
    """Read the matrices of a document of the first fit at the source's own position.

    Args:
        run: The run.
        place: Its place along `fitted`.

    Returns:
        J of each source layer.
    """
    return run.piece("same", ["same_jacobian"], fitted=place)["same_jacobian"]


def part_of(windows: Windows, rows: Int[Tensor, " row"]) -> Windows:
    """Choose some of the windows."""
    return Windows(
        windows.tokens[rows],
        windows.document[rows],
        windows.titles,
        windows.special_ids,
        windows.name,
        windows.sha256,
    )


def with_own_ends(fresh: LanguageModel, own: LanguageModel) -> LanguageModel:
    """Give a model with fresh weights everything of another that is not in its blocks: embedding, final norm, head.

    Args:
        fresh: The model with fresh weights, which is changed.
        own: The model whose ends it gets.

    Returns:
        The changed model, loaded anew.

    Raises:
        InputError: If the models are not Hugging Face modules.
    """
    if not isinstance(fresh, HuggingFaceModel) or not isinstance(own, HuggingFaceModel):
        raise InputError(
            f"fresh blocks between a model's own ends are made of a Hugging Face model, and {own.name} is none: pass "
            "blocks_seeds=0"
        )
    inside = {id(parameter) for block in fresh.blocks for parameter in block.parameters()}
    theirs = dict(own.module.named_parameters())
    with torch.no_grad():
        for name, parameter in fresh.module.named_parameters():
            if id(parameter) not in inside:
                parameter.copy_(theirs[name])
    return load_model(fresh.module, tokenizer=own.tokenizer)
