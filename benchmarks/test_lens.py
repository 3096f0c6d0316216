"""Fitting a Jacobian lens, and the context's own lens, beside one-hot backward passes and TransformerLens' own fit.

The default model, T = 128, one document. The recipe of the reference is written anew: one pass of 8 copies of the
document, then a backward pass for 8 rows, of which a few are timed. Rounds of all go in turn, and the smallest counts.

With LENS_FROM=20 only the last blocks are gone through, from that source layer on, which takes a third of the time.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.peak import in_fresh_process, measured
from probe import load_model, load_windows
from probe.lens import Estimator, document_jacobian, own_lens
from probe.model import HuggingFaceModel, first_tensor

LENGTH, ROWS, FIRST = 128, 8, 16
FROM = int(os.environ.get("LENS_FROM", "0"))


def loaded() -> tuple[HuggingFaceModel, Tensor]:
    model = load_model("smollm2-135m-instruct-q4")
    assert isinstance(model, HuggingFaceModel)
    return model, load_windows(model, dataset="sample", windows=1, window_length=LENGTH).tokens[0]


def graph_of(model: HuggingFaceModel, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The final stream and the sources of a pass of 8 copies, with its graph."""
    module = copy.deepcopy(model.module).requires_grad_(False)
    twin = load_model(module)
    seen: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> Any:
        state = first_tensor(output)
        if not seen:
            state = state.detach().requires_grad_()
            seen.append(state)
            return state
        seen.append(state)
        return None

    for block in twin.blocks[FROM:]:
        block.register_forward_hook(keep)
    with torch.enable_grad():
        twin.final_states(tokens.expand(ROWS, -1))
    return seen[-1], seen[:-1]


def backward(final: Tensor, sources: list[Tensor], positions: slice) -> float:
    """The time of one backward pass for 8 rows."""
    cotangents = torch.zeros_like(final)
    for row in range(ROWS):
        cotangents[row, positions, row] = 1.0
    start = time.perf_counter()
    torch.autograd.grad(final, sources, cotangents, retain_graph=True)
    return time.perf_counter() - start


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_a_fit_beside_the_recipe_of_the_reference() -> None:
    model, tokens = loaded()
    estimator = Estimator.of(model, layers=list(range(FROM, model.n_layers - 1)))
    final, sources = graph_of(model, tokens)
    passes = model.d_model // ROWS
    recipe, ours = [], []
    for _ in range(2):
        recipe.append(min(backward(final, sources, slice(FIRST, LENGTH - 1)) for _ in range(4)) * passes)
        ours.append(seconds(lambda: document_jacobian(model, tokens, estimator)))
    print(f"\nd = {model.d_model}, T = {LENGTH}, source layers from {FROM}: {min(ours):.1f} s a document")
    print(f"    {min(recipe) / min(ours):.2f} times as fast as one-hot backward passes of 8 rows ({passes} of them)")


def test_a_fit_beside_transformer_lens() -> None:
    from transformer_lens.tools.analysis import jacobian_lens as peer

    from tests.stream.test_peers import bridge_of

    model, tokens = loaded()
    layers = list(range(FROM, model.n_layers - 1))
    bridge = bridge_of(model.module)
    bridge.to_tokens = lambda given, **_: given
    found: dict[int, Tensor] = {}

    def theirs() -> None:
        matrices, _ = peer._fit_transport_matrices(
            bridge,
            [tokens[None]],
            source_layers=layers,
            dim_batch=ROWS,
            max_seq_len=LENGTH,
            skip_first_positions=FIRST,
            show_progress=False,
            backward_provider=peer._ordinary_vjp,
        )
        found.update(matrices)

    estimator = Estimator.of(model, layers=layers)
    matrices: list[Tensor] = []
    ours = seconds(lambda: matrices.append(document_jacobian(model, tokens, estimator)))
    slow = seconds(theirs)
    error = max(float((matrices[0][at] - found[layer]).norm() / found[layer].norm()) for at, layer in enumerate(layers))
    print(f"\n{slow / ours:.2f} times as fast as TransformerLens' fit ({slow:.0f} s); largest difference {error:.1e}")
    assert error < 1e-5


@pytest.mark.parametrize("positions", [1, 8])
def test_the_contexts_own_lens(positions: int) -> None:
    model, tokens = loaded()
    chosen = torch.linspace(LENGTH // 2, LENGTH - 2, positions).long()
    final, sources = graph_of(model, tokens)
    layers = list(range(FROM, model.n_layers - 1))
    own_lens(model, tokens[None], chosen, layers=layers)
    ours, recipe = [], []
    for _ in range(3):
        ours.append(seconds(lambda: own_lens(model, tokens[None], chosen, layers=layers)))
        recipe.append(backward(final, sources, slice(int(chosen[0]), int(chosen[0]) + 1)) * model.d_model / ROWS)
    ratio = min(recipe) * positions / min(ours)
    print(
        f"\n{positions} positions: {min(ours):.2f} s; {ratio:.0f} times as fast a position as one-hot backward passes"
    )


def test_memory_of_a_fit() -> None:
    """Peak beyond the loaded model, in fresh processes."""
    ours, recipe = (in_fresh_process(__file__, what) for what in ("ours", "recipe"))
    print(f"\npeak beyond the model: {ours:.0f} MB, of the recipe {recipe:.0f} MB")


def main(what: str) -> None:
    model, tokens = loaded()

    def recipe() -> object:
        final, sources = graph_of(model, tokens)
        return backward(final, sources, slice(FIRST, LENGTH - 1))

    fit = partial(document_jacobian, model, tokens, Estimator.of(model, layers=[FROM]))
    print(json.dumps(measured(fit if what == "ours" else recipe)))


if __name__ == "__main__":
    main(sys.argv[1])
