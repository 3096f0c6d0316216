"""One module under test: the questions, the oracle's answers, the library's models, and how an answer is judged."""

from __future__ import annotations

import contextlib
import copy
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

import probe
from probe.errors import InputError
from probe.model import LanguageModel
from tests.architectures import zoo
from tests.architectures.oracle import Oracle

Outcome = Literal["nothing", "exact", "refused", "crash", "wrong"]
WORST: tuple[Outcome, ...] = ("nothing", "exact", "refused", "crash", "wrong")

FLOAT64 = 1e-6
"""Largest error of a float64 number beside the size of what is measured."""
FLOAT32 = 1e-4
BFLOAT16 = 0.15
"""The keys that other positions wrote are bfloat16: rounding of 0.4 % an entry, and the largest seen is 6 % of K."""


@dataclass
class Finding:
    """What one check of one type found.

    Attributes:
        check: Its name.
        outcome: "nothing" where there is nothing to ask about.
        error: The largest relative error; infinite where shapes differ.
        line: The refusal, the exception, or what is wrong.
    """

    check: str
    outcome: Outcome
    error: float = 0.0
    line: str = ""


class WrongError(Exception):
    """A number of the library is not the oracle's."""

    def __init__(self, error: float, what: str) -> None:
        super().__init__(what)
        self.error, self.what = error, what


class NothingToAskError(Exception):
    """The model has not what is asked about, or the oracle has no answer."""


@dataclass
class Case:
    """One module, the tokens and positions that are asked about, and the oracle's answers, made once.

    Attributes:
        module: The module in float32.
        windows: Number of windows.
        n_rows: Number of random vectors v whose vᵀJ are compared; None: whole matrices.
    """

    module: PreTrainedModel
    windows: int = 2
    n_rows: int | None = 3
    _parts: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def tokens(self) -> Tensor:
        """Int64 (window, position)."""
        return zoo.questions(self.windows)[0]

    @cached_property
    def positions(self) -> Tensor:
        """Int64 (window, chosen), others in each window."""
        return zoo.questions(self.windows)[1]

    @cached_property
    def oracle(self) -> Oracle:
        """The oracle of the module."""
        return Oracle(self.module, self.tokens)

    @cached_property
    def rows(self) -> Tensor:
        """The vectors v, (row, d)."""
        if self.n_rows is None:
            return torch.eye(self.oracle.d, dtype=torch.float64)
        return self.random(self.n_rows, self.oracle.d)

    @cached_property
    def direction(self) -> Tensor:
        """A direction of the stream of length 1."""
        direction = self.random(self.oracle.d)
        return direction / direction.norm()

    def random(self, *shape: int) -> Tensor:
        """Normal numbers, the same at every call."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    @cached_property
    def expected_rows(self) -> list[Tensor]:
        """Rows of every layer's Jacobian, by autograd."""
        return self.oracle.rows(self.positions, self.rows)

    def parts(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of attention's and of the MLP's Jacobian and of their product, through the library's middle; kept."""
        if layer not in self._parts:
            where = self.place(layer, "hook_resid_mid")
            self._parts[layer] = self.oracle.parts(layer, *where, self.positions, self.rows)
        return self._parts[layer]

    def place(self, layer: int, name: str) -> tuple[str, str]:
        """Where the library reads a site of a block: the path of a module, and the side."""
        site = self.double.site(f"blocks.{layer}.{name}")
        names = {id(part): path for path, part in self.double.module.named_modules()}
        return names[id(site.module)], site.side

    @cached_property
    def floor(self) -> float:
        """What the module's own float32 arithmetic inside its float64 passes costs the states and the rows of K."""
        rows = self.oracle.rows(self.positions, self.rows, islands=True)
        plain = self.oracle.run(self.tokens, islands=True)
        pairs = zip(rows, self.expected_rows, strict=True)
        errors = [relative(found, expected, expected - self.rows) for found, expected in pairs]
        return max(*errors, relative(plain.outputs[-1], self.oracle.plain.outputs[-1]), self._floor_of_a_cache)

    @property
    def _floor_of_a_cache(self) -> float:
        """What the float32 of the module's own cache costs its logits, token by token; 0 where it has no such pass."""
        module, cache, logits = in_double(self.module), None, []
        try:
            with torch.no_grad():
                for position in range(self.tokens.shape[1]):
                    token = self.tokens[:, position : position + 1]
                    output = module(input_ids=token, past_key_values=cache, use_cache=True)
                    cache = output.past_key_values
                    logits.append(output.logits)
        except Exception:  # noqa: BLE001 - whatever the module's code raises
            return 0.0
        error = relative(torch.cat(logits, 1), self.oracle.plain.logits)
        return error if error < 1e-3 else 0.0  # larger: it is another pass

    def agree(self, found: Tensor, expected: Tensor, what: str, scale: Tensor | None = None) -> float:
        """The relative error of a float64 number, if it is rounding: 1e-6, or ten times the floor.

        Raises:
            WrongError: If it is not.
        """
        error = relative(found, expected, scale)
        if self.dtype is torch.float32:
            return within(found, expected, FLOAT32, what, scale)
        if error > FLOAT64 and not error <= min(10 * self.floor, FLOAT32):
            raise WrongError(error, what)
        return error

    @cached_property
    def dtype(self) -> torch.dtype:
        """Float64, or float32 where the module's own code does not run in float64."""
        try:
            with torch.no_grad():
                in_double(self.module)(input_ids=self.tokens, use_cache=False)
        except Exception:  # noqa: BLE001 - whatever the module's code raises
            return torch.float32
        return torch.float64

    @cached_property
    def double(self) -> LanguageModel:
        """The library's model of a float64 copy; of the module itself where that does not run in float64."""
        return self.single if self.dtype is torch.float32 else probe.load_model(in_double(self.module))

    def jacobian(self, layer: int, **options: Any) -> Tensor:
        """The library's block Jacobian of `double`, in float64."""
        found = probe.block_jacobian(self.double, self.tokens, layer, self.positions, dtype=self.dtype, **options)
        return found.double()

    @cached_property
    def single(self) -> LanguageModel:
        """The library's model of the module itself."""
        return probe.load_model(self.module)


def in_double(module: PreTrainedModel) -> PreTrainedModel:
    """A copy in float64; its experts run one by one, because grouped products know no float64 on CPUs."""
    double = copy.deepcopy(module).double()
    with contextlib.suppress(ValueError, AttributeError):
        double.set_experts_implementation("eager")
    return double


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
    """The relative error, if it is within a tolerance.

    Raises:
        WrongError: If it is not.
    """
    error = relative(found, expected, scale)
    if not error <= tolerance:
        raise WrongError(error, what)
    return error


Check = Callable[[Case], float]
CHECKS: dict[str, Check] = {}
"""The checks by name; each returns its largest error."""
QUICK: list[str] = []
"""Names of those that take little time."""
SIDE: set[str] = set()
"""Names of those whose refusal does not count, because some blocks have not what they ask about."""


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


@check(quick=True)
def load(case: Case) -> float:
    """The library takes the model, or refuses it."""
    _ = case.double, case.single
    return 0.0


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
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        ours = any(name.endswith("architectures/oracle.py") for name in files)
        theirs = any("/probe/" in name for name in files)
        return Finding(name, "crash", line=f"the oracle: {said}" if ours and not theirs else said)
