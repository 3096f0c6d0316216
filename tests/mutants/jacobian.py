"""Errors to plant in the formulas of `probe.jacobian` and `probe.replay`: file -> groups that one test watches."""

from __future__ import annotations

EXACT = "tests/jacobian/test_jacobian.py::test_all_methods_are_brute_force_in_float64"
GPT2, NEOX, LLAMA, GEMMA, OPT = (f"{EXACT}[{name}]" for name in ("gpt2", "gpt_neox", "llama", "gemma3", "opt"))
DETACHED = "tests/jacobian/test_jacobian.py::test_detached_methods_agree[gpt2]"
CAPPED = "tests/jacobian/test_jacobian.py::test_soft_caps_and_sinks_are_linearised_too"
REBUILT = "tests/jacobian/test_paths.py::test_detached_jacobians_rebuild_the_output"
MEAN = "tests/jacobian/test_paths.py::test_the_mean_and_the_spread_are_those_of_the_single_matrices"
NORMED = "tests/jacobian/test_jacobian.py -k a_norm_of"
KINDS = "tests/replay/test_kinds.py"
TOY = "tests/jacobian/test_paths.py::test_a_linear_residual_block_has_j_equal_to_i_plus_w"

JACOBIAN: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/jacobian/analytic.py": [
        (
            LLAMA,
            [
                ("baddbmm_(mlp, attention)", "baddbmm_(attention, mlp)"),
                ("- _by_position(point.output)[rows])", "+ _by_position(point.output)[rows])"),
                ("surprise = live * slope *", "surprise = live *"),
                ("value = live[..., None] * standard", "value = (0 * live[..., None] + 1) * standard"),
                ("torch.cat([second, -first], -1)", "torch.cat([-second, first], -1)"),
                ("(slope * upward)[..., None]", "slope[..., None]"),
                (".addcmul_(standard.up, active[..., None])", ".addcmul_(standard.up, slope[..., None])"),
            ],
        ),
        (
            GEMMA,
            [
                ("matrix = outer.times(matrix)", "matrix = outer.after(matrix)"),
                ("query = _normed(standard, primal, form.query_norm,", "query = _normed(standard, primal, None,"),
                ("key = _normed(standard, primal, form.key_norm,", "key = _normed(standard, primal, None,"),
            ],
        ),
        (NEOX, [("return attention.add_(mlp)", "return attention.baddbmm_(mlp, attention)")]),
        (OPT, [('matrices["q"] * attrgetter(form.query_scale)(copy)', 'matrices["q"]')]),
        (GPT2, [("if detached else slope", "if detached else active")]),
        (DETACHED, [("mixed = value.flatten(1, 2)\n    else", "mixed = 2 * value.flatten(1, 2)\n    else")]),
    ],
    "probe/jacobian/norms.py": [
        (
            GPT2,
            [
                ("share = point.shape[-1] ** -0.5", "share = point.shape[-1] ** -1"),
                ("directions.append(torch.full_like(point, share))", "pass"),
                ("directions.append(centred * inverse * share)", "directions.append(centred * share)"),
                ("matrix.baddbmm_(matrix @ self.directions, self.directions.mT, alpha=-1)", "pass"),
                ("point = point - point.mean(-1, keepdim=True)", "pass"),
            ],
        ),
        (GEMMA, [(".to(point.dtype) + gain_offset", ".to(point.dtype)")]),
        (DETACHED, [("    if not detached:\n", "    if True:\n")]),
    ],
    "probe/jacobian/detached.py": [
        (REBUILT, [("(centred * inverse.detach())", "(centred * inverse)")]),
        (REBUILT, [("active: Tensor = self.activation(x).detach()", "active: Tensor = self.activation(x)")]),
        (DETACHED, [("active if self.gates else", "active if not self.gates else")]),
    ],
    "probe/model/architectures/form.py": [
        (
            NORMED,
            [
                ("path if path in paths else None", "None"),
                ("in known for name", "in known or True for name"),
            ],
        ),
    ],
    "probe/model/architectures/gpt.py": [(NORMED, [('query_norm="self_attn.q_layernorm"', "query_norm=None")])],
    "probe/replay/attention.py": [
        (
            LLAMA,
            [
                ("scores = self.live * self.slope *", "scores = self.slope *"),
                ("- scores.sum(-1, keepdim=True) * self.output", ""),
                ("Tensor = self.output + self.live @", "Tensor = self.output +"),
                ("query_map -= (output - centre[:, :, None])", "query_map -= (output + centre[:, :, None])"),
                ("_query_map(shares * slope,", "_query_map(shares,"),
            ],
        ),
        (CAPPED, [("slope * (1 - capped.square())", "slope * (1 - capped)")]),
        (CAPPED, [("column = sinks.to(scores.dtype)", "column = -sinks.to(scores.dtype)")]),
        (REBUILT, [(".softmax(-1).detach()", ".softmax(-1)")]),
    ],
    "probe/replay/context.py": [
        (f"{KINDS} -k write_of_others", [("only_others=True)", "only_others=False)")]),
        (f"{KINDS} -k token_is_alone", [("if axes is None or not axes.own:", "if True:")]),
    ],
    "probe/replay/recorded.py": [
        (f"{KINDS} -k pushed_state", [("if proved and self._moves_alike(way, layer):", "if proved:")]),
    ],
    "probe/replay/axes.py": [
        (
            f"{KINDS} -k differentiated",
            [
                ("seen = seen.masked_fill(~before[:, None], hidden)", "pass"),
                ("index_select(axes.window, windows", "index_select(axes.window, 0 * windows"),
            ],
        ),
    ],
    "probe/replay/carried.py": [
        (f"{KINDS} -k differentiated", [("saved.clone() if", "saved if")]),
    ],
    "probe/jacobian/products.py": [
        (
            MEAN,
            [
                ("self.squares += before * (value - self.mean)", "self.squares += before * before"),
                ("(self.squares / self.count).sqrt()", "(self.squares / (self.count - 1)).sqrt()"),
            ],
        ),
        (TOY, [("block.double() @ product", "product @ block.double()")]),
    ],
    "probe/jacobian/rows.py": [
        (TOY, [("left[:, out_position : out_position + 1]", "left[:, in_position : in_position + 1]")]),
    ],
}
