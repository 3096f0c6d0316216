"""The groups in which a section's outputs depend on its leaves, found by running.

With the cotangents r, g · r and π(g) · r, where g counts the groups and π permutes them, the gradients of an input that
one group alone reads have the ratios g and π(g).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from probe.jacobian.tape import Tape

PUSHED = 3
"""Vector-Jacobian products that take as long as a product from the other side, roughly."""


@dataclass(frozen=True)
class Groups:
    """Dependence of the outputs of a section on the leaves.

    Attributes:
        size: Outputs of a group.
        owners: For each leaf the group that reads an input; −1: several do; −2: none was seen to.
        products: How many vector-Jacobian products take as long as the derivative.
        tried: The owners by groups of each size that was tried.
    """

    size: int
    owners: tuple[Int[Tensor, " _"], ...]
    products: int
    tried: dict[int, tuple[Int[Tensor, " _"], ...]]


def found_groups(tape: Tape, end: Tensor, known: Groups | None, tolerance: float) -> Groups:
    """Find the groups of a section that take the fewest products.

    Args:
        tape: The run.
        end: The end of the section.
        known: What was found at another point; None: nothing yet.
        tolerance: Relative difference up to which ratios of gradients hold.

    Returns:
        The groups.
    """
    tolerance = max(tolerance, 64 * torch.finfo(end.dtype).eps)
    width = end.numel() // tape.count
    draw = torch.Generator().manual_seed(0)
    vector = torch.randn((tape.count, width), dtype=torch.float64, generator=draw).to(end)

    def gradients(factors: Tensor) -> tuple[Tensor | None, ...]:
        cotangent = (vector * factors.to(end)).reshape(end.shape)
        pulled = torch.autograd.grad(end, tape.leaves, cotangent, retain_graph=True, allow_unused=True)
        return tuple(None if each is None else each.reshape(tape.count, -1) for each in pulled)

    plain = gradients(torch.ones(width))
    best, least, tried = 0, float("inf"), {} if known is None else dict(known.tried)
    for size in (size for size in range(1, width + 1) if width % size == 0):
        if size >= least:
            break
        count = width // size
        turned = torch.randperm(count, generator=draw)
        codes = [gradients((each + 1.0).repeat_interleave(size)) for each in (torch.arange(count), turned)]
        owners = tuple(
            _owners(tape.leaves[number].numel() // tape.count, turned, tolerance, *pulled)
            for number, pulled in enumerate(zip(plain, *codes, strict=True))
        )
        if size in tried:
            owners = tuple(map(_agreed, owners, tried[size]))
        tried[size] = owners
        products = size + PUSHED * sum(int((owner == -1).sum()) for owner in owners)
        if products < least:
            best, least = size, products
    return Groups(best, tried[best], int(least), tried)


def _agreed(one: Tensor, other: Tensor) -> Tensor:
    """The owners, as far as two points agree on them."""
    both = torch.where(one == other, one, -1)
    return torch.where(one == -2, other, torch.where(other == -2, one, both))


def _owners(
    width: int, turned: Tensor, tolerance: float, plain: Tensor | None, first: Tensor | None, second: Tensor | None
) -> Tensor:
    """The group that alone reads each input of a leaf, at all positions."""
    if plain is None or first is None or second is None:
        return torch.full((width,), -2)
    count = len(turned)
    if count == 1:
        return torch.zeros(width, dtype=torch.int64)
    sizes = plain.abs().cpu()
    one, two = ((each / plain - 1).cpu() for each in (first, second))  # (n, in)
    owner = one.nan_to_num(-1, -1, -1).round().clamp(-1, count).long()
    expected = turned[owner.clamp(0, count - 1)]
    near = ((one - owner).abs() < tolerance * (1 + owner)) & ((two - expected).abs() < tolerance * (1 + expected))
    owner = torch.where((owner >= 0) & (owner < count) & near, owner, -1)
    # of what is near zero the ratios are rounding: where there is another position, it decides
    weak = sizes <= 300 * tolerance * sizes.square().mean(1, keepdim=True).sqrt()
    weak &= (sizes < sizes.amax(0)) | (sizes == 0)
    each_position = torch.where(weak, -2, owner)
    found = each_position[0]
    for each in each_position[1:]:
        found = _agreed(found, each)
    places = torch.arange(width) % count
    if width % count == 0 and bool(((found == places) | (found == -2)).all()):
        return places  # number by number; of some the slope happened to be zero
    return found
