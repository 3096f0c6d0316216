"""What is asked of the library in a case, and how its answers are judged by the oracle's."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import probe
from probe.errors import InputError
from probe.model import LanguageModel
from tests.architectures.case import FLOAT32, FLOAT64, Case, WrongError, relative
from tests.architectures.matrices import explained
from tests.architectures.oracle import Oracle, own_states
from tests.architectures.survey import TAKEABLE, facts_of
from tests.soak.drawing import DAMAGED, NO_TOKENS, Drawn, draw
from tests.soak.making import Made, NothingMadeError, emptied, make

OUTCOMES = ("exact", "refused", "traceback", "wrong")
"""From best to worst; a case has that of its worst step."""
HALF = {"bfloat16": 0.15, "float16": 0.03}
"""Largest error of a Jacobian whose context is of that dtype, beside the size of J − I."""
GAP = 1e-2
"""A leading singular vector is compared where the next singular value is smaller by this share."""
ATTEMPTS = 50


@dataclass
class Step:
    """What one step of a case came to.

    Attributes:
        step: "load", "capture", "jacobian", "continuity", or "reading" for the continuity of the file itself.
        outcome: One of `OUTCOMES`.
        line: The refusal, the exception, or what is wrong.
        error: The largest relative error.
    """

    step: str
    outcome: str
    line: str = ""
    error: float = 0.0


@dataclass
class Result:
    """What a case came to.

    Attributes:
        number: Its number.
        name: What was drawn, in a line.
        outcome: That of its worst step.
        line: That of its worst step.
        due: Why it has to be refused; "" for a case that is valid.
        steps: One a step.
        seconds: Time.
    """

    number: int
    name: str
    outcome: str
    line: str = ""
    due: str = ""
    steps: list[Step] = field(default_factory=list)
    seconds: float = 0.0


Answer = Tensor | dict[str, np.ndarray] | Exception
"""What a step gave: numbers, or what it raised."""


@dataclass
class Answers:
    """What the library answered."""

    model: LanguageModel | None = None
    found: dict[str, Any] = field(default_factory=dict)

    def ask(self, step: str, call: Callable[[], Any]) -> Any:
        """Keep what a call gives or raises; gives None in the second case."""
        try:
            answer = call()
        except Exception as error:  # noqa: BLE001 - whatever comes out is what is looked for
            self.found[step] = error
            return None
        self.found[step] = answer
        return answer


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": contextlib.nullcontext,
    "threads": contextlib.nullcontext,
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def asked(made: Made, drawn: Drawn) -> Answers:
    """Load, capture, differentiate and compare weights, as a user does."""
    answers = Answers()
    with AROUND[drawn.around]():
        options: dict[str, Any] = {"dtype": drawn.loaded} if drawn.file else {}
        if drawn.tokens == "left pads" and not drawn.file:
            options = {"tokenizer": _tokenizer()}
        model = answers.ask("load", lambda: probe.load_model(made.given, **options))
        if drawn.file:
            answers.ask("reading", lambda: _numbers(probe.weights.continuity(str(made.given))))
        if model is None:
            return answers
        answers.model = model
        answers.ask("capture", lambda: _states(model, made.tokens))
        layer = drawn.layer % model.n_layers
        answers.ask("jacobian", lambda: probe.block_jacobian(model, made.tokens, layer, made.positions))
        answers.ask("continuity", lambda: _numbers(probe.weights.continuity(model)))
    return answers


def _tokenizer() -> Any:
    from tests.architectures.saved import tokenizer

    return tokenizer()


def _states(model: LanguageModel, tokens: Tensor) -> Tensor:
    wide = model.dtype is torch.float64
    stream = probe.capture(model, tokens, dtype="model" if wide else "float32")
    return torch.stack([stream[site].double() for site in stream.sites])


def _numbers(data: Any) -> dict[str, np.ndarray]:
    names = ("input_continuity", "output_continuity")
    return {
        f"{name} {projection}": data[name].sel(projection=projection).values
        for name in names
        for projection in map(str, data["projection"].values)
    }


# Judging


@dataclass
class Judge:
    """The oracle's side of a case.

    Attributes:
        made: The case made.
        drawn: The case.
    """

    made: Made
    drawn: Drawn

    @cached_property
    def due(self) -> str:
        """Why the library must not take the model; "" where it may."""
        if self.drawn.file in DAMAGED:
            return f"the file is damaged ({self.drawn.file})"
        if self.drawn.object == "trunk" and not self.drawn.file:
            return "a trunk has no head"
        facts = facts_of(self.usual)
        if facts not in TAKEABLE:
            return f"the model {facts}"
        try:
            _ = self.states
        except Exception as error:  # noqa: BLE001 - whatever the module's own pass raises
            return f"its own pass raises {type(error).__name__}"
        return ""

    @cached_property
    def usual(self) -> Case:
        """The case of the zoo, whose tokens are several: of one position alone no matrix can be told."""
        return Case(self.made.module)

    @cached_property
    def case(self) -> Case:
        """The case of the zoo with these tokens and positions."""
        case = Case(self.made.module, windows=self.drawn.windows, n_rows=2)
        case.tokens, case.positions = self.made.plain, self.made.positions
        return case

    @cached_property
    def states(self) -> list[Tensor]:
        """What enters each layer and what leaves the last, by the module's own pass."""
        path = self.case.oracle.path
        return own_states(self.made.module, path, self.made.plain)

    def load(self, _: object) -> float:
        """A model must not come of what none can come of."""
        if self.due:
            raise WrongError(math.inf, f"taken, though {self.due}")
        return 0.0

    def capture(self, found: Tensor) -> float:
        """The states at all depths: to the bit in memory, and of a file, whose model another code has built, nearly."""
        self._of_tokens()
        expected = torch.stack([state.double() for state in self.states])
        if self.drawn.file:
            tolerance = FLOAT64 if self.drawn.loaded == "float64" else FLOAT32
            return self._within(found, expected, tolerance, "the states")
        if not torch.equal(found, expected):
            raise WrongError(relative(found, expected), "the states, to the bit")
        return 0.0

    def jacobian(self, found: Tensor) -> float:
        """Two rows by autograd and a column by differences."""
        self._of_tokens()
        case, layer = self.case, self.drawn.layer % len(self.case.oracle.layers)
        dtype = self.drawn.loaded if self.drawn.file else self.drawn.dtype
        if dtype in HALF:
            states = [state.double() for state in self.states[:-1]]
            rows = Oracle(self.made.module, case.tokens).rows(case.positions, case.rows, states=states)[layer]
            return self._within(case.rows @ found.double(), rows, HALF[dtype], "rows of J", rows - case.rows)
        rows, column = case.expected_rows[layer], case.oracle.columns(layer, case.positions, case.direction)
        rest = column - case.direction
        own = relative(rows @ case.direction, column @ case.rows.T, rest @ case.rows.T)
        assert own < FLOAT64, f"the oracle's derivatives differ from its differences by {own:.1e}"
        found = found.double()
        if dtype == "float32":
            error = self._within(case.rows @ found, rows, FLOAT32, "rows of J", rows - case.rows)
            return max(error, self._within(found @ case.direction, column, FLOAT32, "a column of J", rest))
        error = case.agree(case.rows @ found, rows, "rows of J", rows - case.rows)
        return max(error, case.agree(found @ case.direction, column, "a column of J", rest))

    def continuity(self, found: dict[str, np.ndarray], model: LanguageModel) -> float:
        """|cos| of numpy's leading singular vectors of matrices that act as the model's do."""
        return self._compared(found, [model.projections(layer) for layer in range(model.n_layers)])

    def _compared(self, found: dict[str, np.ndarray], layers: list[Any]) -> float:
        for layer, named in enumerate(layers):
            explained(self.usual.oracle, layer, named)
        worst = 0.0
        for name in {name for named in layers for name in named}:
            if f"input_continuity {name}" not in found or not all(name in named for named in layers):
                continue
            factors = [np.linalg.svd(named[name].double().numpy(), full_matrices=False) for named in layers]
            clear = [s[0] - s[1] > GAP * s[0] if len(s) > 1 else True for _, s, _ in factors]
            for side, vectors in (("input", [f[2][0] for f in factors]), ("output", [f[0][:, 0] for f in factors])):
                for pair, (one, other) in enumerate(itertools.pairwise(vectors)):
                    if clear[pair] and clear[pair + 1]:
                        expected = torch.tensor(abs(float(one @ other)))
                        value = torch.tensor(float(found[f"{side}_continuity {name}"][pair]))
                        what = f"the {side} continuity of {name}"
                        worst = max(worst, self._within(value, expected, 1e-3, what, torch.tensor(1.0)))
        return worst

    def reading(self, found: dict[str, np.ndarray], model: LanguageModel | None) -> float:
        """The same of the file; a file of which no model comes has to give what the module has, or nothing."""
        if model is None:
            with contextlib.suppress(InputError):
                model = probe.load_model(self.made.module)
        if model is None:
            return 0.0
        return self._compared(found, [model.projections(layer) for layer in range(model.n_layers)])

    def _of_tokens(self) -> None:
        if self.drawn.tokens in NO_TOKENS:
            raise WrongError(math.inf, f"an answer to tokens that are none ({self.drawn.tokens})")

    def _within(
        self, found: Tensor, expected: Tensor, tolerance: float, what: str, scale: Tensor | None = None
    ) -> float:
        error = relative(found, expected, scale)
        if not error <= tolerance:
            raise WrongError(error, what)
        return error


def judged(answers: Answers, judge: Judge) -> list[Step]:
    """Judge each answer."""
    with_model = {"continuity", "reading"}
    steps = []
    for step, answer in answers.found.items():
        if isinstance(answer, InputError):
            several = "\n" in str(answer)
            outcome, line = ("traceback", "a refusal of several lines: ") if several else ("refused", "")
            steps.append(Step(step, outcome, line + " ".join(str(answer).split())))
        elif isinstance(answer, Exception):
            steps.append(Step(step, "traceback", f"{type(answer).__name__}: {' '.join(str(answer).split())[:300]}"))
        else:
            try:
                more = (answers.model,) if step in with_model else ()
                steps.append(Step(step, "exact", error=getattr(judge, step)(answer, *more)))
            except WrongError as error:
                steps.append(Step(step, "wrong", error.what, error.error))
            except Exception as error:  # noqa: BLE001 - a case that is not judged is not exact
                said = f"the oracle: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                steps.append(Step(step, "traceback", said))
    return steps


@contextlib.contextmanager
def _cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("PROBE_CACHE")
    os.environ["PROBE_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PROBE_CACHE"]
        else:
            os.environ["PROBE_CACHE"] = before


def _blamed(step: Step, plainly: Answers, around: str) -> Step:
    """A step, wrong if it was refused for no other reason than what surrounds the call."""
    refused_plainly = isinstance(plainly.found.get(step.step), Exception) or plainly.model is None
    if step.outcome != "refused" or refused_plainly:
        return step
    return replace(step, outcome="wrong", line=f"refused in {around} alone: {step.line}", error=math.inf)


def run(number: int, seed: int) -> Result:
    """Make a case, ask the library, and judge.

    Args:
        number: Number of the case.
        seed: Seed of the drawing.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        (folder / "made").mkdir()
        for attempt in range(ATTEMPTS):
            drawn = draw(number, seed, attempt)
            try:
                made = make(drawn, folder / "made")
                break
            except NothingMadeError:
                emptied(folder / "made")
        else:
            raise AssertionError(f"case {number} of seed {seed} gives no module in {ATTEMPTS} attempts")
        judge = Judge(made, drawn)
        due = judge.due or ("the tokens are none" if drawn.tokens in NO_TOKENS else "")
        with _cache(folder / "cache"):
            # first, because what threads do to a process may stay
            plainly = asked(made, replace(drawn, around="nothing")) if not due and drawn.around != "nothing" else None
            if drawn.around == "threads":
                # torch's hooks act on the passes of every thread, so that each has an object of its own
                of_its_own = [made, replace(made, given=copy.deepcopy(made.given))]
                with ThreadPoolExecutor(2) as pool:
                    both = list(pool.map(asked, of_its_own, [drawn] * 2))
            else:
                both = [asked(made, drawn)]
            steps = [step for answers in both for step in judged(answers, judge)]
            if plainly is not None:
                steps = [_blamed(step, plainly, drawn.around) for step in steps]
    worst = max(steps, key=lambda step: OUTCOMES.index(step.outcome))
    line = f"error {max(step.error for step in steps):.0e}" if worst.outcome == "exact" else worst.line
    line = line if worst.outcome == "exact" else f"{worst.step}: {line}"
    line += f" ({worst.error:.1e})" if worst.outcome == "wrong" else ""
    return Result(number, drawn.name, worst.outcome, line, due, steps, time.perf_counter() - start)
