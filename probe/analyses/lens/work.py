"""The tasks of the lens: the matrices of each document, what follows from them layer by layer, and what they read."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from probe import replay, spectra
from probe.analyses.lens.schema import DIRECTIONS, LENSES, PARTS
from probe.analyses.lens.subject import MEMORY, LensSubject, matrices
from probe.analysis import Piece, Run, Task
from probe.analysis.subject import OWN
from probe.directions import unembedding_rows
from probe.geometry import cosine
from probe.lens import AffineLens, JacobianLens, document_jacobian, fit_affine, fit_tuned, own_lens, readout
from probe.lens.jacobian_lens import without_identity
from probe.lens.reading import Lens
from probe.model import LanguageModel

STEP = 0.01
"""Length of the step along a token's own update, over ‖h‖, by which the context's own Jacobian is judged."""


def document(subject: LensSubject, task: Task, run: Run) -> Piece:
    """Compute the matrices of one fitted document, of the model or of a control.

    Args:
        subject: Models and text.
        task: Its variant and document.
        run: Not used.

    Returns:
        `jacobian`, `norm`, `alpha`.
    """
    model, tokens = subject.variant(task["variant"]), subject.tokens(task["fitted"])
    found = document_jacobian(model, tokens, subject.estimator, memory=MEMORY).cpu()
    arrays = {
        "jacobian": found,
        "norm": found.double().norm(dim=(-2, -1)),
        "alpha": found.double().diagonal(dim1=-2, dim2=-1).mean(-1),
    }
    return Piece(arrays, {"source": subject.sources})


def same_position(subject: LensSubject, task: Task, run: Run) -> Piece:
    """Compute the matrices of one document of the first fit without the sum over later positions.

    Args:
        subject: Models and text.
        task: Its document.
        run: Not used.

    Returns:
        `same_jacobian`, the mean over as many sources as positions are read of a held-out document.
    """
    here = replace(subject.estimator, targets="same", sources=subject.config.positions_per_window)
    found = document_jacobian(subject.model, subject.tokens(task["fitted"]), here, memory=MEMORY)
    return Piece({"same_jacobian": found.cpu()}, {"source": subject.sources})


def _stacked(subject: LensSubject, run: Run, variant: str, places: list[int], layer: int) -> Float[Tensor, "n d d"]:
    at = subject.sources.index(layer)
    return torch.stack([matrices(run, variant, place)[at] for place in places])


def grams(subject: LensSubject, task: Task, run: Run) -> Piece:
    """Compute all inner products of the documents' matrices at one layer, from which distances of any means follow.

    Args:
        subject: Models and text.
        task: Its layer.
        run: The run with the matrices.

    Returns:
        `gram`, of J and of M.
    """
    places = list(range(len(subject.fitted)))
    found = _stacked(subject, run, OWN, places, task["source"])
    products = []
    for part in PARTS:
        flat = (found if part == "J" else without_identity(found)).flatten(1).double()
        products.append(flat @ flat.T)
    return Piece({"gram": torch.stack(products)}, {"part": PARTS})


def pairs_of(count: int) -> list[tuple[int, int]]:
    """List the pairs of documents along `pair`, the first not behind the second."""
    return list(itertools.combinations_with_replacement(range(count), 2))


def quartics(subject: LensSubject, task: Task, run: Run) -> Piece:
    """Compute what the participation ratio of any mean of documents' M at one layer follows from.

    With weights w and S_ab = M_aᵀM_b + M_bᵀM_a (M_aᵀM_a for a = b), M̄ᵀM̄ = Σ_{a ≤ b} w_a w_b S_ab.

    Args:
        subject: Models and text.
        task: Its variant and layer.
        run: The run with the matrices.

    Returns:
        `quartic`, ⟨S_ab, S_cd⟩; `pair_trace`, tr S_ab; `singular_value`, `mean_alpha` and `identity_share` of the mean.
    """
    variant = task["variant"]
    found = _stacked(subject, run, variant, subject.controlled, task["source"])
    mean = found.double().mean(0)
    rest = without_identity(found)
    products = []
    for one, other in pairs_of(len(rest)):
        product = rest[one].T @ rest[other]
        products.append((product if one == other else product + product.T).flatten())
    flat = torch.stack(products).double()
    traces = flat[:, :: len(mean) + 1].sum(-1)
    return Piece(
        {
            "quartic": flat @ flat.T,
            "pair_trace": traces,
            "singular_value": torch.stack([torch.linalg.svdvals(mean), torch.linalg.svdvals(without_identity(mean))]),
            "mean_alpha": mean.diagonal().mean(),
            "identity_share": spectra.identity_share(mean),
        },
        {"part": PARTS},
    )


def edges(subject: LensSubject, task: Task, run: Run) -> dict[str, Tensor]:
    """Draw the null of rank of M at one layer: documents about their mean, with random signs.

    Σ_a ε_a (M_a − M̄) / n keeps the noise of the mean and takes away what documents share; its largest singular value is
    the edge beyond which one of M̄ is no noise. Nothing of the identity is in it.

    Args:
        subject: Models and text.
        task: Its layer.
        run: The run with the matrices.

    Returns:
        `noise_edge`, the mean over five draws.
    """
    rest = without_identity(_stacked(subject, run, OWN, subject.controlled, task["source"]))  # as singular_value
    rest = rest - rest.mean(0)
    generator = torch.Generator().manual_seed(subject.config.seed)
    tops = []
    for _ in range(5):
        signs = torch.randint(0, 2, (len(rest), 1, 1), generator=generator) * 2.0 - 1.0
        tops.append(torch.linalg.matrix_norm((signs * rest).mean(0), 2))
    return {"noise_edge": torch.stack(tops).mean().double() * (len(rest) / (len(rest) - 1)) ** 0.5}


def translators(subject: LensSubject, task: Task, run: Run) -> Piece:
    """Fit the affine lens, and train the tuned one from it, on the documents of the first fit.

    Args:
        subject: Models and text.
        task: Not used.
        run: Not used.

    Returns:
        `translator`, A, and `offset`, b, of each.
    """
    tokens = torch.stack([subject.tokens(place) for place in subject.places("first")])
    config = subject.config
    lenses = [fit_affine(subject.model, tokens, layers=subject.sources, skip_first=config.skip_first, quiet=True)]
    if config.tuned_steps:
        lenses.append(
            fit_tuned(
                subject.model,
                tokens,
                start=lenses[0],
                steps=config.tuned_steps,
                skip_first=config.skip_first,
                seed=config.seed,
                quiet=True,
            )
        )
    names = ["affine", "tuned"][: len(lenses)]
    return Piece(
        {
            "translator": torch.stack([lens.matrices for lens in lenses]),
            "offset": torch.stack([lens.biases for lens in lenses]),
        },
        {"lens": names, "source": subject.sources},
    )


def reads(subject: LensSubject, task: Task, run: Run) -> Piece:
    """Read the drawn positions of one held-out document by every lens.

    Args:
        subject: Models and text.
        task: Its window.
        run: The run with the matrices.

    Returns:
        `kl`, `agrees`, `output_rank`.
    """
    window, model = task["window"], subject.model
    first = subject.lens(run)
    lenses: dict[str, Lens] = {"jacobian": first, "second": subject.lens(run, "second"), "logit": "logit", "own": "own"}
    lenses["displaced"] = _displaced(subject, run)
    if blocks := next((name for name in subject.config.controls if name.startswith("blocks-")), None):
        lenses["blocks"] = subject.lens(run, variant=blocks)
    lenses |= _translated(subject, run)
    names = [name for name in LENSES if name in lenses]
    found = readout(
        model,
        subject.held.tokens[window],
        {name: lenses[name] for name in names},
        layers=subject.sources,
        positions=subject.positions[window],
        k=1,
        memory=MEMORY,
    )
    return Piece(
        {"kl": found.kl, "agrees": (found.rank == 0).float(), "output_rank": found.rank.float()},
        {"lens": names, "source": subject.sources, "query": subject.queries(window)},
    )


def _displaced(subject: LensSubject, run: Run) -> JacobianLens:
    """The first fit with the matrix of each layer at another, half the depth away."""
    lens = subject.lens(run)
    return replace(lens, jacobians=lens.jacobians.roll(max(1, len(lens.layers) // 2), 0))


def _translated(subject: LensSubject, run: Run) -> dict[str, AffineLens]:
    """The affine and the tuned lens, if the run has them."""
    if not subject.config.affine:
        return {}

    def make() -> dict[str, AffineLens]:
        found, last = run.piece("translators", ["translator", "offset"]), subject.model.n_layers - 1
        maps = zip(("affine", "tuned"), found["translator"], found["offset"], strict=False)  # tuned_steps=0: one
        layers = tuple(subject.sources)
        return {name: AffineLens(layers, matrix, offset, last) for name, matrix, offset in maps}

    return subject.keep("translators", make)


def own(subject: LensSubject, task: Task, run: Run) -> Piece:
    """Predict the change of the final state under a small step along the token's own update, and measure it.

    Args:
        subject: Models and text.
        task: Its window.
        run: The run with the matrices.

    Returns:
        `cosine` of both, by the context's own Jacobian and by means over documents.
    """
    window, model = task["window"], subject.model
    tokens, positions = subject.held.tokens[window : window + 1], subject.positions[window : window + 1]
    recorded = replay.record(model, tokens, positions)
    exact = own_lens(model, tokens, positions, layers=subject.sources, memory=MEMORY)[0]
    lenses = [subject.lens(run, name) for name in subject.predictors[1:]]
    final, found = recorded.state(model.n_layers), []
    for at, layer in enumerate(subject.sources):
        before, state = recorded.state(layer), recorded.state(layer + 1)
        update = state - before
        step = STEP * state.norm(dim=-1, keepdim=True) * update / update.norm(dim=-1, keepdim=True)
        with torch.no_grad():
            changed = recorded.run_on(layer + 1, (state + step)[:, None])[:, 0] - final
        guesses = [torch.einsum("pij,pj->pi", exact[:, at], step[0])]
        guesses += [lens.transport(step[0], layer) for lens in lenses]
        found.append(torch.stack([cosine(guess.double(), changed[0].double()) for guess in guesses]))
    return Piece(
        {"cosine": torch.stack(found, dim=1)},
        {"predictor": subject.predictors, "source": subject.sources, "query": subject.queries(window)},
    )


@torch.no_grad()
def steer(subject: LensSubject, task: Task, run: Run) -> Piece:
    """Measure the change of tokens' logits under steps along their directions, beside what is predicted.

    Args:
        subject: Models and text.
        task: Its window.
        run: The run with the matrices.

    Returns:
        `predicted` and `measured`, along directions of the lens, of the head, and random ones as long.
    """
    window, model, lens = task["window"], subject.model, subject.lens(run)
    recorded = replay.record(model, subject.held.tokens[window : window + 1], subject.positions[window : window + 1])
    final, tokens = recorded.state(model.n_layers)[0], subject.steered
    rows = unembedding_rows(model, tokens, folded=False).vectors.float()
    base = _logits(model, final[None].expand(len(tokens), -1, -1), tokens)
    generator = torch.Generator().manual_seed(1000 * subject.config.seed + window)
    predicted, measured = [], []
    for layer in subject.sources:
        state = recorded.state(layer + 1)[0]
        length = subject.config.strength * state.norm(dim=-1, keepdim=True)
        directions = {
            "lens": rows @ lens[layer],
            "logit": rows,
            "random": torch.randn(rows.shape, generator=generator),
        }
        for name in DIRECTIONS:
            unit = directions[name] / directions[name].norm(dim=-1, keepdim=True)
            step = length[None] * unit.to(state.device)[:, None]
            after = recorded.run_on(layer + 1, (state + step)[None])[0]
            carried = step if name == "logit" else lens.transport(step, layer)
            measured.append(_logits(model, after, tokens) - base)
            predicted.append(_logits(model, final + carried, tokens) - base)
    shape = (len(subject.sources), len(DIRECTIONS), *base.shape)
    return Piece(
        {
            "predicted": torch.stack(predicted).reshape(shape).transpose(0, 1),
            "measured": torch.stack(measured).reshape(shape).transpose(0, 1),
        },
        {
            "direction": DIRECTIONS,
            "source": subject.sources,
            "steered": tokens,
            "query": subject.queries(window),
        },
    )


def _logits(
    model: LanguageModel, states: Float[Tensor, "token query d"], tokens: list[int]
) -> Float[Tensor, "token query"]:
    """The logit of each token in its own row of states."""
    return torch.stack([
        model.unembed(state.to(model.dtype))[:, token].float().cpu()
        for state, token in zip(states, tokens, strict=True)
    ])
