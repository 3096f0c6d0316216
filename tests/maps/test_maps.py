"""Maps against planted answers, closed forms, brute force and scikit-learn; files, checks and blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor

from probe import maps
from probe.errors import InputError
from probe.maps import local as local_module
from probe.maps.base import check_pair
from probe.maps.linear import RIDGES
from tests.plant.pairs import F64, centred, draw, planted, quick

# --- baselines --------------------------------------------------------------------------------------------------------


def test_zero_and_mean_maps() -> None:
    x, y, _ = planted()
    torch.testing.assert_close(maps.ZeroMap().fit(x, y).predict(x[:3]), torch.zeros(3, 4, dtype=F64))
    mean = maps.MeanMap().fit(x, y)
    torch.testing.assert_close(mean.predict(x[:3]), y.mean(0).expand(3, 4))
    assert mean.score(x, y) == pytest.approx(0, abs=1e-12)


def test_diagonal_map_finds_scales_and_offsets() -> None:
    x = draw(50, 3) + 2
    x[:, 1] = 7.0  # does not vary: nothing to learn but the mean
    y = x * torch.tensor([2.0, 9.0, -0.5], dtype=F64) + torch.tensor([1.0, 0.0, 4.0], dtype=F64)
    fit = maps.DiagonalMap().fit(x, y)
    torch.testing.assert_close(fit.weight_, torch.tensor([2.0, 0.0, -0.5], dtype=F64))
    torch.testing.assert_close(fit.predict(x + 1)[:, [0, 2]], (y + torch.tensor([2.0, 0, -0.5]))[:, [0, 2]])


def test_diagonal_map_is_least_squares() -> None:
    x, y = draw(40, 3), draw(40, 3, seed=1)
    expected = [np.polyfit(x[:, j].numpy(), y[:, j].numpy(), 1)[0] for j in range(3)]
    np.testing.assert_allclose(maps.DiagonalMap().fit(x, y).weight_.numpy(), expected)


# --- linear -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, None])
def test_a_planted_linear_block_is_recovered(ridge: float | None) -> None:
    x, y, matrix = planted()
    fit = maps.LinearMap(ridge=ridge).fit(x, y, validation=planted(n=30)[:2] if ridge is None else None)
    assert (fit.weight_ - matrix).abs().max() < 1e-10
    new = draw(20, 6, seed=9)
    truth = y[0] + (new - x[0]) @ matrix
    assert (fit.predict(new) - truth).abs().max() < 1e-10
    assert fit.score(new, truth) == pytest.approx(1, abs=1e-14)


def test_cross_validation_keeps_a_noiseless_block_exact() -> None:
    x, y, matrix = planted()
    assert (maps.LinearMap().fit(x, y).weight_ - matrix).abs().max() < 1e-10


@pytest.mark.parametrize("ridge", [1e-4, 0.3, 20.0])
def test_ridge_is_scikit_learns(ridge: float) -> None:
    x, y, _ = planted(noise=1.0)
    fit = maps.LinearMap(ridge=ridge).fit(x, y)
    assert fit.penalty_ == pytest.approx(ridge * np.linalg.eigvalsh(np.cov(x.numpy().T) * (len(x) - 1)).mean())
    oracle = Ridge(alpha=fit.penalty_).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(fit.weight_.numpy().T, oracle.coef_, atol=1e-10)
    np.testing.assert_allclose(fit.predict(x).numpy(), oracle.predict(x.numpy()), atol=1e-10)
    assert fit.score(x, y) == pytest.approx(
        1 - ((y - fit.predict(x)) ** 2).sum().item() / (centred(y) ** 2).sum().item()
    )


def test_least_squares_of_fewer_tokens_than_coordinates_has_least_norm() -> None:
    x, y = draw(5, 9), draw(5, 2, seed=1)
    expected = np.linalg.pinv(centred(x).numpy()) @ centred(y).numpy()
    np.testing.assert_allclose(maps.LinearMap(ridge=0.0).fit(x, y).weight_.numpy(), expected, atol=1e-12)


def test_ridge_is_chosen_by_validation_error() -> None:
    x, y, _ = planted(n=12, noise=4.0)
    validation = planted(n=200, noise=4.0)[:2]
    errors = [
        (validation[1] - maps.LinearMap(ridge=ridge).fit(x, y).predict(validation[0])).square().sum()
        for ridge in RIDGES
    ]
    best = RIDGES[int(torch.stack(errors).argmin())]
    assert maps.LinearMap().fit(x, y, validation=validation).ridge_ == best
    assert 0 < best < RIDGES[-1]


def test_ridge_is_chosen_by_generalised_cross_validation() -> None:
    x, y, _ = planted(n=12, noise=4.0)
    x64, y64 = centred(x), centred(y)
    scores = []
    for ridge in RIDGES:
        penalty = ridge * x64.square().sum() / 6
        hat = 1 / 12 + x64 @ torch.linalg.solve(x64.T @ x64 + penalty * torch.eye(6, dtype=F64), x64.T)
        scores.append(12 * (y64 - (hat - 1 / 12) @ y64).square().sum() / (12 - hat.trace()) ** 2)
    best = RIDGES[int(torch.stack(scores).argmin())]
    assert maps.LinearMap().fit(x, y).ridge_ == best
    assert 0 < best < RIDGES[-1]


def test_cross_validation_is_its_formula() -> None:
    x, y, _ = planted(n=12, noise=4.0)
    statistics = maps.SufficientStatistics(6, 4).update(x, y)
    normal = maps.linear._NormalEquations(statistics)
    x64, y64 = centred(x), centred(y)
    hat = 1 / 12 + x64 @ torch.linalg.solve(x64.T @ x64 + 2.5 * torch.eye(6, dtype=F64), x64.T)
    expected = 12 * (y64 - (hat - 1 / 12) @ y64).square().sum() / (12 - hat.trace()) ** 2
    assert normal.cross_validation(2.5) == pytest.approx(expected.item())
    assert maps.linear._NormalEquations(maps.SufficientStatistics(6, 4).update(x[:5], y[:5])).cross_validation(
        0.0
    ) == float("inf")  # no degree of freedom is left


# --- sufficient statistics --------------------------------------------------------------------------------------------


def test_statistics_are_centred_sums_in_float64() -> None:
    x, y, _ = planted()
    x, y = x.float() + 3000, y.float()  # a large offset costs no digits
    statistics = maps.SufficientStatistics(6, 4).update(x[:33], y[:33]).update(x[33:], y[33:])
    x64, y64 = centred(x.double()), centred(y.double())
    assert statistics.count == 80
    torch.testing.assert_close(statistics.mean_x, x.double().mean(0))
    torch.testing.assert_close(statistics.mean_y, y.double().mean(0))
    torch.testing.assert_close(statistics.xx, x64.T @ x64)
    torch.testing.assert_close(statistics.xy, x64.T @ y64)
    torch.testing.assert_close(statistics.yy, y64.square().sum(0))


@quick
@given(st.lists(st.integers(2, 20), min_size=1, max_size=4))
def test_statistics_merge_in_any_parts(sizes: list[int]) -> None:
    x, y, _ = planted(n=sum(sizes), noise=1.0)
    merged = maps.SufficientStatistics(6, 4)
    for xs, ys in zip(x.split(sizes), y.split(sizes), strict=True):
        merged.merge(maps.SufficientStatistics(6, 4).update(xs, ys))
    whole = maps.SufficientStatistics(6, 4).update(x, y)
    for name in ("mean_x", "mean_y", "xx", "xy", "yy"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), msg=name)


def test_a_fit_from_a_stream_is_the_fit() -> None:
    x, y, _ = planted(noise=1.0)
    statistics = maps.SufficientStatistics(6, 4)
    for xs, ys in zip(x.split(17), y.split(17), strict=True):
        statistics.update(xs, ys)
    for streamed, whole in (
        (maps.LinearMap(ridge=0.1).fit_statistics(statistics), maps.LinearMap(ridge=0.1).fit(x, y)),
        (maps.ReducedRankMap(2, ridge=0.1).fit_statistics(statistics), maps.ReducedRankMap(2, ridge=0.1).fit(x, y)),
        (maps.LinearMap().fit_statistics(statistics, validation=(x[:9], y[:9])),
         maps.LinearMap().fit(x, y, validation=(x[:9], y[:9]))),
    ):  # fmt: skip
        torch.testing.assert_close(streamed.predict(x), whole.predict(x))


def test_statistics_refuse_what_does_not_fit() -> None:
    statistics = maps.SufficientStatistics(6, 4)
    with pytest.raises(InputError, match="at least 2 tokens"):
        maps.LinearMap().fit_statistics(statistics)
    with pytest.raises(InputError, match="wide"):
        statistics.update(draw(5, 3), draw(5, 4))
    with pytest.raises(InputError, match="share their widths"):
        statistics.merge(maps.SufficientStatistics(6, 5))


# --- reduced rank -----------------------------------------------------------------------------------------------------


def objective(x: Tensor, y: Tensor, weight: Tensor, penalty: float) -> Tensor:
    return (centred(y) - centred(x) @ weight).square().sum() + penalty * weight.square().sum()


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("rank", [1, 2])
def test_reduced_rank_is_the_brute_force_optimum(rank: int, ridge: float) -> None:
    x, y = draw(15, 4) * torch.tensor([1.0, 2.0, 0.3, 1.0], dtype=F64), draw(15, 3, seed=1)
    fit = maps.ReducedRankMap(rank, ridge=ridge).fit(x, y)
    assert torch.linalg.matrix_rank(fit.weight_) == rank
    best = torch.tensor(float("inf"), dtype=F64)
    for seed in range(5):  # minimise over all products of two thin factors, from several starts
        left, right = draw(4, rank, seed=seed).requires_grad_(), draw(rank, 3, seed=seed + 50).requires_grad_()
        search = torch.optim.LBFGS([left, right], max_iter=400, line_search_fn="strong_wolfe", tolerance_change=1e-14)

        def loss(left: Tensor = left, right: Tensor = right, search: torch.optim.LBFGS = search) -> Tensor:
            search.zero_grad()
            value = objective(x, y, left @ right, fit.penalty_)
            value.backward()
            return value

        search.step(loss)  # type: ignore[arg-type]
        best = torch.minimum(best, objective(x, y, (left @ right).detach(), fit.penalty_))
    torch.testing.assert_close(objective(x, y, fit.weight_, fit.penalty_), best, rtol=1e-8, atol=0)


def test_full_rank_is_the_linear_map_and_rank_orders_the_fit() -> None:
    x, y, _ = planted(noise=1.0)
    fits = [maps.ReducedRankMap(rank, ridge=0.1).fit(x, y).score(x, y) for rank in (1, 2, 3, 4)]
    assert fits == sorted(fits)
    assert fits[0] < fits[1] - 0.01
    full = maps.LinearMap(ridge=0.1).fit(x, y)
    torch.testing.assert_close(maps.ReducedRankMap(9, ridge=0.1).fit(x, y).weight_, full.weight_)


def test_validation_judges_reduced_maps_of_this_rank() -> None:
    x, y, _ = planted(n=12, noise=4.0)
    validation = planted(n=60, noise=4.0)[:2]
    errors = [
        (validation[1] - maps.ReducedRankMap(1, ridge=ridge).fit(x, y).predict(validation[0])).square().sum()
        for ridge in RIDGES
    ]
    chosen = maps.ReducedRankMap(1).fit(x, y, validation=validation).ridge_
    assert chosen == RIDGES[int(torch.stack(errors).argmin())]


# --- every class ------------------------------------------------------------------------------------------------------

EVERY = [
    maps.ZeroMap(),
    maps.MeanMap(),
    maps.DiagonalMap(),
    maps.LinearMap(ridge=0.1),
    maps.LinearMap(),
    maps.ReducedRankMap(2),
    maps.MLPMap(4, 5),
    maps.LocalMap(neighbours=6, rank=2),
    maps.LocalMap(neighbours=6, kind="diagonal", metric="euclidean"),
    maps.LocalMap(neighbours=6, rank=2, kind="orthogonal"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_input_is_left_as_it_was(dtype: torch.dtype) -> None:
    for fit in EVERY:
        x, y = draw(40, 3, dtype=dtype), draw(40, 3, seed=1, dtype=dtype)
        fit.fit(x, y, validation=(x, y)).predict(x)
        assert torch.equal(x, draw(40, 3, dtype=dtype))
        assert torch.equal(y, draw(40, 3, seed=1, dtype=dtype))


def test_no_queries_give_no_predictions() -> None:
    for fit in EVERY:
        assert fit.fit(draw(40, 3), draw(40, 3, seed=1)).predict(draw(0, 3)).shape == (0, 3)


def label(fit: maps.Map) -> str:
    return f"{type(fit).__name__}-{getattr(fit, 'kind', getattr(fit, 'ridge', ''))}"


@pytest.mark.parametrize("fit", EVERY, ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_map_comes_back_whole(fit: maps.Map, dtype: torch.dtype, tmp_path: Path) -> None:
    x, y = draw(40, 3, dtype=dtype), draw(40, 3, seed=1, dtype=dtype)
    groups = torch.arange(40) // 4
    fit.fit(x, y, groups=groups)
    fit.save(tmp_path / "map.safetensors")
    for kind in (maps.Map, type(fit)):
        back = kind.load(tmp_path / "map.safetensors")
        assert type(back) is type(fit)
        assert repr(back) == repr(fit)
        assert torch.equal(back.predict(x), fit.predict(x))
        assert torch.equal(back.predict(x, groups=groups), fit.predict(x, groups=groups))
        assert vars(back).keys() == vars(fit).keys()
    assert [file.name for file in tmp_path.iterdir()] == ["map.safetensors"]


def test_files_that_hold_no_such_map_are_refused(tmp_path: Path) -> None:
    maps.MeanMap().fit(draw(4, 3), draw(4, 3)).save(tmp_path / "mean")
    with pytest.raises(InputError, match="must hold a LinearMap, got MeanMap"):
        maps.LinearMap.load(tmp_path / "mean")
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "text", tmp_path / "absent"):
        with pytest.raises(InputError, match="readable safetensors file"):
            maps.Map.load(path)


@pytest.mark.parametrize("fit", EVERY, ids=label)
def test_input_of_every_class_is_checked(fit: maps.Map) -> None:
    fresh = type(fit)(**{name: value for name, value in vars(fit).items() if not name.endswith("_")})
    with pytest.raises(InputError, match="call fit"):
        fresh.predict(draw(2, 3))
    with pytest.raises(InputError, match="call fit"):
        fresh.save("nowhere")
    x, y = draw(40, 3), draw(40, 3, seed=1)
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[7, 1] = bad
        with pytest.raises(InputError, match="x must be finite, got NaN or infinity in row 7"):
            fresh.fit(broken, y)
        with pytest.raises(InputError, match="y must be finite"):
            fresh.fit(x, broken)
    with pytest.raises(InputError, match="n ≥ 2"):
        fresh.fit(x[:1], y[:1])
    fresh.fit(x, y)
    with pytest.raises(InputError, match="width of the fitted"):
        fresh.predict(draw(2, 4))
    with pytest.raises(InputError, match="row 7"):
        fresh.predict(broken)
    with pytest.raises(InputError, match=r"\(3, 3\) wide as the fitted ones, got 3 and 1"):
        fresh.score(x, y[:, :1])


def test_shapes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(InputError, match=r"got \(5, 2\) and \(6, 2\)"):
        check_pair(draw(5, 2), draw(6, 2))
    with pytest.raises(InputError, match=r"\(3, 3\) wide as the fitted ones, got 2 and 3"):
        check_pair(draw(5, 2), draw(5, 3), widths=(3, 3))


def test_half_precision_is_computed_in_single() -> None:
    x, y = draw(40, 3).bfloat16(), draw(40, 3, seed=1).bfloat16()
    for fit in EVERY:
        predicted = fit.fit(x, y).predict(x)
        assert predicted.dtype == torch.float32
        torch.testing.assert_close(predicted, fit.fit(x.float(), y.float()).predict(x.float()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"ridge": -1.0}])
def test_options_of_global_maps_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="ridge"):
        maps.LinearMap(**options)
    with pytest.raises(InputError, match="rank"):
        maps.ReducedRankMap(0)
    with pytest.raises(InputError, match="width"):
        maps.MLPMap(0)


def test_local_module_and_public_names_are_one() -> None:
    assert maps.LocalMap is local_module.LocalMap
