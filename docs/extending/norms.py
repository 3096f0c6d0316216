from dataclasses import replace

import probe  # what is named after it loads when it is used: --help needs no torch
from probe.analysis.contract import Analysis, Stage
from probe.claims import Criterion, Evidence, Sentence, decide, line


class Config(
    probe.analysis.config.TextConfig
):  # for options of its own: @dataclass(frozen=True, kw_only=True), and fields
    """Do the norms of residual-stream states grow from block to block, and more than with fresh weights?"""


def fingerprint(c):  # what results depend on besides the options: a directory of other weights or text is refused
    return probe.analysis.subject.fingerprint(
        probe.analysis.subject.model_of(c), probe.analysis.subject.windows_of(c, c.windows)
    )


def stages(config):  # the work; a finished unit is saved under its name, and not done again by a resumed run
    return [Stage("norms", log_norms, [probe.runs.engine.Unit("norms", name) for name in ("model", "fresh")], "norms")]


def log_norms(config, unit, run):  # one unit -> tensors by name: ln |h| before each of --layers and after the last
    config = replace(config, random_init=(config.random_init or 0) + 1) if unit.key == "fresh" else config
    model, windows = probe.analysis.subject.model_of(config), probe.analysis.subject.windows_of(config, config.windows)
    stream = probe.capture(model, windows, layers=config.layer_indices(model.n_layers))
    counted = windows.counted(config.skip_first)
    return {site: (stream[site].norm(dim=-1).log() * counted).sum(1) / counted.sum(1) for site in stream.sites}


def assemble(config, run):  # all units -> the Dataset
    import xarray as xr

    layers, windows = (
        probe.analysis.subject.layers_of(config),
        probe.analysis.subject.windows_of(config, config.windows),
    )
    sites = [*(f"blocks.{layer}.hook_resid_pre" for layer in layers), f"blocks.{layers[-1]}.hook_resid_post"]
    values = [[run.load("norms", name)[site].numpy() for site in sites] for name in ("model", "fresh")]
    coordinates = {"depth": [*layers, layers[-1] + 1], "document": ("window", windows.document)}
    return xr.Dataset({"log_norm": (("weights", "depth", "window"), values)}, coordinates, {"model": config.model})


def claims(data, config):  # the Dataset -> sentences with their verdicts, by intervals over documents
    own, fresh = data["log_norm"].isel(depth=[0, -1]).differentiate("depth")[:, 0].values  # nats a block, by window
    nats = probe.inference.bootstrap(lambda w: [x[w].mean() for x in (own, fresh, own - fresh)], data.document.values)
    evidence = Evidence([Criterion("growth", nats[0], 0.0)], [Criterion("beyond fresh weights", nats[2], 0.0)])
    sentence = Sentence("norms.growth", "States grow from block to block, more than with fresh weights.", "ours")
    return [decide(sentence, evidence, statistic="nats a block", unit="documents", null=line("fresh", nats[1]))]


def figures(data, config):  # the Dataset -> pictures of the report, and their captions
    def draw():
        ax = probe.plots.new_figure()[1][0, 0]
        for values, name in zip(data["log_norm"].values, (data.model, "fresh weights (null)"), strict=True):
            mean = probe.inference.bootstrap(lambda rows, v=values: v[:, rows].mean(1), data["document"].values)
            ax.plot(data["depth"], mean.estimate, label=name)
            ax.fill_between(data["depth"], mean.low, mean.high, alpha=0.25)
        ax.set(xlabel="blocks behind the state", ylabel="mean ln ‖h‖, nats")
        return ax.legend().figure

    return [probe.report.result.Figure("norms", "Norms through depth", "Bands: 95 % intervals over documents", draw)]


analysis = Analysis("norms", Config, __name__)  # what the entry point names
