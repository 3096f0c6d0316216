"""Do the states of the residual stream grow from block to block, and more than with fresh weights?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import probe  # its parts load when they are used: --help answers at once
from probe.analysis import (
    Analysis,
    AtLeast,
    Claim,
    Criterion,
    Evidence,
    Figure,
    Schema,
    Sentence,
    Stage,
    Subject,
    Task,
    TextConfig,
    Variable,
    bootstrap,
    decide,
    enough_units,
    line,
)

if TYPE_CHECKING:
    import matplotlib.figure
    import torch
    import xarray as xr

    from probe.analysis import Run


GROWTH = Sentence("norms.growth", "States grow from block to block, more than with fresh weights.", "ours")


@dataclass(frozen=True, kw_only=True)
class Options(TextConfig):
    """Do the norms of residual-stream states grow from block to block, and more than with fresh weights?"""

    control_seed: Annotated[int, AtLeast(0)] = 1
    """Seed of the fresh weights that stand beside the model's own."""


class Norms(Analysis[Options]):
    """The mean log norm of a window's states, before each block and behind the last one."""

    name = "norms"
    config = Options
    schema = Schema({"log_norm": Variable("weights depth window", "nat", "mean ln ‖h‖ over a window's tokens")})

    def stages(self, subject: Subject[Options]) -> list[Stage]:
        """List one task for each set of weights; a resumed run does not repeat finished ones."""
        weights = ("model", f"init-{subject.config.control_seed}")
        tasks = [Task("norms", {"weights": name}) for name in weights]
        return [Stage("norms", self.measure, tasks, "norms of states")]

    def measure(self, subject: Subject[Options], task: Task, run: Run) -> dict[str, torch.Tensor]:
        """Measure one task: arrays by name, with the axes of the schema that the task's labels leave open."""
        import torch

        model, windows = subject.variant(task["weights"]), subject.windows()
        stream = probe.capture(model, windows, layers=subject.layers)
        counted = windows.counted(subject.config.skip_first)
        sites = [f"blocks.{layer}.hook_resid_pre" for layer in subject.layers]
        sites.append(f"blocks.{subject.layers[-1]}.hook_resid_post")
        norms = torch.stack([stream[site].norm(dim=-1).log() for site in sites])
        return {"log_norm": (norms * counted).sum(-1) / counted.sum(-1)}

    def coordinates(self, subject: Subject[Options]) -> dict[str, Any]:
        """Give what stands along the axes of the Dataset; pieces are placed by these labels."""
        return {
            "weights": ["model", f"init-{subject.config.control_seed}"],
            "depth": [*subject.layers, subject.layers[-1] + 1],
            "document": ("window", subject.windows().document.numpy()),
        }

    def claims(self, data: xr.Dataset, config: Options) -> list[Claim]:
        """Judge a sentence by its interval over documents, beside its null."""
        own, fresh = data["log_norm"].isel(depth=[0, -1]).differentiate("depth")[:, 0].values  # nats a block, by window
        parts = (own, fresh, own - fresh)
        found = bootstrap(lambda rows: [values[rows].mean() for values in parts], data["document"].values)
        enough = enough_units(found[0].n_units, 12, "documents")  # fewer decide nothing
        beyond = Criterion("beyond fresh weights", found[2], 0.0)
        evidence = Evidence([Criterion("growth", found[0], 0.0)], [beyond], preconditions=[enough])
        null = line("fresh weights", found[1])
        return [decide(GROWTH, evidence, statistic="nats a block", unit="documents", null=null)]

    def figures(self, data: xr.Dataset, config: Options) -> list[Figure]:
        """Make the pictures of the report; nothing is drawn before it is shown."""

        def draw() -> matplotlib.figure.Figure:
            figure, axes = probe.plots.new_figure()
            for name in data["weights"].values:
                by_window = data["log_norm"].sel(weights=name).values
                mean = bootstrap(lambda rows, v=by_window: v[:, rows].mean(1), data["document"].values)
                axes[0, 0].plot(data["depth"], mean.estimate, label=name)
                axes[0, 0].fill_between(data["depth"], mean.low, mean.high, alpha=0.25)
            axes[0, 0].set(xlabel="blocks behind the state", ylabel="mean ln ‖h‖, nats")
            axes[0, 0].legend()
            return figure

        caption = (
            f"Mean ln ‖h‖ through {data.attrs['model']}, and with fresh weights (the null). Bands: 95 % intervals."
        )
        return [Figure("norms", "Norms through depth", caption, draw)]


analysis = Norms()  # what the entry point names
