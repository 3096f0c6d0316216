"""What is asked of the library, each beside the oracle's own answer."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

import probe
from probe import replay
from probe.errors import InputError
from probe.model import LanguageModel
from tests.architectures.oracle import Oracle, at

Outcome = Literal["exact", "refused", "crash", "wrong", "nothing"]
WORST: tuple[Outcome, ...] = ("nothing", "exact", "refused", "crash", "wrong")

FLOAT64 = 1e-6
FLOAT32 = 1e-4


@dataclass
class Finding:
    """What one check of one type found: its outcome, the error where there is a number, and a line."""

    check: str
    outcome: Outcome
    error: float = 0.0
    line: str = ""


@dataclass
class Case:
    """One module, the tokens and positions that are asked about, and the oracle's answers, made once.

    Attributes:
        module: The module in float32.
        tokens: (window, position).
        positions: (window, chosen), others in each window.
        rows: The vectors v of which vᵀJ is compared, (row, d); None: the identity, whole matrices.
    """

    module: PreTrainedModel
    tokens: Tensor
    positions: Tensor
    n_rows: int | None = 3

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.module, self.tokens)

    @cached_property
    def rows(self) -> Tensor:
        if self.n_rows is None:
            return torch.eye(self.oracle.d, dtype=torch.float64)
        generator = torch.Generator().manual_seed(5)
        return torch.randn((self.n_rows, self.oracle.d), generator=generator, dtype=torch.float64)

    @cached_property
    def direction(self) -> Tensor:
        generator = torch.Generator().manual_seed(6)
        direction = torch.randn(self.oracle.d, generator=generator, dtype=torch.float64)
        return direction / direction.norm()

    @cached_property
    def expected_rows(self) -> list[Tensor]:
        return self.oracle.rows(self.positions, self.rows)

    @cached_property
    def floor(self) -> float:
        """What the module's own float32 arithmetic inside its float64 pass costs the states and the rows of K."""
        rows = self.oracle.rows(self.positions, self.rows, islands=True)
        plain = self.oracle.run(self.tokens, islands=True)
        pairs = zip(rows, self.expected_rows, strict=True)
        errors = [relative(found, expected, expected - self.rows) for found, expected in pairs]
        return max(*errors, relative(plain.outputs[-1], self.oracle.plain.outputs[-1]))

    def agree(self, found: Tensor, expected: Tensor, what: str, scale: Tensor | None = None) -> float:
        """The relative error of a float64 number, if it is rounding: 1e-6, or ten times the floor.

        Raises:
            WrongError: If it is not.
        """
        error = relative(found, expected, scale)
        if error > FLOAT64 and not error <= min(10 * self.floor, FLOAT32):
            raise WrongError(error, what)
        return error

    @cached_property
    def double(self) -> LanguageModel:
        return probe.load_model(in_double(self.module))

    @cached_property
    def single(self) -> LanguageModel:
        return probe.load_model(self.module)


def in_double(module: PreTrainedModel) -> PreTrainedModel:
    """A copy in float64; its experts run one by one, because grouped products know no float64 on CPUs."""
    double = copy.deepcopy(module).double()
    with contextlib.suppress(ValueError, AttributeError):
        double.set_experts_implementation("eager")
    return double


class WrongError(Exception):
    """A number of the library is not the oracle's."""

    def __init__(self, error: float, what: str) -> None:
        super().__init__(what)
        self.error, self.what = error, what


class NothingToAskError(Exception):
    """The model has not what is asked about, or the oracle has no answer."""


def relative(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """‖found − expected‖ beside ‖scale‖ (‖expected‖ by default); infinite where shapes differ or a number is none."""
    if found.shape != expected.shape:
        return math.inf
    found, expected = found.detach().double(), expected.detach().double()
    size = (expected if scale is None else scale.detach().double()).norm().item()
    error = (found - expected).norm().item()
    if not math.isfinite(error):
        return math.inf
    return error / size if size else (0.0 if error == 0 else math.inf)


def within(found: Tensor, expected: Tensor, tolerance: float, what: str, scale: Tensor | None = None) -> float:
    """The relative error, if it is within the tolerance.

    Raises:
        WrongError: If it is not.
    """
    error = relative(found, expected, scale)
    if not error <= tolerance:
        raise WrongError(error, what)
    return error


Check = Callable[[Case], float]
CHECKS: dict[str, Check] = {}
SIDE: set[str] = set()
"""Checks whose refusal does not count: what they ask about, some blocks have not."""
QUICK: list[str] = []


def check(*, quick: bool = False, side: bool = False) -> Callable[[Check], Check]:
    """Enter a function into the table of checks under its name."""

    def enter(function: Check) -> Check:
        name = function.__name__
        CHECKS[name] = function
        if side:
            SIDE.add(name)
        if quick:
            QUICK.append(name)
        return function

    return enter


def measure(case: Case, name: str) -> Finding:
    """Run one check and say how it went."""
    try:
        return Finding(name, "exact", CHECKS[name](case))
    except NothingToAskError as error:
        return Finding(name, "nothing", line=str(error))
    except WrongError as error:
        return Finding(name, "wrong", error.error, error.what)
    except InputError as error:
        if "\n" in str(error):
            return Finding(name, "crash", line="a refusal of several lines: " + " ".join(str(error).split()))
        return Finding(name, "refused", line=str(error))
    except Exception as error:  # noqa: BLE001 - whatever comes out is what is looked for
        return Finding(name, "crash", line=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


@check(quick=True)
def capture(case: Case) -> float:
    """States at all depths, to the bit those of hooks of our own on the same module."""
    model = case.single
    stream = probe.capture(model, case.tokens)
    own = own_states(case.module, case.oracle.path, case.tokens)
    depth = len(own) - 1
    if model.n_layers != depth:
        raise WrongError(math.inf, f"{model.n_layers} layers, of {depth}")
    for layer in range(depth + 1):
        site = f"blocks.{layer}.hook_resid_pre" if layer < depth else f"blocks.{depth - 1}.hook_resid_post"
        if not torch.equal(stream[site], own[layer].float()):
            raise WrongError(relative(stream[site], own[layer]), site)
    found = probe.capture(case.double, case.tokens, dtype="model")
    states = [*case.oracle.plain.inputs, case.oracle.plain.outputs[-1]]
    sites = [f"blocks.{layer}.hook_resid_pre" for layer in range(depth)] + [f"blocks.{depth - 1}.hook_resid_post"]
    return max(case.agree(found[site], state, site) for site, state in zip(sites, states, strict=True))


def own_states(module: PreTrainedModel, path: str, tokens: Tensor) -> list[Tensor]:
    """What enters each layer, and what leaves the last, by hooks of our own."""
    from tests.architectures.oracle import first_state, output_state

    layers = list(module.get_submodule(path))  # type: ignore[call-overload]
    seen: dict[int, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _m, args, kwargs, i=i: seen.__setitem__(i, first_state(args, kwargs).clone()), with_kwargs=True
        )
        for i, layer in enumerate(layers)
    ]
    last = len(layers)
    handles.append(
        layers[-1].register_forward_hook(lambda _m, _a, output: seen.__setitem__(last, output_state(output).clone()))
    )
    try:
        with torch.no_grad():
            module(input_ids=tokens, use_cache=False, return_dict=True)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[i] for i in range(last + 1)]


@check(quick=True)
def head(case: Case) -> float:
    """Logits from the last state, and by a pass, are the module's."""
    model, plain = case.double, case.oracle.plain
    passed = case.agree(model.forward(case.tokens), plain.logits, "the logits of a pass")
    with torch.no_grad():
        found = model.unembed(plain.outputs[-1])
    return max(passed, case.agree(found, plain.logits, "the head on the last state"))


@check(quick=True)
def jacobian(case: Case) -> float:
    """Every block's Jacobian at positions of a real context, float64: rows by autograd, columns by differences."""
    worst = 0.0
    eye = torch.eye(case.oracle.d, dtype=torch.float64)
    for layer, expected in enumerate(case.expected_rows):
        found = probe.block_jacobian(case.double, case.tokens, layer, case.positions, dtype=torch.float64)
        update = expected - case.rows
        error = case.agree(case.rows @ found, expected, f"rows of J of block {layer}", update)
        column = case.oracle.columns(layer, case.positions, case.direction)
        other = case.agree(found @ case.direction, column, f"a column of J of block {layer}", column - case.direction)
        worst = max(worst, error, other)
    layer = case.oracle.layers.__len__() - 1
    moved = probe.block_jacobian(case.double, case.tokens, layer, case.positions, of="update", dtype=torch.float64)
    return max(worst, case.agree(moved, found - eye, "J − I"))


@check(quick=True)
def alone(case: Case) -> float:
    """Jacobians of each state as a one-token input: real one-token passes, fed with the state."""
    worst = 0.0
    for layer, expected in enumerate(case.oracle.rows_alone(case.positions, case.rows)):
        found = probe.block_jacobian(
            case.double, case.tokens, layer, case.positions, context="alone", dtype=torch.float64
        )
        what = f"rows of J of block {layer} alone"
        worst = max(worst, case.agree(case.rows @ found, expected, what, expected - case.rows))
    return worst


@check(quick=True, side=True)
def part(case: Case) -> float:
    """Attention's and the MLP's Jacobian, through the tensor that the library calls the stream between them."""
    worst = 0.0
    for layer in range(case.double.n_layers):
        site = f"blocks.{layer}.hook_resid_mid"
        if site not in case.double.sites:
            probe.block_jacobian(case.double, case.tokens, layer, case.positions, part="mlp", dtype=torch.float64)
            raise WrongError(math.inf, f"part='mlp' is answered, although there is no {site}")
        attention, mlp, through = case.oracle.parts(layer, *middle(case, layer), case.positions, case.rows)
        case.agree(through, case.expected_rows[layer], f"rows of J of block {layer} through {site}")
        for name, expected in (("attention", attention), ("mlp", mlp)):
            found = probe.block_jacobian(
                case.double, case.tokens, layer, case.positions, part=name, dtype=torch.float64
            )
            what = f"rows of J of the {name} of block {layer}"
            worst = max(worst, case.agree(case.rows @ found, expected, what, expected - case.rows))
    return worst


def middle(case: Case, layer: int) -> tuple[str, str]:
    """Where the library reads the stream between attention and MLP: a path in the whole module, and the side."""
    site = case.double.site(f"blocks.{layer}.hook_resid_mid")
    names = {id(part): name for name, part in case.double.module.named_modules()}
    return names[id(site.module)], site.side


@check(quick=True, side=True)
def off_position(case: Case) -> float:
    """What attention writes of other positions: the module's own attention with each position's own value left out."""
    oracle, model = case.oracle, case.double
    recorded = replay.record(model, case.tokens, case.positions)
    worst, asked = 0.0, False
    for layer in range(model.n_layers):
        found = recorded.off_position_write(layer)
        expected = oracle.off_position(layer, *written(case, layer))
        if expected is not None:
            asked = True
            worst = max(worst, case.agree(found, at(expected, case.positions), f"the write of others in block {layer}"))
    if not asked:
        raise NothingToAskError("the attention is not the exchangeable one")
    return worst


def written(case: Case, layer: int) -> tuple[str, str]:
    """Where the library reads what attention adds to the stream."""
    name = f"blocks.{layer}.hook_attn_out"
    if name not in case.double.sites:
        raise NothingToAskError("there is no site of what attention writes")
    site = case.double.site(name)
    names = {id(part): name for name, part in case.double.module.named_modules()}
    return names[id(site.module)], site.side


@check(quick=True)
def continuity(case: Case) -> float:
    """|cos| of the leading singular vectors of neighbouring layers' matrices, by plain SVD of what `projections` has."""
    model = case.double
    data = probe.weights.continuity(model)
    if model.n_layers < 2:
        raise NothingToAskError("there is one layer")
    worst = 0.0
    layers = [model.projections(layer) for layer in range(model.n_layers)]
    for name in map(str, data["projection"].values):
        if not all(name in matrices for matrices in layers):
            continue
        bases = [torch.linalg.svd(matrices[name].double(), full_matrices=False) for matrices in layers]
        for space, vectors in (("input", [base[2][0] for base in bases]), ("output", [base[0][:, 0] for base in bases])):
            cosines = torch.stack([(one @ next_one).abs() for one, next_one in zip(vectors, vectors[1:], strict=False)])
            found = torch.as_tensor(data[f"{space}_continuity"].sel(projection=name).values)
            worst = max(worst, within(found[: len(cosines)], cosines, 1e-3, f"{space} continuity of {name}"))
    return worst
