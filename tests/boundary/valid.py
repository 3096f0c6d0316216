"""A valid call of each public function, put together from arguments by name.

A new function whose arguments have the usual names and meanings needs no entry here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import torch
import xarray as xr
from safetensors.torch import save_file

import probe
from probe import claims, directions, graphs, inference, maps, plots, replay, report, training, weights
from tests.plant.graphs import planted_graph, planted_states
from tests.plant.runs import finished
from tests.plant.tiny import tiny_model, tiny_tokenizer, tiny_tokens

SITE = "blocks.0.hook_resid_pre"


@functools.cache
def model() -> Any:
    return tiny_model("llama", with_tokenizer=True, num_hidden_layers=2)


@functools.cache
def context() -> Any:
    return replay.record(model(), tiny_tokens(2, 6), [2, 3])


@functools.cache
def stream() -> Any:
    return probe.capture(model(), tiny_tokens(2, 6))


@functools.cache
def graph() -> Any:
    return planted_graph(_labels(), 0.9, 0.2)


@functools.cache
def found() -> Any:
    return graphs.communities(graph(), seeds=3)


@functools.cache
def profile() -> Any:
    return graphs.resolution_profile(graph(), resolutions=(0.5, 1.0), seeds=3, draws=2)


def axes() -> Any:
    ax = matplotlib.figure.Figure().subplots()
    ax.plot([0, 1], [0, 1], label="a line")
    return ax


def local_map() -> Any:
    x, y = floats(20, 3), floats(20, 2)
    return maps.LocalMap(neighbours=6, rank=2).fit(x, y)


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def doubles(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _labels() -> np.ndarray:
    return np.repeat(np.arange(3), 4)


def _stack() -> Any:
    return training.Stack([_toy(), _toy()], torch.nn.functional.mse_loss)


def _toy() -> Any:
    return training.ToyMLP(form="stream", residual=True, activation="tanh", scale=1.0, seed=0, shape=_shape())


def _shape() -> Any:
    return training.Shape(width=8, blocks=2, inputs=4, outputs=2)


def _small() -> Any:
    return training.SmallTransformer(training.Arm("plain"), seed=0, size=training.Size(width=8, blocks=2, heads=2))


def _regression() -> Any:
    return training.Regression([0, 1], "linear", inputs=4, outputs=2, batch=5)


def _next_byte() -> Any:
    return training.NextByte([0, 1], tiny_tokens(4, 6), tiny_tokens(3, 6, seed=1), batch=2)


def _optimiser() -> Any:
    return training.Optimiser("adamw", 0.01, ["reader"], ["reader"])


def _parameters() -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in _stack().start.items()}


def _moments() -> dict[str, torch.Tensor]:
    return _optimiser().begin(_parameters())


def _watch() -> Any:
    return training.Watch(_stack(), training.ToyMLP.acting, ("reader",), _regression(), held_out=6, probes=2)


def _claim() -> Any:
    return claims.decide(_sentence(), _evidence(), statistic="a mean", unit="document", null={})


def _sentence() -> Any:
    return claims.Sentence("a", "It holds.", "here")


def _interval() -> Any:
    return inference.Interval(np.array([0.5, 0.6]), np.array([0.4, 0.5]), np.array([0.6, 0.7]), 20, "bootstrap")


def _evidence() -> Any:
    return claims.Evidence([claims.Criterion("a", inference.Interval(0.5, 0.4, 0.6, 20, "bootstrap"), 0.1)])


def _result() -> Any:
    return report.Result(
        xr.Dataset({"a": ("x", [1.0])}, attrs={"analysis": "tokenwise", "model": "tiny"}),
        [_claim()],
        Path("run"),
        "A title",
        figures=[_figure()],
    )


def _figure() -> Any:
    return report.Figure("one", "One", "A caption.", matplotlib.figure.Figure)


def _mean(rows: np.ndarray) -> float:
    return float(np.mean(rows))


def _data() -> Any:
    return xr.Dataset({"a": ("query", [1.0, 2.0, 3.0])}, {"document": ("query", [0, 1, 2])})


def _x() -> Any:
    return xr.DataArray([0.0, 1.0], dims="layer", name="layer")


@functools.cache
def _continuity() -> Any:
    return weights.continuity(model())


ARGUMENTS: dict[str, Callable[[], Any]] = {
    # models, texts, states
    "model": model,
    "name_or_object": model,
    "tokens": lambda: tiny_tokens(2, 6),
    "given": lambda: tiny_tokens(2, 6),
    "windows": lambda: tiny_tokens(2, 6),
    "prompts": lambda: "some text",
    "text": lambda: "some text",
    "tokenizer": tiny_tokenizer,
    "layer": lambda: 0,
    "layers": lambda: [0],
    "from_layer": lambda: 0,
    "to_layer": lambda: 1,
    "first": lambda: 0,
    "last": lambda: 1,
    "positions": lambda: [2, 3],
    "which": lambda: [2, 3],
    "position": lambda: 2,
    "out_position": lambda: 4,
    "in_position": lambda: 2,
    "length": lambda: 5,
    "row": lambda: 0,
    "lengths": lambda: torch.tensor([6, 6]),
    "site": lambda: SITE,
    "sites": lambda: [SITE],
    "source": lambda: SITE,
    "target": lambda: "blocks.1.hook_resid_post",
    "short": lambda: "hook_resid_pre",
    "known": lambda: ["hook_resid_pre"],
    "token": lambda: 65,
    "part": lambda: probe.Substring("ome"),
    "spans": lambda: [(0, 1), (1, 2), (2, 3), (3, 4)],
    "prompt": lambda: 0,
    "recorded": context,
    "context": context,
    "block": lambda: model().blocks[0],
    "module": lambda: model().module,
    "changes": lambda: {SITE: torch.clone},
    "change": lambda: torch.clone,
    "output": lambda: floats(2, 3),
    "state": lambda: floats(2, 3),
    "what": lambda: "ran twice",
    "dtype": lambda: torch.float64,
    "directory": lambda: Path("run"),
    "path": lambda: Path("file"),
    "argv": list,
    "edits": lambda: {SITE: 0.0},
    "read": lambda: [3],
    "measure": lambda: "kl",
    "clean": lambda: tiny_tokens(2, 6),
    "corrupted": lambda: tiny_tokens(2, 6, seed=1),
    "directions": lambda: floats(2, model().d_model),
    "latents": lambda: [0, 2],
    "lenses": lambda: {"one": _lens()},
    # matrices and vectors
    "A": lambda: floats(2, 4, 4),
    "J": lambda: floats(3, 4, 4),
    "K": lambda: floats(3, 4, 4),
    "matrix": lambda: floats(6, 5),
    "matrices": lambda: floats(2, 4, 4),
    "points": lambda: torch.tensor([0.5 + 0.5j, 1.0 + 0.0j], dtype=torch.complex128),
    "generator": lambda: torch.Generator().manual_seed(0),
    "a": lambda: floats(5, 4),
    "b": lambda: floats(5, 4, seed=1),
    "x": lambda: floats(20, 3),
    "y": lambda: floats(20, 2),
    "y_hat": lambda: floats(20, 2, seed=1),
    "basis": lambda: torch.linalg.qr(floats(3, 2)).Q,
    "norms": lambda: floats(4).abs(),
    "relative_error": lambda: floats(4).abs(),
    "residual_covariance": lambda: torch.eye(3, dtype=torch.float64),
    "rank": lambda: 2,
    "d": lambda: 4,
    "e": lambda: 2,
    "k": lambda: 2,
    "n": lambda: 6,
    "count": lambda: 2,
    "others": lambda: 3,
    "draws": lambda: 3,
    "level": lambda: 0.9,
    "log_p": lambda: floats(4, 5).log_softmax(-1),
    "log_q": lambda: floats(4, 5, seed=1).log_softmax(-1),
    "statistics": lambda: maps.SufficientStatistics(3, 2).update(floats(20, 3), floats(20, 2)),
    "other": lambda: maps.SufficientStatistics(3, 2).update(floats(20, 3), floats(20, 2)),
    # weights
    "weights": lambda: weights.weights_of(model()),
    "vectors": lambda: floats(4, 6),
    "bases": lambda: torch.linalg.qr(floats(3, 6, 2)).Q,
    "cosines": lambda: floats(4, 4).abs().clamp(max=1),
    "share": lambda: 0.5,
    "pairs": lambda: {8: 3},
    "levels": lambda: np.array([0.5, 0.9]),
    # graphs
    "graph": graph,
    "labels": _labels,
    "partitions": lambda: np.stack([_labels()] * 3),
    "found": found,
    "profile": profile,
    "states": lambda: planted_states(_labels(), 40),
    "resolution": lambda: 1.0,
    "seed": lambda: 0,
    "seeds": lambda: [0, 1],
    "groups": lambda: None,
    # inference
    "statistic": lambda: _mean,
    "documents": lambda: np.repeat(np.arange(6), 2),
    "resamples": lambda: 5,
    "estimate": lambda: 0.5,
    "n_documents": lambda: 6,
    "observed": lambda: 0.5,
    "values": lambda: doubles(6),
    "p_values": lambda: np.array([0.01, 0.2, 0.5]),
    "rho": lambda: np.array([0.1, 0.5]),
    "covariates": lambda: [doubles(9, seed=2)],
    # claims and reports
    "sentence": _sentence,
    "evidence": _evidence,
    "unit": lambda: "document",
    "null": dict,
    "n_units": lambda: 20,
    "needed": lambda: 12,
    "name": lambda: "one",
    "interval": _interval,
    "results": lambda: [_result(), _result()],
    # training
    "parameters": _parameters,
    "gradients": _parameters,
    "moments": _moments,
    "before": _parameters,
    "batch": lambda: _regression().batch,
    "step": lambda: 1,
    "steps": lambda: 6,
    "stack": _stack,
    "optimiser": _optimiser,
    "schedule": lambda: training.Schedule(2, (0, 2)),
    "observe": lambda: lambda now, before: {},
    "acting": lambda: training.ToyMLP.acting,
    "loss": lambda: torch.nn.functional.mse_loss,
    "modules": lambda: [_toy(), _toy()],
    "shape": _shape,
    "size": lambda: training.Size(width=8, blocks=2, heads=2),
    "arm": lambda: training.Arm("plain"),
    "form": lambda: "stream",
    "residual": lambda: True,
    "activation": lambda: "tanh",
    "scale": lambda: 1.0,
    "teacher": lambda: "linear",
    "train": lambda: tiny_tokens(4, 6),
    "held_out": lambda: tiny_tokens(3, 6, seed=1),
    "projection": lambda: "q",
    "kind": lambda: "adamw",
    "weight_decay": lambda: 0.01,
    "hidden": lambda: ["reader"],
    "decayed": lambda: ["reader"],
    "logits": lambda: floats(2, 3, 256).float(),
    "targets": lambda: tiny_tokens(2, 3),
    "snapshots": lambda: (0, 6),
    "names": lambda: ("reader",),
    # plots
    "ax": axes,
    "figure": lambda: axes().figure,
    "style": lambda: plots.Style("a", "black"),
    "color": lambda: "black",
    "low": lambda: np.array([0.0, 0.1]),
    "high": lambda: np.array([1.0, 1.1]),
    "label": lambda: "a label",
    "title": lambda: "A title",
    "panel": lambda: lambda ax: ax,
    "panels": lambda: [lambda ax: ax],
    "data": _data,
    "shown": lambda: axes().scatter([0, 1], [0, 1], c=[0, 1]),
    "value": lambda: 0.5,
}
"""By name of the argument."""

_TWENTY = {"x": lambda: floats(20, 3), "y": lambda: floats(20, 3, seed=1), "y_hat": lambda: floats(20, 3, seed=2)}
_RANKED = {"a": lambda: doubles(9), "b": lambda: doubles(9, seed=1), "weights": lambda: np.ones(9)}
SPECIAL: dict[str, dict[str, Callable[[], Any]]] = {
    "Directions": {"vectors": lambda: floats(2, 4), "names": lambda: ("a", "b")},
    "activation_patching": {
        "clean": lambda: tiny_tokens(1, 4),
        "corrupted": lambda: tiny_tokens(1, 4, seed=1),
        "tokens": lambda: [65, 66],
        "positions": lambda: [2],
        "layers": lambda: [0],
    },
    "bound_text": {"direction": lambda: ">", "bound": lambda: 0.5},
    "difference_of_means": {"one": lambda: floats(6, 4), "other": lambda: floats(5, 4, seed=1)},
    "intervene": {},
    "open_decoder": {"path": lambda: _saved_decoder()},
    "open_run": {"path": lambda: _run()},
    "open_runs": {"paths": lambda: _run()},
    "overlap": {"directions": lambda: floats(2, 4), "ranks": lambda: [1, 2]},
    "path": {"tokens": lambda: tiny_tokens(1, 4), "from_layer": lambda: 0, "draws": lambda: 3},
    "plots.continuity": {"data": _continuity},
    "plots.cosine_maps": {"data": _continuity},
    "plots.eigenvalues": {"of": lambda: floats(3)},
    "plots.singular_values": {"of": lambda: floats(3).abs()},
    "plots.graph": {"of": graph},
    "plots.heat_map": {"matrix": lambda: floats(4, 4)},
    "plots.jacobian": {"matrix": lambda: floats(4, 4)},
    "plots.null_comparison": {"found": lambda: compared()},
    "plots.pseudospectrum": {"found": lambda: _resolvent()},
    "plots.token_layer_map": {"values": lambda: floats(2, 5)},
    "by_depth": {"values": lambda: [0.5, 0.6]},
    "push_forward": {"vectors": lambda: floats(3, 2, 2, model().d_model).float()},
    "ActivationPatching.plot": {},
    "Result.figure": {"name": lambda: "one"},
    "Result.paired": {"other": lambda: _opened(), "name": lambda: "entropy"},
    "Result.table": {},
    "unembedding_rows": {"tokens": lambda: [65, 66]},
    "Patched.interval": {"resamples": lambda: 5},
    "Picture.save": {"path": lambda: Path("picture.png"), "dpi": lambda: 20},
    "Claim": {
        "direction": lambda: ">",
        "statement": lambda: "It holds.",
        "id": lambda: "a",
        "source": lambda: "here",
        "statistic": lambda: "a mean",
        "ci_low": lambda: 0.4,
        "ci_high": lambda: 0.6,
        "threshold": lambda: 0.1,
        "controls": list,
        "verdict": lambda: "supported",
        "reason": lambda: "so it is",
    },
    "Claim.from_dict": {"values": lambda: _claim().to_dict()},
    "Condition": {"holds": lambda: True, "otherwise": lambda: "it does not"},
    "Criterion": {"interval": lambda: inference.Interval(0.5, 0.4, 0.6, 20, "bootstrap"), "bound": lambda: 0.1},
    "Evidence": {"parts": lambda: _evidence().parts},
    "report.Figure": {"caption": lambda: "A caption.", "draw": lambda: matplotlib.figure.Figure},
    "from_matrix": {"A": lambda: doubles(6, 6)},
    "Graph": {"n_nodes": lambda: 4, "edges": lambda: np.array([[0, 1], [1, 2]]), "weights": lambda: np.ones(2)},
    "Graph.to_networkx": {"labels": _labels},
    "Graph.with_weights": {"weights": lambda: graph().weights},
    "Interval.__getitem__": {"index": lambda: 0},
    "HuggingFaceModel.laid_out": {"layout": lambda: model().layout},
    "HuggingFaceModel.unembed": {"states": lambda: floats(2, model().d_model).float()},
    "HuggingFaceModel.site": {"name": lambda: SITE},
    "NextByte.batch": {"step": lambda: 1},
    "NextByte.held_out": {"n": lambda: 2},
    "Optimiser.step": {"gradients": _parameters},
    "Optimiser": {"kind": lambda: "adamw"},
    "Ranking": {"values": lambda: doubles(9)},
    "Ranking.median": {"weights": lambda: np.ones(9)},
    "Ranking.midranks": {"weights": lambda: np.ones(9)},
    "Regression.batch": {"step": lambda: 1},
    "ResidualStream.open": {"directory": lambda: _saved_stream()},
    "Result": {"data": lambda: xr.Dataset(), "claims": lambda: [_claim()]},
    "Map.load": {"path": lambda: _saved_map()},
    "Sentence": {"id": lambda: "a", "statement": lambda: "It holds.", "source": lambda: "here"},
    "SmallTransformer.acting": {"parameters": lambda: dict(_small().named_parameters())},
    "SmallTransformer.forward": {"tokens": lambda: tiny_tokens(2, 5)},
    "Stack.losses": {"batch": lambda: _regression().batch(1)},
    "Stack.gradients": {"batch": lambda: _regression().batch(1)},
    "Substring": {"text": lambda: "ome"},
    "ToyMLP.acting": {"name": lambda: "reader"},
    "ToyMLP.forward": {"x": lambda: floats(3, 4).float()},
    "Watch": {"data": _regression, "held_out": lambda: 6, "probes": lambda: 2},
    "adjacent_overlaps": {"k": lambda: 1},
    "alone": {"states": lambda: floats(3, model().d_model).float(), "tokens": lambda: torch.tensor([1, 2, 3])},
    "all_positions": {
        "states": lambda: floats(2, 1, 6, model().d_model).float(),
        "counted": lambda: torch.ones(2, 6, dtype=torch.bool),
    },
    "ami": {"a": _labels, "b": _labels},
    "band": {"x": _x},
    "bootstrap_interval": {"draws": lambda: doubles(7)},
    "compare_outputs": {
        "original": lambda: floats(3, model().d_model).float(),
        "replaced": lambda: floats(2, 3, model().d_model).float(),
        "next_tokens": lambda: torch.tensor([1, 2, 3]),
    },
    "curve": {"x": _x},
    "decide": {"statistic": lambda: "a mean"},
    "device_named": {"name": lambda: "cpu"},
    "docs_similarity": {"x": lambda: floats(6, 3), "y": lambda: floats(6, 2)},
    "explained_variance": {"x": lambda: floats(20, 3), "y": lambda: floats(20, 2)},
    "head_views": {"name": lambda: "q"},
    "hooked": {"sites": lambda: [model().site(SITE)], "receive": lambda: lambda site, tensor: None},
    "instability": {"first": local_map, "second": local_map, "neighbours": lambda: [6]},
    "load_model": {"name_or_object": model},
    "load_windows": {
        "text": lambda: None,
        "dataset": lambda: "sample",
        "windows": lambda: 3,
        "window_length": lambda: 8,
    },
    "matrix_of": {"name": lambda: "q"},
    "one_position": {"states": lambda: floats(2, 1, 2, model().d_model).float()},
    "one_position_later": {"states": lambda: floats(2, 1, 2, model().d_model).float()},
    "open_weights": {"name": lambda: "bundled/transformer"},
    "partial_spearman": _RANKED,
    "procrustes_linearity": _TWENTY,
    "permuted_order": {"cosines": lambda: doubles(2, 4, 4), "statistic": lambda: _mean},
    "ResidualStream.site": {"short": lambda: "hook_resid_pre"},
    "relative_error": _TWENTY,
    "site_name": {"name": lambda: SITE},
    "not_run": {"name": lambda: SITE},
    "spearman": _RANKED,
    "tiny_tokens": {"windows": lambda: 2},
    "write_comparison": {"path": lambda: Path("compared.html")},
    "working_copy": {"dtype": lambda: torch.float64},
    "routing_margin": {"model": lambda: _mixture(), "tokens": lambda: tiny_tokens(2, 6) % 96},
    "expert_continuity": {"model": lambda: _mixture()},
    "leading_triplets": {"k": lambda: 2},
    "LocalMap.sweep": {"neighbours": lambda: [6], "ranks": lambda: [2]},
    "LocalMap.sweep_errors": {"neighbours": lambda: [6], "ranks": lambda: [2]},
    "median_over_documents": {"values": lambda: _data()["a"]},
    "require_chain": {"last": lambda: 1},
    "LocalMap": {"neighbours": lambda: 6, "rank": lambda: 2},
    "block_coupling": {"k": lambda: 2},
    "later_jacobians": {
        "recorded": lambda: replay.record(model(), tiny_tokens(1, 6), [2, 3, 4, 5]),
        "start": lambda: 2,
        "depths": lambda: [1],
    },
    "AffineLens": {
        "layers": lambda: (0,),
        "matrices": lambda: _affine().matrices,
        "biases": lambda: _affine().biases,
    },
    "AffineLens.transport": {"states": lambda: floats(2, 32)},
    "AffineLens.save": {"path": lambda: Path("written.safetensors")},
    "AffineLens.load": {"path": lambda: _saved_lens(_affine())},
    "Estimator": {"targets": lambda: "later", "layers": lambda: (0,)},
    "Estimator.of": {"to_layer": lambda: None},
    "JacobianLens": {
        "layers": lambda: (0,),
        "jacobians": lambda: _lens().jacobians,
        "n_documents": lambda: 2,
    },
    "JacobianLens.__getitem__": {"layer": lambda: 0},
    "JacobianLens.transport": {"states": lambda: floats(2, 32)},
    "JacobianLens.vectors": {"tokens": lambda: [65, 66]},
    "JacobianLens.save": {"path": lambda: Path("written.safetensors")},
    "JacobianLens.load": {"path": lambda: _saved_lens(_lens())},
    "Readout.save_page": {"path": lambda: Path("page.html")},
    "ablate": {"lens": lambda: _lens(), "tokens": lambda: [65, 66]},
    "steer": {"lens": lambda: _lens(), "tokens": lambda: [65, 66]},
    "swap": {"lens": lambda: _lens(), "tokens": lambda: [65, 66]},
    "document_jacobian": {
        "tokens": lambda: tiny_tokens(1, 6)[0],
        "estimator": lambda: probe.lens.Estimator.of(model(), skip_first=2),
    },
    "lens.fit": {"prompts": lambda: tiny_tokens(1, 6), "skip_first": lambda: 2, "quiet": lambda: True},
    "fit_affine": {"prompts": lambda: tiny_tokens(6, 8), "skip_first": lambda: 2, "quiet": lambda: True},
    "fit_tuned": {
        "prompts": lambda: tiny_tokens(6, 8),
        "skip_first": lambda: 2,
        "steps": lambda: 1,
        "quiet": lambda: True,
    },
    "lens.load": {"name": lambda: _saved_lens(_lens())},
    "merge": {"lenses": lambda: [_lens()]},
    "lens.readout": {"lenses": lambda: {"logit": "logit"}},
}
"""By function and argument, where the usual meaning does not do."""


@functools.cache
def _mixture() -> Any:
    from tests.architectures import zoo

    return probe.load_model(zoo.tiny("mixtral"))


def _saved_map() -> Path:
    path = Path("saved.safetensors")
    if not path.exists():
        maps.MeanMap().fit(floats(20, 3), floats(20, 2)).save(path)
    return path


def _saved_stream() -> Path:
    path = Path("stream")
    if not path.exists():
        probe.capture(model(), tiny_tokens(2, 6), out=path)
    return path


@functools.cache
def _saved_decoder() -> Path:
    path = Path("decoder.safetensors").absolute()
    save_file({"W_dec": floats(5, 6), "W_enc": floats(6, 5)}, path)
    return path


@functools.cache
def _run() -> Path:
    return finished(Path("planted").absolute())


@functools.cache
def _opened() -> Any:
    return probe.open_run(_run())


@functools.cache
def compared() -> Any:
    return graphs.compare_with_null(graph(), found(), draws=3)


def _resolvent() -> Any:
    from probe import spectra

    A = floats(4, 4)
    return spectra.pseudospectrum(A, spectra.spectral_grid(A, resolution=6))


@functools.cache
def _crossed() -> Any:
    return probe.patching.activation_patching(model(), tiny_tokens(2, 6), tiny_tokens(2, 6, seed=1), tokens=[65, 66])


@functools.cache
def _patched() -> Any:
    return probe.patch(model(), tiny_tokens(2, 6), {SITE: 0.0}, read=[3])


@functools.cache
def _lens() -> Any:
    return probe.lens.fit(model(), tiny_tokens(2, 6), skip_first=2, quiet=True)


@functools.cache
def _affine() -> Any:
    return probe.lens.AffineLens((0,), floats(1, 32, 32).float(), floats(1, 32).float(), 1)


def _saved_lens(lens: Any) -> Path:
    path = Path(f"{type(lens).__name__}.safetensors")
    return path if path.exists() else lens.save(path)


@functools.cache
def _readout() -> Any:
    return probe.lens.readout(model(), tiny_tokens(1, 6), {"logit": "logit"}, k=2)


@functools.cache
def _effect() -> Any:
    return probe.lens.steer(model(), tiny_tokens(2, 6), _lens(), [65, 66])


@functools.cache
def _followed() -> Any:
    return directions.path(
        model(), tiny_tokens(2, 6), floats(2, model().d_model), from_layer=0, positions=[2, 3], draws=3
    )


INSTANCES: dict[str, Callable[[], Any]] = {
    "ActivationPatching": _crossed,
    "Decoder": lambda: directions.open_decoder(_saved_decoder()),
    "DirectionPath": _followed,
    "Intervention": lambda: probe.patching.Intervention(model(), (SITE,)),
    "MeanJacobian": lambda: probe.mean_jacobian(model(), tiny_tokens(2, 6), [0], [2, 3]),
    "Patched": _patched,
    "Picture": lambda: plots.heat_map(floats(3, 3)),
    "Algorithm": graphs.Algorithm,
    "Bytes": training.Bytes,
    "Claim": _claim,
    "Communities": found,
    "DiagonalMap": lambda: maps.DiagonalMap().fit(floats(20, 3), floats(20, 2)),
    "Graph": graph,
    "HuggingFaceModel": model,
    "Interval": _interval,
    "AffineLens": _affine,
    "JacobianLens": _lens,
    "LensEffect": _effect,
    "Readout": _readout,
    "LinearMap": lambda: maps.LinearMap().fit(floats(20, 3), floats(20, 2)),
    "LocalMap": local_map,
    "Map": lambda: maps.LinearMap().fit(floats(20, 3), floats(20, 2)),
    "NextByte": _next_byte,
    "Optimiser": _optimiser,
    "Prompts": lambda: probe.load_prompts(model(), "some text"),
    "Ranking": lambda: inference.Ranking(doubles(9)),
    "Regression": _regression,
    "ResidualStream": stream,
    "Result": _opened,
    "Result.figure": _result,
    "Schedule": lambda: training.Schedule(6, (0, 6)),
    "SmallTransformer": _small,
    "Stack": _stack,
    "Substring": lambda: probe.Substring("ome"),
    "SufficientStatistics": lambda: maps.SufficientStatistics(3, 2).update(floats(20, 3), floats(20, 2)),
    "TokenRows": lambda: probe.load_prompts(model(), "some text"),
    "ToyMLP": _toy,
    "Watch": _watch,
    "Windows": lambda: probe.load_windows(model(), dataset="sample", windows=2, window_length=8),
}
"""Objects whose methods are called, by class or by method."""


def argument(module: str, label: str, parameter: inspect.Parameter) -> Any:
    """A valid value for an argument, or `inspect.Parameter.empty` where the default does."""
    room = module.removeprefix("probe.")
    make = SPECIAL.get(f"{room}.{label}", SPECIAL.get(label, {})).get(parameter.name)
    if make is not None:
        return make()
    if parameter.default is not inspect.Parameter.empty:
        return inspect.Parameter.empty
    if parameter.name not in ARGUMENTS:
        raise AssertionError(
            f"add a valid call of {label}: tests/boundary/valid.py has no argument {parameter.name!r} to give it"
        )
    return ARGUMENTS[parameter.name]()
