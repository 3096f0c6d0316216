r"""The tuned lens (Belrose et al. 2023, arXiv 2303.08112): affine maps trained until their outputs are the model's.

For each layer l a map h ↦ A_l h + b_l is trained to minimise ``KL(softmax(unembed(h_L)) ‖ softmax(unembed(A_l h_l +
b_l)))``, the mean over positions. What differs from the paper's recipe, which begins at the identity and runs SGD with
Nesterov momentum on 262,144 tokens a step:

- it begins at the ridge regression of `fit_affine`, or where you say
- steps have few tokens, so the optimiser is Adam (amsgrad, .9 and .999), the paper's code's second choice; the rate
  rises over the first fifth of the steps and then falls linearly to zero, as there
- what is trained is the change of the map in standard units, ``A_l h + b_l = start(h) + s (C z + c)`` with
  z = (h − h̄)/(σ √d), s and σ the root mean squares of the final and the layer's centred streams: one rate serves models
  and layers of any scale
- no weight decay: each layer keeps the map that was best on held-out documents, its start included
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from probe.boundary import public
from probe.errors import InputError
from probe.lens.affine import AffineLens, counted_states, divided, fit_affine, origin
from probe.lens.estimators import SKIP_FIRST, Estimator
from probe.lens.jacobian_lens import require_raw
from probe.model import LanguageModel, undisturbed
from probe.text import Given

_ROWS = 256  # rows of logits at a time


@public
@undisturbed()
def fit_tuned(
    model: LanguageModel,
    prompts: Given,
    *,
    start: AffineLens | Literal["logit"] | None = None,
    layers: int | Sequence[int] | None = None,
    skip_first: int = SKIP_FIRST,
    validation: Given | None = None,
    steps: int = 250,
    tokens: int = 256,
    documents: int = 8,
    rate: float | int = 0.03,
    checks: int = 10,
    seed: int = 0,
    quiet: bool = False,
) -> AffineLens:
    """Train a tuned lens, every layer by itself, on the outputs of the model.

    Never worse on the held-out documents than its start, layer by layer. Equal arguments give equal bits on the same
    machine and number of threads. Time of a step: a pass over the documents and, with V tokens in the vocabulary,
    about 4 d V FLOPs a token and layer.

    Args:
        model: The model.
        prompts: Windows of `load_windows`, prompts of `load_prompts`, or what that takes.
        start: The maps to begin at: an affine lens, "logit" (the identity), or None: `fit_affine` on the documents that
            are trained on.
        layers: Source layers; None: those of `start`, or all before the last.
        skip_first: Positions at the start that do not count; the last one never does.
        validation: The held-out documents; by default the last fifth of `prompts`, at least one document.
        steps: Number of steps.
        tokens: Positions in a step, drawn without replacement from those of its documents.
        documents: Documents in a step.
        rate: Largest learning rate, in the standard units.
        checks: How often the held-out documents are looked at, evenly spaced over the steps.
        seed: Seed of the order of documents and of the positions.
        quiet: Show no progress bar.

    Returns:
        The lens; `losses` has the history.

    Raises:
        InputError: If a layer does not exist or `start` lacks it, too few documents have two positions that count, or a
            number is not positive.
    """
    require_raw(model)
    numbers = {"steps": steps, "tokens": tokens, "documents": documents, "checks": checks, "rate": rate}
    for name, value in numbers.items():
        if value <= 0:
            raise InputError(f"{name}= must be positive, got {value}: leave it out for the default")
    if layers is None and isinstance(start, AffineLens):
        layers = start.layers
    estimator = Estimator.of(model, layers=layers, skip_first=skip_first)
    fitted, held = divided(model, prompts, validation, skip_first, needed=True)
    if start is None:
        start = fit_affine(model, list(fitted), layers=estimator.layers, skip_first=skip_first, quiet=quiet)
    elif start == "logit":
        start = AffineLens.identity(model, estimator.layers)
    start.require(model)
    maps = [start[layer] for layer in estimator.layers]
    trained = _Trained(model, [a.to(model.device) for a, _ in maps], [b.to(model.device) for _, b in maps])
    losses = _train(trained, fitted, held, estimator, numbers, seed, quiet)
    said = {"start": start.provenance.get("kind", "given"), "held_out": len(held), "seed": seed, **numbers}
    return AffineLens(
        estimator.layers,
        torch.stack(trained.best[0]).cpu(),
        torch.stack(trained.best[1]).cpu(),
        estimator.to_layer,
        losses,
        origin(model, estimator, "tuned", fitted) | said,
    )


class _Trained:
    """The maps of all layers while they are trained, and the best of each so far."""

    def __init__(self, model: LanguageModel, matrices: list[Tensor], biases: list[Tensor]) -> None:
        self.model = model
        self.start = matrices, biases
        self.best = list(matrices), list(biases)
        self.least = torch.full((len(matrices),), torch.inf)
        self.changes = [torch.zeros_like(one, requires_grad=True) for one in matrices]
        self.offsets = [torch.zeros_like(one, requires_grad=True) for one in biases]
        self.mean = self.scale = torch.empty(0)
        self.unit = 1.0

    def standardise(self, states: Float[Tensor, "layer n d"], final: Float[Tensor, "n d"]) -> None:
        """Take the units of the training from some states."""
        self.mean = states.mean(1)
        centred = (states - self.mean[:, None]).square().mean((1, 2)).sqrt()
        self.scale = centred.clamp_min(1e-12) * states.shape[-1] ** 0.5
        self.unit = float((final - final.mean(0)).square().mean().sqrt())

    def maps(self) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the maps as they are now, (A, b)."""
        matrices, biases = [], []
        with torch.no_grad():
            for row, (matrix, bias) in enumerate(zip(*self.start, strict=True)):
                change = self.unit / self.scale[row] * self.changes[row]
                matrices.append(matrix + change)
                biases.append(bias + self.unit * self.offsets[row] - change @ self.mean[row])
        return matrices, biases

    def loss(self, row: int, states: Float[Tensor, "n d"], output: Float[Tensor, "n n_vocab"]) -> Tensor:
        """Compute the KL divergence of a layer's output from the model's, the mean over positions, with its graph."""
        matrix, bias = self.start[0][row], self.start[1][row]
        standard = (states - self.mean[row]) / self.scale[row]
        moved = self.unit * (standard @ self.changes[row].mT + self.offsets[row])
        return _kl(self.model, states @ matrix.mT + bias + moved, output).mean()

    def keep(self, losses: Float[Tensor, " layer"], maps: tuple[list[Tensor], list[Tensor]]) -> None:
        """Keep the maps of the layers that are better than ever before."""
        for row in (losses < self.least).nonzero()[:, 0].tolist():
            self.least[row] = losses[row]
            for best, now in zip(self.best, maps, strict=True):
                best[row] = now[row]


def _kl(model: LanguageModel, carried: Float[Tensor, "n d"], output: Float[Tensor, "n n_vocab"]) -> Tensor:
    read = model.unembed(carried).float().log_softmax(-1)
    return (output.exp() * (output - read)).nan_to_num(0.0).sum(-1)


@torch.no_grad()
def _validated(
    model: LanguageModel,
    maps: tuple[list[Tensor], list[Tensor]],
    held: Sequence[Tensor],
    estimator: Estimator,
) -> Float[Tensor, " layer"]:
    total, count = torch.zeros(len(estimator.layers), dtype=torch.float64), 0
    for _, states, final in counted_states(model, held, estimator, 8):
        count += len(final)
        for part in torch.arange(len(final), device=final.device).split(_ROWS):
            output = model.unembed(final[part]).float().log_softmax(-1)
            for row, (matrix, bias) in enumerate(zip(*maps, strict=True)):
                total[row] += _kl(model, states[row, part] @ matrix.mT + bias, output).double().sum().cpu()
    return total / count


def _train(
    trained: _Trained,
    fitted: Sequence[Tensor],
    held: Sequence[Tensor],
    estimator: Estimator,
    numbers: dict[str, float | int],
    seed: int,
    quiet: bool,
) -> dict[str, Tensor]:
    model, steps = trained.model, int(numbers["steps"])
    generator = torch.Generator().manual_seed(seed)
    batches = _batches(len(fitted), int(numbers["documents"]), generator)
    checks = min(int(numbers["checks"]), max(1, steps))
    at = sorted({round(steps * check / checks) for check in range(1, checks + 1)})
    parameters = [*trained.changes, *trained.offsets]
    optimiser = torch.optim.Adam(parameters, lr=numbers["rate"], amsgrad=True)
    warm = max(1, steps // 5)
    validation, training = [_validated(model, trained.start, held, estimator)], []
    trained.keep(validation[0], trained.start)
    with tqdm(range(steps), desc="tuned lens", unit="step", disable=quiet or None) as bar:
        for step in bar:
            states, final = _drawn(model, [fitted[row] for row in next(batches)], estimator)
            if step == 0:
                trained.standardise(states, final)
            these = torch.randperm(len(final), generator=generator)[: int(numbers["tokens"])].to(final.device)
            with torch.no_grad():
                output = model.unembed(final[these]).float().log_softmax(-1)
            losses = []
            for row, (change, offset) in enumerate(zip(trained.changes, trained.offsets, strict=True)):
                loss = trained.loss(row, states[row, these], output)
                change.grad, offset.grad = torch.autograd.grad(loss, [change, offset])
                losses.append(loss.detach().cpu())
            for group in optimiser.param_groups:
                group["lr"] = numbers["rate"] * min((step + 1) / warm, (steps - step) / max(1, steps - warm))
            optimiser.step()
            training.append(torch.stack(losses))
            if step + 1 in at:
                maps = trained.maps()
                validation.append(_validated(model, maps, held, estimator))
                trained.keep(validation[-1], maps)
                bar.set_postfix(kl=f"{float(trained.least.mean()):.3f}")
    return {
        "step": torch.tensor([0, *at]),
        "validation": torch.stack(validation),
        "training": torch.stack(training),
    }


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Indices of documents, each once before any comes again."""
    while True:
        yield from (part.tolist() for part in torch.randperm(count, generator=generator).split(size))


def _drawn(
    model: LanguageModel, documents: Sequence[Tensor], estimator: Estimator
) -> tuple[Float[Tensor, "layer n d"], Float[Tensor, "n d"]]:
    parts = list(counted_states(model, documents, estimator, len(documents)))
    return torch.cat([states for _, states, _ in parts], 1), torch.cat([final for _, _, final in parts])
