"""Errors to plant in the formulas of `probe.graphs` and of amplification: file -> groups that one test watches."""

from __future__ import annotations

BUILD = "tests/graphs/test_graphs.py::TestBuilding"
FOUND = "tests/graphs/test_graphs.py::TestCommunities"
NULLS = "tests/graphs/test_nulls.py"
PARTITION = "tests/graphs/test_partition.py"
TOPOLOGY = "tests/graphs/test_topology.py"
AMPLIFICATION = "tests/spectra/test_amplification.py"

GRAPHS: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/graphs/graph.py": [
        (
            "tests/graphs/test_graphs.py::TestGraph",
            [
                (
                    "float(np.abs(self.weights).sum()) / max(n_pairs(self.n_nodes), 1)",
                    "float(self.weights.sum()) / max(n_pairs(self.n_nodes), 1)",
                ),
                ("return n * (n - 1) // 2", "return n * (n + 1) // 2"),
                ("doubled = np.abs(np.repeat(self.weights, 2))", "doubled = np.repeat(self.weights, 2)"),
                ("doubled = np.abs(np.repeat(self.weights, 2))", "doubled = np.abs(np.tile(self.weights, 2))"),
            ],
        ),
    ],
    "probe/graphs/build.py": [
        (
            BUILD,
            [
                ("centred.mul_(torch.where(length > rounding, 1 / length, 0.0))", "centred.div_(length)"),
                ("torch.promote_types(states.dtype, torch.float32)", "states.dtype"),
                (".sub_(mean.to(dtype))", ""),
                ("    shrunk = (1 - shrinkage) *", "    shrunk = (1 + shrinkage) *"),
                ("shrunk.diagonal().add_(shrinkage)", "shrunk.diagonal().add_(0)"),
                ("-1.0 if self.kind", "1.0 if self.kind"),
                ("torch.finfo(matrix.dtype).tiny).rsqrt()", "torch.finfo(matrix.dtype).tiny).reciprocal()"),
                ("+ coupling[:, start : start + BLOCK].mT)", "- coupling[:, start : start + BLOCK].mT)"),
                (".mT).double() / 2", ".mT).double()"),
                ("coupling.abs() if magnitude else coupling", "coupling"),
                ('r.abs_().clamp_(max=1) if self.kind == "absolute"', 'r.clamp_(max=1) if self.kind == "absolute"'),
            ],
        ),
        (
            NULLS,
            [
                ("self.graph(basis.mT @ self.matrix @ basis)", "self.graph(basis @ self.matrix @ basis.mT)"),
                ("self.graph(basis.mT @ self.matrix @ basis)", "self.graph(self.matrix)"),
                ("found.gather(0, order.to(found.device))", "found[order[:, 0]]"),
            ],
        ),
    ],
    "probe/graphs/sparsify.py": [
        (
            BUILD,
            [
                ("block.abs().topk(k, dim=1)", "block.topk(k, dim=1)"),
                ("block.scatter_(1, row, 0)", "block.scatter_(1, row, 2)"),
                ("torch.minimum(row, near) * n + torch.maximum(row, near)", "row * n + near"),
                ("weights.abs().topk(count)", "weights.topk(count)"),
                (") > row", ") >= row"),
                ("(1.0 if density is None else density) * n_pairs(n)", "(1.0 if density is None else density) * n"),
                ("start += len(block)", "start += 2 * len(block)"),
            ],
        ),
    ],
    "probe/graphs/algorithms.py": [
        (
            FOUND,
            [
                ("gamma * (size * (size - 1) / 2).sum()", "gamma * (size * size / 2).sum()"),
                ("float(inside - gamma * (size", "float(inside + gamma * (size"),
                ("(positive - negative) / total", "(positive + negative) / total"),
                ("/ (4 * side.weights.sum())", "/ (2 * side.weights.sum())"),
                ("np.square(volume).sum() / (4", "volume.sum() / (4"),
                ("resolution * graph.mean_weight", "resolution"),
                ("(gamma, 0.0 if self.objective", "(gamma, gamma if self.objective"),
                ("layer_weights=[1, -1]", "layer_weights=[1, 1]"),
                ("graph.with_weights(np.abs(graph.weights)) if", "graph.with_weights(graph.weights) if"),
                ('which="LA"', 'which="SA"'),
                ("graph.strength[linked] ** -0.5", "graph.strength[linked] ** 0.5"),
                ("rows = vectors / np.maximum(length, np.finfo(float).tiny)", "rows = np.abs(vectors)"),
                ("labels = np.arange(graph.n_nodes) + count", "labels = np.zeros(graph.n_nodes, dtype=np.int64)"),
                ("igraph.set_random_number_generator(random)", "pass"),
                ("igraph.set_random_number_generator(random.Random(seed))", "pass"),
                ("optimiser.set_rng_seed(seed)", "pass"),
                ("partition.from_coarse_partition(aggregate)\n", "pass\n"),
            ],
        ),
    ],
    "probe/graphs/detect.py": [
        (
            NULLS,
            [
                ('profile["stability"].values - null.mean(axis=0)', 'profile["stability"].values'),
                ("np.where(count >= 2, excess, np.nan)", "excess"),
                ("excess[best] - error - 1e-9", "excess[best] - 1e-9"),
                ("& (count >= least_communities)", ""),
                ("near[np.argmin(grid[near])]", "near[np.argmax(grid[near])]"),
                ("null.std(axis=0, ddof=1) / np.sqrt(len(null))", "0 * null.std(axis=0, ddof=1)"),
                ("bool(excess[best] > least_excess)", "True"),
                ("p_value(self.quality, self.null_quality)", "p_value(-self.quality, -self.null_quality)"),
                ("np.quantile(self.null_quality, 0.95)", "np.quantile(self.null_quality, 0.05)"),
            ],
        ),
        (
            FOUND,
            [("resolution, seeds, seed)\n    labels", "resolution, seeds, 0)\n    labels")],
        ),
    ],
    "probe/graphs/nulls.py": [
        (
            NULLS,
            [
                ("np.random.default_rng(seed).permutation(graph.weights)", "np.ones(graph.n_edges)"),
                ("changed.rewire(n=trials_per_edge * graph.n_edges)", "changed.rewire(n=1)"),
                ("middle = np.cumsum(count) - count / 2", "middle = np.cumsum(count)[::-1] - count / 2"),
                ("(groups * middle / graph.n_nodes)", "(middle / graph.n_nodes)"),
                ("graph.null(seed) if graph.null is not None else rewired(graph, seed)", "rewired(graph, seed)"),
            ],
        ),
    ],
    "probe/graphs/partition.py": [
        (
            PARTITION,
            [
                ("np.lexsort((first, -size))", "np.lexsort((-size, first))"),
                ("np.lexsort((first, -size))", "np.lexsort((first, size))"),
                ("joint / n * np.log(joint / expected_joint)", "joint / n * np.log(joint)"),
                ("(information - chance) / (ceiling - chance)", "information / ceiling"),
                ("(_entropy(size_a, n) + _entropy(size_b, n)) / 2", "max(_entropy(size_a, n), _entropy(size_b, n))"),
                ("np.maximum(1, x + sizes_b - n)", "np.maximum(1, x - sizes_b)"),
                ("- log_factorial[x - joint]", "- log_factorial[x]"),
                ("np.repeat(times_b, terms)", "np.repeat(1, terms.sum())"),
                ("total += times * float(", "total += float("),
                ("np.log(n * joint / (x * y))", "np.log(joint / (x * y))"),
                ("(total - 2 * table.sum(axis=1))", "(total - table.sum(axis=1))"),
                ("np.sqrt((runs - 1) / runs *", "np.sqrt(1 / runs *"),
                ("total / (runs * (runs - 1))", "total / runs**2"),
                ("resolution_parameter=0.5", "resolution_parameter=0.9"),
                ("together.data >= 0.5 * runs", "together.data > 0"),
                ("(together.col > together.row + start)", "(together.col > together.row)"),
                ("node_sizes=size.tolist()", "node_sizes=[1] * len(size)"),
                ("(share * size[i] * size[j]).tolist()", "share.tolist()"),
            ],
        ),
    ],
    "probe/graphs/topology.py": [
        (
            TOPOLOGY,
            [
                ("(abs(adjacency) @ membership)", "(adjacency @ membership)"),
                ("adjacency.maximum(0)", "adjacency.minimum(0)"),
                ("(-adjacency).maximum(0)", "adjacency.maximum(0)"),
                ("1 - _ratio(inside, graph.strength)", "_ratio(inside, graph.strength)"),
                ('np.where(graph.degree > 0, measures["within_module_z"], np.nan)', 'measures["within_module_z"]'),
                ("np.square(towards).sum(axis=1),", "towards.sum(axis=1),"),
                ("np.square(away)) / np.maximum(size, 1)", "np.square(away)) / np.maximum(size - 1, 1)"),
                ("np.where(flat[labels], 0.0,", "np.where(flat[labels], 1.0,"),
                ("eigsh(abs(graph.adjacency())", "eigsh(graph.adjacency()"),
                ("(unit / weight).tolist()", "(weight / unit).tolist()"),
                ("np.flatnonzero(core == core.max())", "np.flatnonzero(core > 0)"),
                ("distance[np.arange(len(inner)), inner] = np.inf", "pass"),
                ("pairs = n_pairs(graph.n_nodes - 1)", "pairs = n_pairs(graph.n_nodes)"),
                ("volume - 2 * within", "volume - within"),
                ("np.minimum(volume, volume.sum() - volume)", "volume"),
                ('"internal_density": _ratio(links, pairs)', '"internal_density": _ratio(within, pairs)'),
                ('"internal_weight": _ratio(within, pairs)', '"internal_weight": _ratio(within, links)'),
                ("known = np.isfinite(of_node.values)", "known = np.ones(len(labels), dtype=bool)"),
            ],
        ),
    ],
    "probe/spectra/amplification.py": [
        (
            AMPLIFICATION,
            [
                ("gain = square.sum(-2) @ member / size", "gain = square.sum(-1) @ member / size"),
                ("gain = square.sum(-2) @ member / size", "gain = square.sum(-2) @ member"),
                ("(member * (square @ member)).sum(-2) / size", "(square @ member).sum(-2) / size"),
                ("leak=(gain - inside).clamp(min=0).sqrt()", "leak=gain.sqrt() - inside.sqrt()"),
                ("dim2=-1) @ member / size,", "dim2=-1) @ member,"),
                ("matrix[..., members, :][..., members]", "matrix[..., members, :][..., members.flip(0)]"),
                ("inside = q.mT @ image", "inside = image[..., : q.shape[-1], :]"),
                ("outside = image - q @ inside", "outside = image"),
                ("root = q.shape[-1] ** 0.5", "root = q.shape[-2] ** 0.5"),
                ("q: Tensor = torch.linalg.qr(real(basis)).Q", "q = real(basis)"),
                ("rows.double().square().sum(0)", "rows.double().abs().sum(0)"),
                ("return total / self.count", "return total"),
                ("_parts(operator)[1].sum(-2).sqrt()", "_parts(operator)[1].sum(-1).sqrt()"),
                ("between = (square + square.mT) / 2", "between = square"),
                ("_moments(column - diagonal, -between, size)", "_moments(column, -between, size)"),
                ("_moments(column - diagonal, -between, size)", "_moments(column - diagonal, between, size)"),
                ("(p1 - p2) * t.square().sum(-1)", "p1 * t.square().sum(-1)"),
                ("4 * (p2 - p3) * (t * r).sum(-1)", "2 * (p2 - p3) * (t * r).sum(-1)"),
                ("2 * (p2 - 2 * p3 + p4) * h.square()", "2 * (p2 - p3) * h.square()"),
                ("4 * (p3 - p4) * r.square().sum(-1)", "4 * (p3 + p4) * r.square().sum(-1)"),
                ("mean_t + (size - 1) * mean_h", "mean_t + size * mean_h"),
                ("variance.clamp(min=0) / size**2", "variance.clamp(min=0) / size"),
                ("h = h - torch.diag_embed(h.diagonal(dim1=-2, dim2=-1))\n", "\n"),
                ("(size - taken) / (d - taken)", "size / d"),
                ("(value - mean) / variance.clamp(min=0).sqrt()", "(value - mean) / variance.clamp(min=0)"),
                ("spread = variance > 1e-20 * mean.square()", "spread = variance >= 0"),
                ('"gain": found.gain.square()', '"gain": found.gain'),
                ("abscissa.mean(0), abscissa.var(0)", "abscissa.mean(0), abscissa.std(0)"),
            ],
        ),
    ],
}  # fmt: skip
