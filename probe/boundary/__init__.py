"""What public functions do with the arguments that they are given, before they compute.

`public` reads a function's annotations. It converts what says the same in another form (numpy arrays and nested lists
where tensors stand, numpy's integers where an `int` stands, texts where a `Path` stands) and refuses what the
annotation excludes, in one line that names the argument, what must hold, what came, and the repair. What an annotation
cannot say stands beside it as a limit:

    @public(draws=at_least(1), level=between(0, 1), states=(filled, finite))
"""

from __future__ import annotations

from probe.boundary.calls import public
from probe.boundary.kinds import shown
from probe.boundary.limits import Limit, at_least, between, filled, finite, within

__all__ = ["Limit", "at_least", "between", "filled", "finite", "public", "shown", "within"]
