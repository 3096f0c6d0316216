"""Errors to plant in `probe.patching` and in runs of suffixes: file -> groups that one test watches."""

from __future__ import annotations

CROSSING = "tests/patching/test_crossing.py"

PATCHING: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/replay/suffix.py": [
        (
            "tests/replay/test_suffix.py -k llama",
            [
                (".before(start, windows)", ".before(start, 0 * windows)"),
                ("windows, past, start, block)", "windows, past, 0, block)"),
                (
                    "torch.cat([before, states], dim=1), windows, block)[:, start:]",
                    "torch.cat([before, states], dim=1), windows, block)",
                ),
            ],
        ),
    ],
    "probe/patching/effects.py": [
        (
            "tests/patching/test_patched.py -k closed",
            [
                ("picked[..., 0] - picked[..., 1]", "picked[..., 1] - picked[..., 0]"),
                ("logits.logsumexp(-1) - picked[..., 0]", "picked[..., 0] - logits.logsumexp(-1)"),
                ("(logits > picked[..., :1])", "(logits >= picked[..., :1])"),
                ("masked_fill((index < 0).any(-1), torch.nan)", "masked_fill((index < 0).any(-1), 0)"),
            ],
        ),
    ],
    "probe/patching/edits.py": [
        ("tests/patching/test_patched.py -k unequal", [("new = new[self.rows.to(new.device)]", "new = new[:1]")]),
        ("tests/patching/test_intervening.py -k one_by_one", [("max(self.heads) >=", "min(self.heads) + 4 >=")]),
    ],
    "probe/patching/crossing.py": [
        (
            f"{CROSSING} -k llama-resid_pre",
            [("(effect - corrupted[spread])", "(effect - clean[spread])")],
        ),
    ],
    "probe/patching/ladder.py": [
        (
            f"{CROSSING} -k llama",
            [
                ("states[:, 0] = entry[:, position]", "states[:, 0] = entry[:, 0]"),
                ("return 1 - self.source", "return self.source"),
            ],
        ),
        (f"{CROSSING} -k found_out", [("return after[: self.heads] if alike else None", "return after[: self.heads]")]),
    ],
}
