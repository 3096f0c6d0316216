"""Errors to plant in `probe.training`, in the claims on causes and in the joint figure: file -> groups of one test."""

from __future__ import annotations

NETWORKS = "tests/training/test_training.py"
MEASURES = "tests/training/test_measures.py"
SHIPPED = "tests/training/test_bundled.py"
CLAIMS = "tests/analyses/test_causes_claims.py"
JOINT = "tests/study/test_compare.py"

TRAINING: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "probe/training/activations.py": [
        (
            NETWORKS,
            [
                ("return 0.5 + torch.sigmoid(3 * (root_mean_square(z) - 1))", "return 0.5 + torch.sigmoid(3 * z)"),
                ("return 1.5 * torch.tanh(r) / (0.5 + r) * z", "return 1.5 * torch.tanh(r) / (1.5 + r) * z"),
                ("h - h.mean(-1, keepdim=True) if norm", "h - h.mean() if norm"),
                ("unit if gain is None else gain * unit", "unit if gain is None else unit"),
            ],
        ),
    ],
    "probe/training/loop.py": [
        (
            NETWORKS,
            [
                ("return 0.1 + 0.45 * (1 + math.cos(math.pi * done))", "return 0.5 * (1 + math.cos(math.pi * done))"),
                ("return (step + 1) / rising", "return step / rising"),
                ("moments[name].copy_(saved", "moments[name].mul_(0) if True else (saved"),
            ],
        ),
    ],
    "probe/training/optimisers.py": [
        (
            NETWORKS,
            [
                ("value.mul_(1 - rate * self.weight_decay)", "value.mul_(1 - self.weight_decay)"),
                ("(1 - BETAS[0] ** (step + 1)) / root", "(1 - BETAS[0] ** (step + 2)) / root"),
                ("max(1.0, out / fan_in) ** 0.5", "max(1.0, fan_in / out) ** 0.5"),
            ],
        ),
    ],
    "probe/training/transformer.py": [
        (
            NETWORKS,
            [
                ("return h + written if self.arm.residual else written", "return h + written"),
                ("v = functional.gelu(v) if self.arm.v_nonlinearity else v", "v = v"),
                ("first * cosine - second * sine", "first * cosine + second * sine"),
                ("torch.arange(1, n + 1, device=x.device)[:, None]", "n"),
            ],
        ),
    ],
    "probe/training/measures.py": [
        (
            MEASURES,
            [
                (
                    "return self.values[..., 0] / self.values[..., 1]",
                    "return self.values[..., 1] / self.values[..., 0]",
                ),
                ("first[..., :-1, :] * first[..., 1:, :]", "first[..., :-1, :] * first[..., :-1, :]"),
                ("sums / torch.arange(1, vectors.shape[-1] + 1", "sums / torch.arange(2, vectors.shape[-1] + 2"),
                ("return _squares(vectors).amax(-1)", "return _squares(vectors).amax(-2)"),
                ("(unit[..., :-1, :] * unit[..., 1:, :]).sum(-1)", "(unit[..., :-1, :] * unit[..., 1:, :]).mean(-1)"),
                ("far = wide.mT @ near / values", "far = wide.mT @ near * values"),
                ("(values > hidden)[..., None, :]", "(values > 0)[..., None, :]"),
                ("values = torch.where(finite, eigenvalues", "values = torch.where(finite | True, eigenvalues"),
            ],
        ),
    ],
    "probe/training/bundled.py": [
        (
            SHIPPED,
            [
                ("(count + kinds * probability) / (total + kinds)", "(count + probability) / (total + kinds)"),
                ("learned = ~torch.isin(every.document", "learned = torch.isin(every.document"),
                (
                    "models.BPE(vocab=vocabulary, merges=[])",
                    "models.BPE(vocab=dict(sorted(vocabulary.items())[:99]), merges=[])",
                ),
            ],
        ),
    ],
    "probe/analyses/causes/table.py": [
        (
            CLAIMS,
            [
                ("steps >= (1 - LAST) * steps[-1]", "steps >= 0"),
                ("self.late(values) - self.data", "self.late(values) + self.data"),
            ],
        ),
    ],
    "probe/analyses/causes/claims.py": [
        (
            CLAIMS,
            [
                ("differences[name].min(axis=0)", "differences[name].max(axis=0)"),
                ("np.sort(lower, axis=0)[-min(NEEDED, len(lower))]", "np.sort(lower, axis=0)[-1]"),
                ("holds = (differences > margin).all(axis=1)", "holds = (differences > margin).any(axis=1)"),
                ("excess[:, 0] / np.where(total > 0, total, 1.0)", "excess[:, 0]"),
                ("seed_interval(raised, full)", "seed_interval(full, raised)"),
            ],
        ),
    ],
    "probe/study/joint.py": [
        (
            JOINT,
            [
                ("stream_sides(name)[0]", '("input", "output")[name in "qkv"]'),
                ("stats.beta.ppf(upper, leading / 2", "stats.beta.ppf(upper, leading"),
                ("upper = 1 - np.array", "upper = np.array"),
                ("generator)[:leading]", "generator)[leading : 2 * leading] * 0.5"),
            ],
        ),
    ],
}
