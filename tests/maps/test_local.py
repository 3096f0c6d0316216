"""Local maps against their definitions, planted structure and explicit refits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from probe import maps
from probe.errors import InputError
from probe.geometry import relative_error
from probe.maps import local as local_module
from probe.maps.local import STRENGTHS, Neighbourhood, leave_one_out_errors
from tests.plant.pairs import F64, centred, draw, quick


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
    chosen = []
    for seed in range(0, 60, 10):
        x, y, query = draw(15, 3, seed=seed).pow(3), draw(15, 3, seed=seed + 1), draw(1, 3, seed=seed + 2)
        y[:, 0] += x[:, 0]  # some rows weigh far more than others: the ridge depends on their leverage
        strength = best_strength_of_lines(x, y)
        found = maps.LocalMap(neighbours=15, kind="diagonal").fit(x, y).predict(query)
        torch.testing.assert_close(found[0], line(strength, centred(x).square().sum(0), x, y, query[0]))
        chosen.append(strength)
    assert len(set(chosen)) > 2


def line(strength: float, scatter: Tensor, x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """A ridge line for each coordinate."""
    slope = (centred(x) * centred(y)).sum(0) / (centred(x).square().sum(0) + strength * scatter)
    return y.mean(0) + (at - x.mean(0)) * slope


def best_strength_of_lines(x: Tensor, y: Tensor) -> float:
    """By explicit refits without each row."""
    scatter, rows = centred(x).square().sum(0), torch.arange(len(x))
    errors = [
        sum((y[i] - line(c, scatter, x[rows != i], y[rows != i], x[i])).square().sum().item() for i in range(len(x)))
        for c in STRENGTHS
    ]
    return STRENGTHS[int(np.argmin(errors))]


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
    with pytest.raises(InputError, match=r"targets of the queries, \(5, 4\), got \(5, 1\)"):
        maps.instability(first, second, queries, targets[:, :1], neighbours=(8,))
    with pytest.raises(InputError, match=r"\(6, 4\) wide as the fitted ones, got 6 and 1"):
        first.sweep_errors(queries, targets[:, :1], neighbours=(8,), ranks=(2,))


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
