"""Affine and tuned lenses: planted maps, closed forms, losses that fall, and files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from probe import capture, lens, load_model, load_windows
from probe.errors import InputError
from probe.lens import AffineLens, affine
from probe.maps import LinearMap
from probe.maps.linear import RIDGES, SufficientStatistics
from probe.model import LanguageModel
from tests.plant.tiny import tiny_model, tiny_tokens

FIRST = 3
TOKENS = tiny_tokens(6, 14)


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return load_model("bundled/transformer")


@pytest.fixture(scope="module")
def text(bundled: LanguageModel) -> Tensor:
    return load_windows(bundled, dataset="sample", windows=12, window_length=64).tokens


def counted(model: LanguageModel, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    stream = capture(model, tokens, sites=["resid_post"])
    names = [f"blocks.{at}.hook_resid_post" for at in (layer, model.n_layers - 1)]
    states, final = (stream[name][:, FIRST:-1].reshape(-1, model.d_model).double() for name in names)
    return states, final


def test_a_planted_affine_map_is_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """States of which the last stream is an affine map, at every layer another."""
    model, generator = tiny_model("llama"), torch.Generator().manual_seed(0)
    matrices, offsets = torch.randn(3, 32, 32, generator=generator), torch.randn(3, 32, generator=generator)

    def planted(
        _: Any, documents: Sequence[Tensor], estimator: Any, batch_size: int
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        inverse = torch.linalg.inv(matrices.double())
        for _document in documents:
            final = torch.randn(40, 32, generator=generator).double() + 5
            yield 1, torch.einsum("lij,lnj->lni", inverse, final - offsets.double()[:, None]), final

    monkeypatch.setattr(affine, "counted_states", planted)
    fitted = lens.fit_affine(model, TOKENS, skip_first=FIRST, ridge=0.0, quiet=True)
    torch.testing.assert_close(fitted.matrices, matrices, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fitted.biases, offsets, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_a_ridge_is_that_of_the_closed_form(ridge: float) -> None:
    model = tiny_model("gpt2")
    fitted = lens.fit_affine(model, TOKENS, skip_first=FIRST, layers=[0, 2], ridge=ridge, batch_size=4, quiet=True)
    for layer in (0, 2):
        states, final = counted(model, TOKENS, layer)
        x, y = states - states.mean(0), final - final.mean(0)
        penalty = ridge * float((x.T @ x).diagonal().mean())
        weight = torch.linalg.solve(x.T @ x + penalty * torch.eye(32).double(), x.T @ y)
        matrix, bias = fitted[layer]
        torch.testing.assert_close(matrix.double(), weight.T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bias.double(), final.mean(0) - weight.T @ states.mean(0), rtol=1e-4, atol=1e-4)
    assert fitted.provenance["ridges"] == [ridge, ridge]
    assert fitted.provenance["n_documents"] == 6


def test_the_ridge_is_chosen_on_the_documents_held_out() -> None:
    model = tiny_model("llama")
    fitted = lens.fit_affine(model, TOKENS, skip_first=FIRST, layers=1, quiet=True)
    (x, y), (u, v) = counted(model, TOKENS[:5], 1), counted(model, TOKENS[5:], 1)
    errors = [float((v - LinearMap(ridge=ridge).fit(x, y).predict(u)).square().sum()) for ridge in RIDGES]
    best = RIDGES[errors.index(min(errors))]
    assert fitted.provenance["ridges"] == [best]
    assert RIDGES[0] < best < RIDGES[-1]
    again = lens.fit_affine(model, TOKENS, skip_first=FIRST, layers=1, ridge=best, quiet=True)
    torch.testing.assert_close(fitted.matrices, again.matrices, rtol=1e-4, atol=1e-5)
    given = lens.fit_affine(model, TOKENS[:5], skip_first=FIRST, layers=1, validation=TOKENS[5:], quiet=True)
    torch.testing.assert_close(given.matrices, fitted.matrices, rtol=1e-4, atol=1e-5)


def test_sums_choose_the_ridge_that_pairs_choose() -> None:
    generator = torch.Generator().manual_seed(1)
    x, u = torch.randn(30, 12, generator=generator), 3 + torch.randn(20, 12, generator=generator)
    weight = torch.randn(12, 4, generator=generator)
    y, v = x @ weight + torch.randn(30, 4, generator=generator), u @ weight + torch.randn(20, 4, generator=generator)
    sums, held = SufficientStatistics(12, 4).update(x, y), SufficientStatistics(12, 4).update(u, v)
    by_sums = LinearMap().fit_statistics(sums, validation=held)
    by_pairs = LinearMap().fit_statistics(sums, validation=(u, v))
    assert by_sums.ridge_ == by_pairs.ridge_
    expected = float((v - by_pairs.predict(u)).double().square().sum())
    assert by_sums._squared_error(by_sums.weight_, held) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match=r"must hold tokens and be \(12, 4\) wide"):
        LinearMap().fit_statistics(sums, validation=SufficientStatistics(12, 4))


def test_a_lens_is_read_beside_others_and_the_last_layer_is_the_identity() -> None:
    model = tiny_model("llama")
    identity = AffineLens.identity(model, [0, 1, 2])
    states = torch.randn(2, 5, 32)
    assert torch.equal(identity.transport(states, 3), states)
    assert torch.equal(identity.transport(states.numpy(), 1), states)
    read = lens.readout(model, TOKENS[:2], {"affine": identity, "logit": "logit"}, k=2)
    torch.testing.assert_close(read.kl[0], read.kl[1])
    assert torch.equal(read.top[0], read.top[1])


def test_training_lowers_the_loss_on_documents_held_out(bundled: LanguageModel, text: Tensor) -> None:
    chosen: dict[str, Any] = {"layers": [0, 3], "steps": 20, "checks": 2, "tokens": 128, "quiet": True}
    tuned = lens.fit_tuned(bundled, text, **chosen)
    curve = tuned.to_dataset()["kl"]
    assert curve.coords["check"].values.tolist() == [0, 10, 20]
    assert bool((curve.min("check") < 0.95 * curve[0]).all())
    held = text[-2:]  # a fifth of twelve documents
    start = lens.fit_affine(bundled, text[:-2], layers=[0, 3], quiet=True)
    lenses = {"start": start, "tuned": tuned, "logit": "logit"}
    kl = lens.readout(bundled, held, lenses, layers=[0, 3], positions=range(16, 63)).kl.double().mean(-1)
    for row, expected in enumerate((curve[0], curve.min("check"))):
        torch.testing.assert_close(kl[row], torch.tensor(expected.values), rtol=1e-4, atol=0.0)
    assert bool((kl[1] < kl[2]).all())
    assert tuned.losses["training"].shape == (20, 2)
    again = lens.fit_tuned(bundled, text, **chosen)
    assert torch.equal(again.matrices, tuned.matrices)
    assert torch.equal(again.biases, tuned.biases)
    other = lens.fit_tuned(bundled, text, start=start, **{**chosen, "steps": 2}, seed=1)
    assert not torch.equal(other.matrices, tuned.matrices)


def test_training_that_does_harm_leaves_the_start() -> None:
    model = tiny_model("llama")
    start = AffineLens.identity(model, [1])
    chosen: dict[str, Any] = {"skip_first": FIRST, "steps": 3, "tokens": 16, "checks": 3, "quiet": True}
    tuned = lens.fit_tuned(model, TOKENS, start=start, rate=1e4, **chosen)
    losses = tuned.losses["validation"]
    assert bool((losses[1:] > losses[0]).all())
    assert torch.equal(tuned.matrices, start.matrices)
    assert torch.equal(tuned.biases, start.biases)


@torch.no_grad()
def test_the_loss_is_that_of_the_map_that_is_kept() -> None:
    model = tiny_model("gpt2")
    states, final = (side.float() for side in counted(model, TOKENS, 1))
    trained = lens.tuning._Trained(model, [torch.eye(32)], [torch.zeros(32)])
    trained.standardise(states[None], final)
    output = model.unembed(final).log_softmax(-1)
    trained.changes[0].data.normal_(generator=torch.Generator().manual_seed(0))
    trained.offsets[0].data.fill_(0.1)
    matrices, biases = trained.maps()
    read = model.unembed(states @ matrices[0].T + biases[0]).log_softmax(-1)
    expected = torch.nn.functional.kl_div(read, output, log_target=True, reduction="batchmean")
    assert float(expected) > 0.01
    torch.testing.assert_close(trained.loss(0, states, output).detach(), expected, rtol=1e-4, atol=1e-6)


def test_parameters_of_the_model_get_no_gradients(bundled: LanguageModel, text: Tensor) -> None:
    lens.fit_tuned(bundled, text, start="logit", layers=[2], steps=1, tokens=8, checks=1, quiet=True)
    assert all(parameter.grad is None for parameter in bundled.module.parameters())


def test_a_file_holds_all_of_a_lens(tmp_path: Path, bundled: LanguageModel, text: Tensor) -> None:
    tuned = lens.fit_tuned(bundled, text, layers=[4], steps=2, tokens=8, checks=1, quiet=True)
    file = tuned.save(tmp_path / "tuned.safetensors")
    read = AffineLens.load(file)
    read.require(bundled)
    assert read.layers == (4,)
    assert torch.equal(read.matrices, tuned.matrices)
    assert torch.equal(read.biases, tuned.biases)
    assert read.losses.keys() == tuned.losses.keys()
    assert all(torch.equal(read.losses[name], tuned.losses[name]) for name in read.losses)
    assert read.provenance == tuned.provenance
    assert set(read.table()) == {"layer", "norm", "alpha", "offset", "kl", "kl_start"}
    assert len(read.table()) == 1
    with pytest.raises(InputError, match=r"end in \.safetensors"):
        tuned.save(tmp_path / "tuned.pt")
    with pytest.raises(InputError, match="must be readable"):
        AffineLens.load(tmp_path / "absent.safetensors")
    lens.JacobianLens((0,), torch.eye(4)[None], 1, 1).save(tmp_path / "jacobian.safetensors")
    with pytest.raises(InputError, match="that its save has written"):
        AffineLens.load(tmp_path / "jacobian.safetensors")
    with pytest.raises(InputError, match="other weights"):
        dataclasses.replace(tuned, provenance={**tuned.provenance, "weights": "0"}).require(bundled)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no such check
    model = tiny_model("llama")
    with pytest.raises(InputError, match="none to hold out"):
        lens.fit_affine(model, TOKENS[:1], skip_first=FIRST, validation=TOKENS[:1, :4], quiet=True)
    with pytest.raises(InputError, match="none to fit"):
        lens.fit_affine(model, TOKENS, ridge=1.0, quiet=True)
    with pytest.raises(InputError, match="steps= must be positive"):
        lens.fit_tuned(model, TOKENS, skip_first=FIRST, steps=0, quiet=True)
    start = AffineLens.identity(model, [0])
    with pytest.raises(InputError, match="layer must be one of the lens"):
        lens.fit_tuned(model, TOKENS, skip_first=FIRST, start=start, layers=[1], quiet=True)
    with pytest.raises(InputError, match=r"biases= must have the shape \(layer, d\)"):
        AffineLens((0,), torch.eye(4)[None], torch.zeros(2, 4), 1)
    with pytest.raises(InputError, match="must ascend"):
        AffineLens((1,), torch.eye(4)[None], torch.zeros(1, 4), 1)
    with pytest.raises(InputError, match="must be finite"):
        AffineLens((0,), torch.full((1, 4, 4), torch.nan), torch.zeros(1, 4), 1)
    with pytest.raises(InputError, match="lens's width, 32"):
        AffineLens.identity(model, [0]).transport(torch.zeros(3), 0)
