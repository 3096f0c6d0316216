"""Errors to plant in the formulas of `probe.jacobian` and `probe.replay`: file -> groups that one test watches."""

from __future__ import annotations

EXACT = "tests/jacobian/test_jacobian.py::test_all_methods_are_brute_force_in_float64"
GPT2, NEOX, LLAMA, GEMMA, OLMO = (f"{EXACT}[{name}]" for name in ("gpt2", "gpt_neox", "llama", "gemma3", "olmo3"))
DETACHED = "tests/jacobian/test_jacobian.py::test_detached_methods_agree[gpt2]"
CAPPED = "tests/jacobian/test_jacobian.py::test_soft_caps_and_sinks_are_linearised_too"
REBUILT = "tests/jacobian/test_paths.py::test_detached_jacobians_rebuild_the_output"
MEAN = "tests/jacobian/test_paths.py::test_the_mean_and_the_spread_are_those_of_the_single_matrices"
KINDS = "tests/replay/test_kinds.py"
TOY = "tests/jacobian/test_paths.py::test_a_linear_residual_block_has_j_equal_to_i_plus_w"


def row(name: str) -> str:
    """Name the test of an architecture's row."""
    return f"tests/jacobian/test_rows.py::test_every_row_composes_the_derivative_of_the_module_s_own_pass[{name}]"


JACOBIAN: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/jacobian/margins.py": [
        (
            "tests/jacobian/test_margins.py",
            [
                ("(one != another).any(1)", "(one == one).any(1)"),
                ("torch.minimum(margin, gaps.reshape(count, -1).amin(1))", "gaps.reshape(count, -1).amin(1)"),
                ("scores.max(dim, keepdim=True)", "input.double().max(dim, keepdim=True)"),
                ("(sign * values.double()).min(dim", "(sign * values.double()).max(dim"),
                ("indices.scatter(dim, place, other)", "indices"),
                ("every.gather(1, where.to(every.device))", "every[:, : where.shape[1]]"),
            ],
        ),
    ],
    "probe/model/mixtures.py": [
        (
            "tests/model/test_mixtures.py",
            [
                ("torch.ones_like(weights[..., one])", "weights[..., one]"),
                ("return values if self.part", "return indices.to(values) if self.part"),
                (
                    ".reshape(self.count, -1, every.shape[-1]).sum(0)",
                    ".reshape(-1, self.count, every.shape[-1]).sum(1)",
                ),
                ("return _item(mixture, *one)", "return None"),
                ("_makes_up(sums[0], sums[1]", "_makes_up(sums[1], sums[1]"),
            ],
        ),
    ],
    "probe/jacobian/analytic.py": [
        (
            LLAMA,
            [
                ("baddbmm_(mlp, attention)", "baddbmm_(attention, mlp)"),
                ("-1, mixed.shape[-1]).baddbmm_(factor, weight)", "-1, mixed.shape[-1]).add_(0 * weight.sum())"),
                ("neurons.addcmul_(matrix, slope)", "neurons.add_(matrix)"),
            ],
        ),
        (GEMMA, [("matrix = outer.times(matrix)", "matrix = outer.after(matrix)")]),
        (OLMO, [("mixed.baddbmm_(out, directions.mT @", "mixed.baddbmm_(0 * out, directions.mT @")]),
        (NEOX, [("attention.add_(mlp) if standard.parallel", "attention if standard.parallel")]),
        (row("granite"), [("matrix.mul_(factor)", "matrix")]),
        (row("bitnet"), [("neurons if inner is None else inner.times(neurons)", "neurons")]),
        (row("youtu"), [("columns.append(norm.after(_mixed(", "columns.append((_mixed(")]),
        (row("sarvam_mla"), [("mixed += torch.cat(columns, -1) @", "mixed += 0 * torch.cat(columns, -1) @")]),
        (
            row("diffllama"),
            [('pairs, heads = Pairs(projections["o"].module), heads // 2', "pairs, heads = None, heads // 2")],
        ),
        (
            "tests/jacobian/test_rows.py::test_a_detached_first_position_is_linear",
            [("form.head_norm is not None and", "False and")],
        ),
        (row("afmoe"), [('sizes["attention_gate"] = heads', 'sizes["attention_gate"] = 1')]),
        (row("qwen2_moe"), [("written += experts.shared_gate[rows] *", "written += 0 * experts.shared_gate[rows] *")]),
    ],
    "probe/jacobian/between.py": [
        (LLAMA, [("by_head.permute(3, 0, 2, 1, 4)", "by_head.permute(0, 3, 2, 1, 4)")]),
        (row("minicpm3"), [("return columns.reshape(", "return 0 * columns.reshape(")]),
    ],
    "probe/jacobian/primal.py": [
        (row("axk1"), [("if norm is not None and norm.startswith(", "if norm is None and norm.startswith(")]),
        (OLMO, [("cores[name] = cores[name] * by_head(norm.scale)[..., 0][:, :, None]", "cores[name] = cores[name]")]),
        (NEOX, [("joint.index_select(-1, order.argsort())", "joint")]),
        (DETACHED, [('if detached and "gate" not in leaves:', "if False:")]),
    ],
    "probe/jacobian/experts.py": [
        (
            row("mixtral"),
            [
                ("total.addmm_(primal.given[n].T, primal.weight_slopes[n])", "pass"),
                ("slopes.unflatten(0, choice.shape) * weights[..., None]", "slopes.unflatten(0, choice.shape)"),
            ],
        ),
        (row("gpt_oss"), [("pieces = (slice(0, None, 2), slice(1, None, 2)) if self.interleaved else", "pieces =")]),
        (row("glm4_moe"), [('for name in ("experts", "shared")', 'for name in ("experts",)')]),
    ],
    "probe/jacobian/proof.py": [
        (
            "tests/jacobian/test_jacobian.py -k changes_a_block_s_derivative",
            [
                ("if known[1] is not None:", "if False:"),
                ("found[key][0] == now", "True"),
            ],
        ),
    ],
    "probe/jacobian/norms.py": [
        (
            GPT2,
            [
                ("share = point.shape[-1] ** -0.5", "share = point.shape[-1] ** -1"),
                ("[torch.full_like(point, share)] if is_centred else []", "list[Tensor]()"),
                ("directions.append(centred * inverse * share)", "directions.append(centred * share)"),
                ("matrix.baddbmm_(matrix @ self.directions, self.directions.mT, alpha=-1)", "pass"),
                ("point - point.mean(-1, keepdim=True) if law.centred else point", "point"),
            ],
        ),
        (DETACHED, [("    if not detached:\n", "    if True:\n")]),
        (
            REBUILT,
            [("return written + gain * inverse * moved", "return written.detach() + 2 * gain * inverse * moved")],
        ),
    ],
    "probe/jacobian/detached.py": [
        (DETACHED, [("detached_ratio(args[0].detach(), before.detach()) * before", "args[0]")]),
        (
            REBUILT,
            [("torch.where(fixed, output.detach(), output)", "output"), ("return output.detach()", "return output")],
        ),
    ],
    "probe/model/architectures/norms.py": [
        (GEMMA, [("gain = (up - down) / (2 * unit)", "gain = norm.weight")]),
        (GPT2, [("centred = bool((shifted - up).norm() <= 1e-3 * up.norm())", "centred = False")]),
    ],
    "probe/model/architectures/layout.py": [
        (row("codegen"), [("pieces[self.parts.index(part)]", 'pieces["qkv".index(part)]')]),
        (
            "tests/jacobian/test_rows.py -k falcon",
            [("key_heads = (total // width - heads) // 2", "key_heads = heads")],
        ),
    ],
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
        (f"{KINDS} -k token_is_alone", [("calls = self._calls_alone(tokens)", "pass")]),
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
