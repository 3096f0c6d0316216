"""Errors to plant in `probe.boundary`: file -> groups that the same tests watch."""

from __future__ import annotations

KINDS = "tests/boundary/test_kinds.py"

BOUNDARY: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/boundary/arrays.py": [
        (
            KINDS,
            [
                ("elif known[0] != size:", "elif False:"),
                ("if not axis.broadcast or (both", "if (both"),
                ("return max(one, other) if 1 in (one, other) else None", "return max(one, other)"),
                ("if self._tensor and value.is_meta:", "if False:"),
                ("not in self._dtypes:", "in ():"),
                ("        sizes.update(agreed)\n", ""),
                ("elif axis.size is not None and size != axis.size:", "elif False:"),
                ('array.astype(array.dtype.newbyteorder("="), copy=False)', "array"),
            ],
        )
    ],
    "probe/boundary/kinds.py": [
        (
            KINDS,
            [
                ("isinstance(value, kind) and not isinstance(value, bool)", "isinstance(value, kind)"),
                ("type(value) is type(each) and value == each", "value == each"),
                ("not hasattr(kind, member) and not hasattr(value, member)", "not hasattr(value, member)"),
                ('or hasattr(value, "shape") or not', "or not"),
                ("for converting in (False, True) if convert", "for converting in (True,) if convert"),
            ],
        )
    ],
    "probe/boundary/limits.py": [
        (
            KINDS,
            [
                ("value >= bound", "value > bound"),
                ("low < value < high", "low <= value <= high"),
                ("(low <= value) & (value <= high)", "(low < value) & (value < high)"),
                ("return _all(value.isfinite())", "return True"),
                ("return bool(count())", "return True"),
            ],
        )
    ],
    "probe/boundary/calls.py": [
        (
            KINDS,
            [
                ("argument = self._named.get(name, self._others)", "argument = self._named.get(name)"),
                ("        for limit in self.limits:", "        for limit in ():"),
                ("made.__init__ = _guarded(made.__init__, limits)", "pass"),
            ],
        )
    ],
}
