"""Maps against planted answers, closed forms, brute force and scikit-learn; files, checks and blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch import Tensor

from probe import maps
from probe.errors import InputError
from probe.geometry import relative_error
from probe.maps import local as local_module
from probe.maps import mlp as mlp_module
from probe.maps.base import check_pair
from probe.maps.linear import RIDGES
from probe.maps.local import STRENGTHS, Neighbourhood, leave_one_out_errors

F64 = torch.float64
quick = settings(deadline=None, max_examples=25)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def planted(n: int = 80, d: int = 6, e: int = 4, noise: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs from a known affine map, and its matrix."""
    matrix = draw(d, e, seed=1)
    x = draw(n, d) * torch.linspace(1, 3, d, dtype=F64) + 5
    return x, x @ matrix + draw(e, seed=2) + noise * draw(n, e, seed=3), matrix


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


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


# --- local ------------------------------------------------------------------------------------------------------------


def brute_force_ridge(x: Tensor, y: Tensor, query: Tensor, rank: int, penalty: Tensor) -> Tensor:
    """The definition: ridge in the coordinates of the neighbours' top right singular vectors."""
    basis = torch.linalg.svd(centred(x), full_matrices=False).Vh[:rank].T
    inputs = centred(x) @ basis
    coefficients = torch.linalg.solve(inputs.T @ inputs + penalty * torch.eye(rank, dtype=F64), inputs.T @ centred(y))
    return y.mean(0) + (query - x.mean(0)) @ basis @ coefficients


def brute_force_left_out(x: Tensor, y: Tensor, rank: int, penalty: Tensor) -> Tensor:
    """Squared errors of explicit refits without each row, the basis of all rows kept."""
    inputs = centred(x) @ torch.linalg.svd(centred(x), full_matrices=False).Vh[:rank].T
    errors = []
    for row in range(len(x)):
        rest = torch.arange(len(x)) != row
        a, b = inputs[rest], y[rest]
        normal = centred(a).T @ centred(a) + penalty * torch.eye(rank, dtype=F64)
        coefficients = torch.linalg.solve(normal, centred(a).T @ centred(b))
        errors.append((y[row] - b.mean(0) - (inputs[row] - a.mean(0)) @ coefficients).square().sum())
    return torch.stack(errors)


def test_leave_one_out_is_explicit_refits() -> None:
    x, y = draw(9, 7) * torch.linspace(3, 0.2, 7, dtype=F64), draw(9, 4, seed=1)
    hood = Neighbourhood(x[None], y[None], draw(1, 7, seed=2))
    hood.factorise(3)
    penalties = torch.tensor([[0.01], [1.0], [300.0]], dtype=F64)
    found = leave_one_out_errors(hood.left, hood.squares, hood.along, hood.y, penalties)
    expected = torch.stack([brute_force_left_out(x, y, 3, penalty) for penalty in penalties[:, 0]])
    torch.testing.assert_close(found[:, 0], expected)


@pytest.mark.parametrize("rank", [2, 5])
def test_low_rank_is_its_definition(rank: int) -> None:
    bank_x = draw(60, 8) * torch.linspace(3, 0.2, 8, dtype=F64) + 4
    bank_y = torch.tanh(bank_x @ draw(8, 5, seed=1)) + 0.1 * draw(60, 5, seed=2)
    queries = draw(6, 8, seed=3) * torch.linspace(3, 0.2, 8, dtype=F64) + 4
    found = maps.LocalMap(neighbours=20, rank=rank).fit(bank_x, bank_y).predict(queries)
    scaled_bank, scaled = (v / bank_x.std(0) for v in (bank_x, queries))
    for query, standard, prediction in zip(queries, scaled, found, strict=True):
        near = (scaled_bank - standard).norm(dim=1).argsort()[:20]
        x, y = bank_x[near], bank_y[near]
        mean_square = torch.linalg.svdvals(centred(x))[:rank].square().mean()
        errors = torch.stack([brute_force_left_out(x, y, rank, c * mean_square).sum() for c in STRENGTHS])
        penalty = STRENGTHS[int(errors.argmin())] * mean_square
        torch.testing.assert_close(prediction, brute_force_ridge(x, y, query, rank, penalty))


def test_local_beats_global_on_a_piecewise_linear_map() -> None:
    x = draw(900, 3)
    side = (x[:, :1] > 0).to(F64)
    y = side * (x @ draw(3, 5, seed=1)) + (1 - side) * (x @ draw(3, 5, seed=2))
    fit, held = slice(0, 800), slice(800, None)
    local = maps.LocalMap(neighbours=16, rank=3).fit(x[fit], y[fit])
    linear = maps.LinearMap().fit(x[fit], y[fit])
    medians = [relative_error(y[held], fitted.predict(x[held])).median().item() for fitted in (local, linear)]
    assert medians[0] < 0.25 * medians[1]
    assert local.score(x[held], y[held]) > linear.score(x[held], y[held]) + 0.1


def test_neighbours_are_standardised_or_raw_and_nearest_first() -> None:
    bank = torch.tensor([[0.0, 0.0], [0.0, 1.0], [50.0, 0.1], [90.0, 0.2]], dtype=F64)
    query = torch.tensor([[40.0, 1.0]], dtype=F64)
    y = torch.eye(4, dtype=F64)
    standardised = maps.LocalMap(neighbours=2).fit(bank, y)._search(query, None, 4)
    raw = maps.LocalMap(neighbours=2, metric="euclidean").fit(bank, y)._search(query, None, 4)
    distances = ((bank - query) / bank.std(0)).norm(dim=1)
    assert standardised[0].tolist() == distances.argsort().tolist()
    assert raw[0].tolist() == [2, 1, 0, 3]
    assert standardised[0, 0] == 1


@quick
@given(st.integers(0, 10_000))
def test_the_querys_own_group_is_never_used(seed: int) -> None:
    x, groups = draw(40, 3, seed=seed), torch.arange(40) % 5
    fit = maps.LocalMap(neighbours=8, rank=2).fit(x, draw(40, 2, seed=1), groups=groups)
    own = fit._search(x, groups, 8)
    assert not (groups[own] == groups[:, None]).any()
    everyone = fit._search(x, None, 8)
    assert torch.equal(everyone[:, 0], torch.arange(40))  # without groups, the query itself would be nearest


def test_targets_of_the_own_group_change_nothing() -> None:
    x, y, groups = draw(40, 3), draw(40, 3, seed=1), torch.arange(40) // 8
    spoiled = torch.where((groups == 2)[:, None], 1e6, y)
    for kind in ("low_rank", "diagonal", "orthogonal"):
        clean, other = (maps.LocalMap(neighbours=10, rank=2, kind=kind).fit(x, t, groups=groups) for t in (y, spoiled))
        own = groups == 2
        torch.testing.assert_close(
            clean.predict(x[own], groups=groups[own]), other.predict(x[own], groups=groups[own]), rtol=0, atol=0
        )


def test_a_group_that_leaves_too_few_neighbours_is_refused() -> None:
    x, groups = draw(30, 3), (torch.arange(30) >= 25).long()
    fit = maps.LocalMap(neighbours=8, rank=2).fit(x, x, groups=groups)
    with pytest.raises(InputError, match="8 neighbours must exist outside a query's own group, got 5"):
        fit.predict(x[:1], groups=groups[:1])
    assert fit.predict(x[:1], groups=torch.tensor([7])).shape == (1, 3)  # a document that the bank does not hold
    with pytest.raises(InputError, match="fitted without"):
        maps.LocalMap(neighbours=8).fit(x, x).predict(x[:1], groups=groups[:1])
    with pytest.raises(InputError, match="got 30"):
        maps.LocalMap(neighbours=31).fit(x, x).predict(x[:1])


@pytest.mark.parametrize("kind", ["low_rank", "diagonal", "orthogonal"])
def test_blocks_under_a_small_budget_give_the_same_answer(kind: str) -> None:
    x, y, groups = draw(90, 6), draw(90, 6, seed=1), torch.arange(90) // 9
    queries = draw(23, 6, seed=2)
    kwargs = {"neighbours": 12, "rank": 3, "kind": kind}
    large, small = (
        maps.LocalMap(**kwargs, memory_budget=budget).fit(x, y, groups=groups)  # type: ignore[arg-type]
        for budget in (2**30, 1)
    )
    assert len(list(small._query_blocks(23, 12, 1))) == 23
    own = torch.arange(23) % 10
    torch.testing.assert_close(small.predict(queries, groups=own), large.predict(queries, groups=own))


@pytest.mark.parametrize("metric", ["standardised", "euclidean"])
def test_a_sweep_is_separate_fits(metric: str) -> None:
    x, y, groups = draw(90, 6), draw(90, 4, seed=1), torch.arange(90) // 9
    queries, targets, own = draw(7, 6, seed=2), draw(7, 4, seed=3), torch.arange(7)
    fit = maps.LocalMap(metric=metric).fit(x, y, groups=groups)  # type: ignore[arg-type]
    swept = fit.sweep(queries, groups=own, neighbours=(8, 30), ranks=(1, 3, 12))
    errors = fit.sweep_errors(queries, targets, groups=own, neighbours=(8, 30), ranks=(1, 3, 12))
    for i, neighbours in enumerate((8, 30)):
        for j, rank in enumerate((1, 3, 12)):
            separate = maps.LocalMap(neighbours=neighbours, rank=rank, metric=metric)  # type: ignore[arg-type]
            predictions = separate.fit(x, y, groups=groups).predict(queries, groups=own)
            torch.testing.assert_close(swept[i, j], predictions)
            torch.testing.assert_close(errors[i, j], relative_error(targets, predictions))


def test_the_in_sample_curve_flatters() -> None:
    x, y, groups = draw(120, 10), draw(120, 10, seed=1), torch.arange(120) // 12
    fit = maps.LocalMap().fit(x, y, groups=groups)
    inside = fit.sweep_errors(x, y, neighbours=(40,), ranks=(2, 10)).mean(2)
    outside = fit.sweep_errors(x, y, groups=groups, neighbours=(40,), ranks=(2, 10)).mean(2)
    assert (inside < outside).all()  # y is noise: only a leak can lower its error


def test_coinciding_neighbours_give_their_mean() -> None:
    x = torch.full((20, 4), 1 / 3, dtype=torch.float32)
    y = draw(20, 4, dtype=torch.float32)
    for kind in ("low_rank", "diagonal"):
        fit = maps.LocalMap(neighbours=20, rank=3, kind=kind).fit(x, y)
        torch.testing.assert_close(fit.predict(x[:2] + 1), y.mean(0).expand(2, 4))
    turn = maps.LocalMap(neighbours=20, rank=3, kind="orthogonal").fit(x, y)
    torch.testing.assert_close(turn.predict(x[:2]), y.mean(0).expand(2, 4))


def test_float32_agrees_with_float64_where_directions_are_tiny() -> None:
    scales = torch.logspace(3, -2, 12, dtype=F64)
    x = (draw(200, 12) * scales).float()
    y = (x.double() / scales @ draw(12, 5, seed=1)).float()  # the small directions matter as much as the large
    queries = (draw(30, 12, seed=2) * scales).float()
    single = maps.LocalMap(neighbours=60, rank=12).fit(x, y).predict(queries)
    double = maps.LocalMap(neighbours=60, rank=12).fit(x.double(), y.double()).predict(queries.double())
    assert single.dtype == torch.float32
    assert relative_error(double, single.double()).max() < 1e-3
    hood = Neighbourhood(x[None, :60], y[None, :60], queries[:1])
    hood.factorise(12)
    assert hood.ill_conditioned().all()


def test_local_diagonal_finds_scales_that_change_from_place_to_place() -> None:
    x = torch.cat([draw(60, 3) + 30, draw(60, 3, seed=1) - 30])
    scales = torch.tensor([[2.0, -1.0, 0.5], [0.1, 3.0, 1.0]], dtype=F64)
    y = torch.cat([x[:60] * scales[0] + 1, x[60:] * scales[1] - 2])
    fit = maps.LocalMap(neighbours=40, kind="diagonal").fit(x, y)
    queries = torch.stack([x[0] + 0.3, x[60] + 0.3])
    expected = torch.stack([queries[0] * scales[0] + 1, queries[1] * scales[1] - 2])
    torch.testing.assert_close(fit.predict(queries), expected, rtol=1e-3, atol=1e-3)  # the least ridge is 1e-4


def test_local_diagonal_is_its_definition() -> None:
    x, y, query = draw(15, 3), draw(15, 3, seed=1), draw(1, 3, seed=2)
    y[:, 0] += 2 * x[:, 0]
    scatter = centred(x).square().sum(0)

    def line(strength: float, a: Tensor, b: Tensor, at: Tensor) -> Tensor:
        slope = (centred(a) * centred(b)).sum(0) / (centred(a).square().sum(0) + strength * scatter)
        return b.mean(0) + (at - a.mean(0)) * slope

    rows = torch.arange(15)
    errors = [
        sum((y[i] - line(strength, x[rows != i], y[rows != i], x[i])).square().sum().item() for i in range(15))
        for strength in STRENGTHS
    ]
    best = STRENGTHS[int(np.argmin(errors))]
    found = maps.LocalMap(neighbours=15, kind="diagonal").fit(x, y).predict(query)
    torch.testing.assert_close(found[0], line(best, x, y, query[0]))
    assert STRENGTHS[0] < best < STRENGTHS[-1]


def test_local_orthogonal_recovers_a_planted_rotation() -> None:
    plane = torch.linalg.qr(draw(5, 2, seed=4)).Q
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=F64)
    x = draw(40, 2) @ torch.diag(torch.tensor([3.0, 1.0], dtype=F64)) @ plane.T + 7
    inside = centred(x) @ plane
    next_state = x.mean(0) + draw(5, seed=5) + 1.5 * inside @ turn @ plane.T
    fit = maps.LocalMap(neighbours=40, rank=2, kind="orthogonal").fit(x, next_state - x)
    torch.testing.assert_close(fit.predict(x), next_state - x)
    across = draw(1, 5, seed=6)
    across -= across @ plane @ plane.T  # off the neighbours' plane the state is carried over as it is
    torch.testing.assert_close(fit.predict(x[:1] + across), (next_state - x)[:1])


def test_local_orthogonal_is_procrustes_in_the_subspace() -> None:
    x, y, query = draw(12, 5) * torch.linspace(2, 0.5, 5, dtype=F64), draw(12, 5, seed=1), draw(1, 5, seed=2)
    basis = torch.linalg.svd(centred(x), full_matrices=False).Vh[:3].T
    a, b = centred(x) @ basis, centred(x + y) @ basis
    u, s, vh = torch.linalg.svd(a.T @ b)
    offset = query - x.mean(0)
    expected = (
        (x + y).mean(0)
        + offset
        - offset @ basis @ basis.T
        + s.sum() / a.square().sum() * (offset @ basis @ u @ vh @ basis.T)
    )
    found = maps.LocalMap(neighbours=12, rank=3, kind="orthogonal").fit(x, y).predict(query)
    torch.testing.assert_close(found, expected - query)


def test_instability_of_two_banks() -> None:
    x, y, queries, targets = draw(120, 6), draw(120, 4, seed=1), draw(5, 6, seed=2), draw(5, 4, seed=3)
    first = maps.LocalMap(rank=3).fit(x[:60], y[:60])
    second = maps.LocalMap(rank=2).fit(x[60:], y[60:])
    found = maps.instability(first, second, queries, targets, neighbours=(8, 40))
    for row, k in zip(found, (8, 40), strict=True):
        one = maps.LocalMap(neighbours=k, rank=3).fit(x[:60], y[:60]).predict(queries)
        other = maps.LocalMap(neighbours=k, rank=2).fit(x[60:], y[60:]).predict(queries)
        torch.testing.assert_close(row, (one - other).norm(dim=1) / targets.norm(dim=1))
    assert found[1].mean() < found[0].mean()
    assert maps.instability(first, first, queries, targets, neighbours=(8,)).max() == 0


def test_options_of_local_maps_are_checked() -> None:
    for wrong in ({"neighbours": 1}, {"rank": 0}):
        with pytest.raises(InputError, match="neighbours ≥ 2 and rank ≥ 1"):
            maps.LocalMap(**wrong)
    for kind in ("diagonal", "orthogonal"):
        with pytest.raises(InputError, match="one width"):
            maps.LocalMap(kind=kind).fit(draw(9, 3), draw(9, 2))
    with pytest.raises(InputError, match="one width"):
        maps.DiagonalMap().fit(draw(9, 3), draw(9, 2))
    with pytest.raises(InputError, match="a sweep needs"):
        maps.LocalMap().fit(draw(9, 3), draw(9, 2)).sweep(draw(2, 3), neighbours=(1,), ranks=(2,))


def test_threads_compute_on_one_core_each_and_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        fit = maps.LocalMap(neighbours=8, rank=2, memory_budget=1).fit(draw(30, 3), draw(30, 3, seed=1))
        threaded = fit.predict(draw(9, 3, seed=2))
        assert torch.get_num_threads() == 3
        seen = local_module.in_threads(lambda rows: torch.tensor(torch.get_num_threads()), [slice(0)] * 6, 3)
        assert [int(one) for one in seen] == [1] * 6
        with pytest.raises(ZeroDivisionError):
            local_module.in_threads(lambda rows: torch.tensor(1 // rows.start), [slice(0, 1)] * 6, 3)
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        torch.testing.assert_close(fit.predict(draw(9, 3, seed=2)), threaded)
    finally:
        torch.set_num_threads(before)


# --- mlp --------------------------------------------------------------------------------------------------------------


def curved(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = draw(n, 4, seed=seed, dtype=torch.float32) * torch.tensor([1.0, 10.0, 0.1, 1.0]) + 3
    z = (x - 3) / torch.tensor([1.0, 10.0, 0.1, 1.0])
    return x, torch.stack([z[:, 0].abs(), z[:, 1] * z[:, 2], z[:, 3]], dim=1) * 20 - 7


def test_mlp_learns_what_no_line_can() -> None:
    x, y = curved(800, 0)
    validation, held = curved(200, 1), curved(200, 2)
    linear = maps.LinearMap().fit(x, y).score(*held)
    for init in ("ridge", "random"):
        fit = maps.MLPMap(64, 600, init=init, learning_rate=1e-2).fit(x, y, validation=validation)
        assert fit.score(*held) > linear + 0.4
        assert fit.curve_.min().item() == pytest.approx(1 - fit.score(*validation), abs=1e-6)  # the best is restored
        assert fit.curve_[-1] < 0.5 * fit.curve_[0]
        assert fit.predict(held[0]).dtype == torch.float32


def test_mlp_starts_at_the_ridge_optimum() -> None:
    x, y = curved(300, 0)
    validation = curved(100, 1)
    still = maps.MLPMap(8, 1, learning_rate=0.0).fit(x, y, validation=validation)
    linear = maps.LinearMap().fit(x, y, validation=validation)
    torch.testing.assert_close(still.predict(x), linear.predict(x), rtol=1e-4, atol=1e-4)
    random = maps.MLPMap(8, 1, init="random", learning_rate=0.0).fit(x, y, validation=validation)
    assert random.curve_[0] > 1.5 * still.curve_[0]


def test_a_random_start_knows_nothing_of_the_line() -> None:
    x, y = curved(300, 0)
    validation = curved(100, 1)
    random = maps.MLPMap(8, 1, init="random", learning_rate=0.0).fit(x, y, validation=validation)
    assert random.skip_.abs().max() == 0
    for weight, inputs in ((random.weight_in_, 4), (random.weight_out_, 8)):
        assert 0.5 < weight.abs().max() * inputs**0.5 <= 1


def test_mlp_is_its_formula() -> None:
    x, y = curved(100, 0)
    fit = maps.MLPMap(5, 20, init="random").fit(x, y, validation=curved(50, 1))
    z = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    hidden = torch.nn.functional.gelu(z @ fit.weight_in_.double() + fit.bias_in_.double())
    scale = (y.double() - y.double().mean(0)).square().mean().sqrt()
    inner = z @ fit.skip_.double() + hidden @ fit.weight_out_.double() + fit.bias_out_.double()
    expected = (y.double().mean(0) + scale * inner).float()
    torch.testing.assert_close(fit.predict(x), expected, rtol=1e-4, atol=1e-4)


def test_mlp_follows_its_seed_and_no_other() -> None:
    x, y = curved(200, 0)
    before = torch.get_rng_state()
    one, again, other = (
        maps.MLPMap(8, 30, init="random", seed=seed).fit(x, y, groups=torch.arange(200) // 10) for seed in (3, 3, 4)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.predict(x), again.predict(x))
    assert not torch.allclose(one.predict(x), other.predict(x))
    assert all(not getattr(one, name).requires_grad for name in mlp_module.PARAMETERS)


def test_mlp_trains_under_no_grad_and_on_inference_tensors() -> None:
    with torch.inference_mode():
        x, y = curved(100, 0)
    with torch.no_grad():
        fit = maps.MLPMap(8, 40, learning_rate=1e-2).fit(x, y, validation=curved(50, 1))
    assert fit.curve_.min() < fit.curve_[0]


def test_the_rate_rises_then_falls_as_the_square_of_a_cosine() -> None:
    rates = [mlp_module.rate_factor(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[10:] == pytest.approx([((1 + np.cos(np.pi * step / 90)) / 2) ** 2 for step in range(91)])
    assert mlp_module.rate_factor(0, 1) == 1  # one step is one step


@pytest.mark.parametrize(
    ("curve", "flat"),
    [
        ([1.0] + [0.5] * 9, True),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], False),
        ([1.0] * 7 + [0.5, 0.4975, 0.4955], True),  # 0.9 % of the best before the last fifth
        ([1.0] * 7 + [0.5, 0.496, 0.494], False),  # 1.2 %
        ([1.0, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1], True),  # overfitting: the best is long past
    ],
)
def test_flat_curves(curve: list[float], flat: bool) -> None:
    assert mlp_module.is_flat(torch.tensor(curve)) is flat


def test_whole_documents_are_held_out() -> None:
    groups = torch.tensor([4] * 10 + [9] * 10 + [2] * 10)
    held = mlp_module.held_out(30, groups, torch.Generator().manual_seed(0))
    assert held.sum() == 10
    assert len(groups[held].unique()) == 1
    assert mlp_module.held_out(40, None, torch.Generator().manual_seed(0)).sum() == 4
    with pytest.raises(InputError, match="second document"):
        mlp_module.held_out(30, torch.zeros(30, dtype=torch.long), torch.Generator())


def test_mlp_stops_early_when_validation_has_nothing_to_gain() -> None:
    x, y = draw(60, 5, dtype=torch.float32), draw(60, 5, seed=1, dtype=torch.float32)
    held = draw(60, 5, seed=2, dtype=torch.float32), draw(60, 5, seed=3, dtype=torch.float32)
    fit = maps.MLPMap(64, 500, learning_rate=1e-2).fit(x, y, validation=held)
    assert len(fit.curve_) < 1 + mlp_module.READINGS
    assert len(fit.curve_) == 1 + int(fit.curve_.argmin()) + mlp_module.PATIENCE
    assert fit.flat_


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
