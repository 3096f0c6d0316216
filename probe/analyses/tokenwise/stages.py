"""The stages of the layer-update analysis in their order, and what they would take beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from probe.analyses.tokenwise import fits, work
from probe.analyses.tokenwise.claims import claims, universal
from probe.analyses.tokenwise.config import FITS, Config
from probe.analyses.tokenwise.figures import figures
from probe.analyses.tokenwise.schema import assemble
from probe.analysis import subject as subjects
from probe.analysis.contract import Stage, require_at_least, staged
from probe.analysis.subject import notes
from probe.claims import Claim
from probe.errors import InputError
from probe.maps import MLPMap
from probe.report import Result
from probe.runs import engine
from probe.runs.engine import Plan

__all__ = ["across", "assemble", "claims", "figures", "fingerprint", "notes", "plan", "stages", "title"]

STAGES = {
    "states": (work.states_unit, "states of fitting text"),
    "queries": (work.queries_unit, "states of scored text"),
    "fit": (fits.fit_unit, "fits by layer"),
    "replace": (work.replace_unit, "replacements"),
}
"""Function and description of each stage, in their order."""


def stages(config: Config) -> list[Stage]:
    """What is to be done, in order."""
    _check(config)
    return staged(STAGES, work.units(config))


def fingerprint(config: Config) -> dict[str, str]:
    """The hashes of the weights and of the scored text."""
    return subjects.fingerprint(subjects.model_of(config), work.windows_of(config, "scored"))


def title(config: Config) -> str:
    """The report's heading."""
    return f"Layer updates of {config.model}"


def across(results: Sequence[Result]) -> list[Claim]:
    """Whether Transformers and state-space models are alike, of one result a model."""
    names = [f"{result.data.attrs['model']} ({result.directory.name})" for result in results]
    judged = {name: result.claims for name, result in zip(names, results, strict=True)}
    kinds = {name: result.data.attrs["kind"] for name, result in zip(names, results, strict=True)}
    return [universal(judged, kinds)]


def plan(config: Config) -> Plan:
    """What the stages would take on this machine: the timings and counts that stand below."""
    _check(config)
    model, units = subjects.model_of(config), work.units(config)
    rate = engine.flops_per_second()
    parameters = sum(p.numel() for block in model.blocks for p in block.parameters())
    head = model.n_vocab * model.d_model
    layers, length, width = len(subjects.layers_of(config)), config.window_length, model.d_model
    fitting = sum(work.windows_of(config, part).n_windows for part in ("fit", "validation")) * length
    scored = work.windows_of(config, "scored").n_windows
    queries = work.query_positions(config).numel()
    forward = 2 * (parameters + head)
    bank = min(config.bank_tokens, fitting // 2)
    local = 2 * bank * width + 40 * config.neighbours**3 + 8 * config.rank * config.neighbours * width
    local_fits = sum(fit.startswith("local") for fit in config.classes) * (2 + config.floor) + 3 * config.sweep
    mlps = sum(fit in ("mlp", "mlp_random") for fit in config.classes)
    mlp = 6 * MLPMap.batch_size * config.mlp_steps * width * (2 * config.mlp_width + width)
    variants = len(config.replaced) + len(fits.CONTROLS) * config.draws
    seconds = {
        "states": fitting * forward / rate,
        "queries": 2 * scored * length * forward / rate,
        "fit": layers * (local_fits * queries * local + mlps * mlp + 10 * fitting * width**2) / rate,
        "replace": layers * queries * variants * (parameters + 3 * head) / rate,
    }
    tokens = work.BATCH * length
    memory = {
        "states": 4 * tokens * (width * (layers + 1) + 2 * model.n_vocab),
        "queries": 4 * tokens * (3 * width * (model.n_layers + 1) + 2 * model.n_vocab),
        "fit": 4 * width * (4 * fitting + 6 * queries * (len(config.classes) + variants)),
        "replace": 4 * tokens * 3 * width * (model.n_layers + 1) + 16 * 256 * model.n_vocab,
    }
    return subjects.planned(config, units, seconds, memory)


def _check(config: Config) -> None:
    """Refuses options that contradict each other, before any work is done."""
    unknown = [fit for fit in (*config.classes, *config.replaced) if fit not in FITS]
    if unknown:
        raise InputError(f"classes must be among {', '.join(FITS)}: got {unknown[0]!r}; mend --classes or --replaced")
    empty = [name for name in ("classes", "replaced") if not getattr(config, name)]
    if empty:
        raise InputError(f"--{empty[0]} must name at least one class: got none; choose among {', '.join(FITS)}")
    missing = [fit for fit in config.replaced if fit not in config.classes]
    if missing and config.replacement != "none":
        raise InputError(
            f"only fitted classes can replace a block's output: {missing[0]!r} is in --replaced but not in --classes; "
            "add it there, or leave it out here"
        )
    ones = ("windows", "fit_windows", "draws", "positions_per_window", "mlp_width", "neighbours", "rank", "mlp_steps")
    require_at_least(config, dict.fromkeys(ones, 1))
