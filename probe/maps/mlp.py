"""A shallow network beside a linear skip, trained by minibatches and stopped by validation documents."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import gelu
from tqdm.auto import tqdm

from probe.boundary import public
from probe.errors import InputError
from probe.geometry import explained_variance
from probe.maps.base import Map, Validation, row_blocks, working_dtype
from probe.maps.linear import LinearMap

WARM_UP = 0.1  # of the steps
BETAS = (0.9, 0.98)  # some hundred steps are too few for the usual 0.999, which would remember the first batches
READINGS = 50
PATIENCE = 25  # half a schedule: the loss often rises at first and falls only as the learning rate does
PARAMETERS = ("skip_", "weight_in_", "bias_in_", "weight_out_", "bias_out_")


@public
@dataclass(eq=False)
class MLPMap(Map):
    """One hidden layer beside a linear skip, ``z = (x − x̄) / σ``, ``ŷ = ȳ + τ (zS + GELU(zA + a) B + b)``.

    σ is the scale of each coordinate of x, τ one scale for all of y, so that the loss is the squared error that all
    maps are judged by. The optimiser is AdamW. Its rate rises over the first tenth of the steps, then falls to zero
    along a squared cosine: the last steps have small rates, at which the noise of the minibatches is gone. The loss on
    validation pairs is measured 50 times; training stops after 25 readings without a new best, and the best is
    restored. The same seed gives the same map; the global random state is neither used nor changed.

    Cost: 6 · steps · batch · (d e + width (d + e)) operations.

    Args:
        width: Number of hidden neurons.
        steps: Largest number of optimisation steps.
        init: ``"ridge"`` starts at the ridge optimum: S from `LinearMap`, B = 0, so that it is no worse than linear by
            construction. ``"random"`` starts the hidden layer at random and S = 0, independently of the ridge
            optimum: whether it beats the linear map is then a finding.
        seed: Seeds the start, the minibatches and, without validation pairs, the documents that are held out.
        batch_size: Tokens for each step.
        learning_rate: Peak learning rate.
        weight_decay: AdamW's decoupled decay.
        quiet: Show no progress bar.

    Attributes:
        curve_: Validation loss, the share of variance not explained, at each reading, the start first, (readings,).
        flat_: True if the best loss improved by less than 1 % over the last fifth of the readings: this schedule had
            nothing left to gain. A longer one may still gain a little.
        mean_x_: x̄, (d,).
        scale_x_: σ, (d,).
        mean_y_: ȳ, (e,).
        scale_y_: τ, ().
        skip_: S, (d, e).
        weight_in_: A, (d, width).
        bias_in_: a, (width,).
        weight_out_: B, (width, e).
        bias_out_: b, (e,).
    """

    width: int = 256
    steps: int = 600
    init: Literal["ridge", "random"] = "ridge"
    seed: int = 0
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    quiet: bool = True
    curve_: Tensor = field(init=False, repr=False)
    flat_: bool = field(init=False, repr=False)
    mean_x_: Tensor = field(init=False, repr=False)
    scale_x_: Tensor = field(init=False, repr=False)
    mean_y_: Tensor = field(init=False, repr=False)
    scale_y_: Tensor = field(init=False, repr=False)
    skip_: Tensor = field(init=False, repr=False)
    weight_in_: Tensor = field(init=False, repr=False)
    bias_in_: Tensor = field(init=False, repr=False)
    weight_out_: Tensor = field(init=False, repr=False)
    bias_out_: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.width, self.steps, self.batch_size) < 1:
            raise InputError(
                f"width, steps and batch_size must be at least 1, got {self.width}, {self.steps}, {self.batch_size}"
            )
        if self.init not in {"ridge", "random"}:
            raise InputError(f'init must be "ridge" or "random", got {self.init!r}: choose one')

    def _fit(self, x: Tensor, y: Tensor, groups: Tensor | None, validation: Validation | None) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        if validation is None:
            held = held_out(len(x), groups, generator).to(x.device)
            x, y, validation = x[~held], y[~held], (x[held], y[held])
        dtype = working_dtype(x)
        spread, self.mean_x_ = torch.std_mean(x.double(), 0, correction=0)
        self.scale_x_ = torch.where(spread > 0, spread, 1.0)
        self.mean_y_ = y.mean(0, dtype=torch.float64)
        size = (y.double() - self.mean_y_).square().mean().sqrt()
        self.scale_y_ = torch.where(size > 0, size, 1.0)
        start = (
            self._random_start(generator) if self.init == "random" else self._ridge_start(generator, x, y, validation)
        )
        for name, value in zip(PARAMETERS, start, strict=True):
            setattr(self, name, value.to(x.device, dtype))
        targets = ((y.double() - self.mean_y_) / self.scale_y_).to(dtype)
        with torch.enable_grad():
            self._train(self._standardise(x).to(dtype), targets, validation, generator)

    def _predict(self, x: Tensor, groups: Tensor | None) -> Tensor:
        return torch.cat([self._unscaled(self._standardise(rows).to(x.dtype)) for _, rows in row_blocks(x)])

    def _standardise(self, x: Tensor) -> Tensor:
        return (x - self.mean_x_) / self.scale_x_

    def _unscaled(self, z: Tensor) -> Tensor:
        return self.mean_y_.to(z) + self.scale_y_.to(z) * self._network(z)

    def _network(self, z: Tensor) -> Tensor:
        hidden = gelu(z @ self.weight_in_.to(z) + self.bias_in_.to(z))
        return z @ self.skip_.to(z) + hidden @ self.weight_out_.to(z) + self.bias_out_.to(z)

    def _random_start(self, generator: torch.Generator) -> list[Tensor]:
        """A hidden layer with weights uniform within 1/√(inputs), as `torch.nn.Linear` starts it, and no skip."""

        def uniform(inputs: int, *shape: int) -> Tensor:
            return (2 * torch.rand(*shape, generator=generator) - 1) / math.sqrt(inputs)

        d, e, width = self.d_in_, self.d_out_, self.width
        inner = uniform(d, d, width), uniform(d, width)
        # a random skip would be d·e numbers of noise that some hundred steps do not unlearn
        return [torch.zeros(d, e), *inner, uniform(width, width, e), uniform(width, e)]

    def _ridge_start(self, generator: torch.Generator, x: Tensor, y: Tensor, validation: Validation) -> list[Tensor]:
        """The ridge optimum in the skip and nothing from the hidden layer, whose inner weights are random."""
        linear = LinearMap().fit(x, y, validation=validation).weight_
        _, weight_in, bias_in, weight_out, bias_out = self._random_start(generator)
        skip = self.scale_x_[:, None] * linear / self.scale_y_
        return [skip, weight_in, bias_in, torch.zeros_like(weight_out), torch.zeros_like(bias_out)]

    def _train(self, z: Tensor, targets: Tensor, validation: Validation, generator: torch.Generator) -> None:
        """Minimise the squared error, keep the curve, and leave the weights of the best reading."""
        weights = [getattr(self, name).requires_grad_() for name in PARAMETERS]
        optimiser = torch.optim.AdamW(weights, self.learning_rate, BETAS, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, self.steps))
        every = max(1, self.steps // READINGS)
        curve = [self._unexplained(validation)]
        best = [weight.detach().clone() for weight in weights]
        for step in tqdm(range(1, self.steps + 1), desc=f"MLP of width {self.width}", disable=self.quiet, leave=False):
            rows = torch.randint(len(z), (self.batch_size,), generator=generator).to(z.device)
            loss = (self._network(z[rows]) - targets[rows]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % every and step != self.steps:
                continue
            curve.append(self._unexplained(validation))
            if curve[-1] < min(curve[:-1]):
                best = [weight.detach().clone() for weight in weights]
            elif curve.index(min(curve)) < len(curve) - PATIENCE:
                break
        self.curve_ = torch.tensor(curve, dtype=torch.float64)
        self.flat_ = is_flat(self.curve_)
        for name, value in zip(PARAMETERS, best, strict=True):
            setattr(self, name, value)

    @torch.no_grad()
    def _unexplained(self, validation: Validation) -> float:
        x, y = validation
        return 1 - float(explained_variance(y.double(), self._predict(x.to(self.skip_), None).double()))


def rate_factor(step: int, steps: int) -> float:
    """Compute the share of the peak learning rate at a step: linear up for a tenth, then a squared cosine down."""
    warm = math.ceil(WARM_UP * steps)
    if step < warm:
        return (step + 1) / warm
    return math.cos(0.5 * math.pi * (step - warm) / max(1, steps - warm)) ** 4


def is_flat(curve: Float[Tensor, " reading"]) -> bool:
    """Tell whether the best loss so far fell by less than 1 % over the last fifth of a curve."""
    earlier = curve[: len(curve) - len(curve) // 5].min()
    return bool(earlier - curve.min() < 0.01 * earlier)


def held_out(rows: int, groups: Int[Tensor, " row"] | None, generator: torch.Generator) -> Bool[Tensor, " row"]:
    """Draw a tenth of the documents, or of the rows where there are no documents: at least one, never all."""
    names, index = (torch.arange(rows) if groups is None else groups.cpu()).unique(return_inverse=True)
    if len(names) < 2:
        raise InputError("validation needs a second document, got one: pass validation=, more documents or groups=None")
    chosen = torch.zeros(len(names), dtype=torch.bool)
    chosen[torch.randperm(len(names), generator=generator)[: max(1, len(names) // 10)]] = True
    return chosen[index]
