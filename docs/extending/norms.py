"""Do states of the residual stream grow through depth? `probe norms --model bundled/transformer --dataset sample`."""

from dataclasses import dataclass, replace

import probe  # what is named after it loads when it is used: --help needs no torch
from probe.analysis import Analysis, Stage
from probe.command import TextConfig


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Do the norms of residual-stream states grow from block to block, and more than with fresh weights?"""

    margin: float = 0.0
    """By how many nats a block they must grow more than with fresh weights."""


def stages(config):  # the work; a finished unit is saved under its name, and not done again by a resumed run
    return [Stage("norms", log_norms, [probe.engine.Unit("norms", name) for name in ("model", "fresh")], "norms")]


def log_norms(config, unit, run):  # one unit -> tensors by name
    config = replace(config, random_init=(config.random_init or 0) + 1) if unit.key == "fresh" else config
    model, windows = probe.subjects.model_of(config), probe.subjects.windows_of(config, config.windows)
    stream, counted = probe.capture(model, windows), windows.counted(config.skip_first)
    means = {site: (stream[site].norm(dim=-1).log() * counted).sum(1) / counted.sum(1) for site in stream.sites}
    return means | {"document": windows.document}  # of ln |h| over the positions of each window, site by site


def assemble(config, run):  # all units -> the Dataset
    import xarray as xr

    model, fresh = (run.load("norms", name) for name in ("model", "fresh"))
    sites = sorted(set(model) - {"document"}, key=lambda site: (int(site.split(".")[1]), site.endswith("post")))
    values = [[weights[site].numpy() for site in sites] for weights in (model, fresh)]
    coordinates = {"weights": ["model", "fresh"], "depth": range(len(sites)), "document": ("window", model["document"])}
    return xr.Dataset({"log_norm": (("weights", "depth", "window"), values)}, coordinates, {"model": config.model})


def claims(data, config):  # the Dataset -> sentences with their verdicts
    from probe.claims import Criterion, Evidence, Sentence, decide, line

    growth = data["log_norm"].diff("depth").mean("depth").values.astype(float)  # nats a block: (weights, window)
    rows = [growth[0], growth[1], growth[0] - growth[1]]
    model, fresh, more = (probe.inference.bootstrap(lambda i, r=r: r[i].mean(), data["document"].values) for r in rows)
    evidence = Evidence([Criterion("growth", model, 0.0)], [Criterion("beyond fresh weights", more, config.margin)])
    sentence = Sentence("norms.growth", "States grow from block to block, more than with fresh weights.", "ours")
    return [decide(sentence, evidence, statistic="growth, nats a block", unit="documents", null=line("fresh", fresh))]


def figures(data, config):  # the Dataset -> pictures of the report
    def draw():
        lines = data["log_norm"].mean("window").plot.line(x="depth", ax=probe.plots.new_figure()[1][0, 0])
        return lines[0].figure

    return [probe.report.Figure("norms", "Norms through depth", f"Mean ln ‖h‖ of {config.model}, in nats", draw)]


analysis = Analysis("norms", Config, __name__)
