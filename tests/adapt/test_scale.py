"""Many rows: exact where nothing is approximated, near the exact process where something is, linear in memory, and blind to order."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from driftway import adapt
from driftway.adapt import dino_init, dino_train, scale, scale_weights
from driftway.adapt.dino_init import Settings, base_samples, first_stage
from driftway.adapt.distribution_kernel import FORMS, Correlation, DistributionKernel, Embedded, Rows
from driftway.adapt.frame import frame
from driftway.adapt.importance import importance_weights
from driftway.adapt.joint import Joint, joint
from driftway.adapt.learn import Learned
from driftway.adapt.likelihood import log_likelihood
from driftway.adapt.scale import Far, Scale, condition, held, neighbours, summarise, thin
from driftway.adapt.scale_features import channels, coordinates, inducing
from driftway.adapt.scale_weights import weights_of_many
from driftway.adapt.shift import Shift
from driftway.checks import InputError
from driftway.kernels import FullyConnected

DOUBLE = torch.float64
NETWORK = FullyConnected(2, w_std=2**0.5, b_std=0.3)


def keyed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=keyed(seed))


def kernel(d: int = 3, lam: float = 0.9) -> DistributionKernel:
    return DistributionKernel(NETWORK, torch.linspace(1.0, 0.5, d, dtype=DOUBLE), Correlation(torch.tensor([lam], dtype=DOUBLE)),
                              torch.tensor(0.8, dtype=DOUBLE), torch.tensor(0.4, dtype=DOUBLE))  # fmt: skip


class Problem:
    """n source rows and m of the target, their labels, and rows to predict."""

    def __init__(self, n: int = 60, m: int = 6, d: int = 3, outputs: int = 2, seed: int = 0):
        X = normal(n + m, d, seed=seed)
        X[n:] += 0.5
        self.rows, self.m, self.kernel = Rows(X, torch.cat([torch.ones(n), torch.zeros(m)]).long()), m, kernel(d)
        f = torch.stack([(2 * X[:, 0]).sin() + X[:, 1], X[:, 0] * X[:, 2]], 1)[:, :outputs]
        self.y = f + 0.1 * normal(n + m, outputs, seed=seed + 1)
        self.noise, self.weight = torch.linspace(0.02, 0.05, n + m, dtype=DOUBLE), torch.ones(n + m, dtype=DOUBLE)
        self.new = Rows(normal(40, d, seed=seed + 2) + 0.5, torch.zeros(40, dtype=torch.long))
        self.aim = X[n:]

    def exact(self) -> tuple[Tensor, Tensor, Tensor]:
        found = joint(self.kernel.gram(self.rows), self.noise, self.y, target=self.m, weight=self.weight)
        cross = self.kernel.cross(self.new, self.rows)
        return (found.mean(cross), found.variance(cross, self.kernel.diagonal(self.new)),
                found.covariance(cross, self.kernel.gram(self.new)))  # fmt: skip

    def scaled(self, plan: Scale, **options) -> tuple[Joint, Far | None]:
        return condition(self.kernel, self.rows, self.y, self.noise, target=self.m, weight=self.weight, aim=self.aim, scale=plan, **options)

    def predicted(self, found: Joint, far: Far) -> tuple[Tensor, Tensor, Tensor]:
        cross, diagonal, m = far.at(self.kernel, self.new)
        return found.mean(cross) + m, found.variance(cross, diagonal), found.covariance(cross, far.gram(self.kernel, self.new))

    def with_features(self, Z: Tensor, near: Tensor, keep: Tensor | None = None) -> tuple[Joint, Far]:
        """Without the rows that are not kept."""
        keep = torch.arange(len(self.y)) if keep is None else keep
        rows, y, D = self.rows[keep], self.y[keep], (self.noise / self.weight)[keep]
        near = torch.stack([(keep == i).nonzero()[0, 0] for i in near if i in keep])
        m = int((rows.domain == 0).sum())
        far = summarise(self.kernel, inducing(self.kernel, self.rows[Z]), rows, y, D, near, whole=True, target=m)
        noise, weight = self.noise[keep][near], self.weight[keep][near]
        return joint(far.gram(self.kernel, far.rows), noise, y[near] - far.mean, target=m, weight=weight), far


def close(found: tuple[Tensor, ...], right: tuple[Tensor, ...], tolerance: float = 1e-8) -> None:
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_features_of_all_rows_are_the_exact_process() -> None:
    p = Problem()
    near = torch.cat([torch.arange(0, 60, 7), torch.arange(60, 66)])
    found, far = p.with_features(torch.arange(66), near)
    close(p.predicted(found, far), p.exact())
    whole = joint(p.kernel.gram(p.rows), p.noise, p.y, target=p.m, weight=p.weight)
    close(found.leave_one_out(), whole.leave_one_out())


def test_few_rows_and_the_approximation_exact_are_not_approximated() -> None:
    p = Problem()
    for plan in (Scale(), Scale("exact", 5), Scale("inducing", 30)):
        found, far = p.scaled(plan)
        assert far is None
        assert len(found.y) == 66
    assert p.scaled(Scale("inducing", 29))[1] is not None


def test_error_against_the_exact_process_falls_with_the_features() -> None:
    p = Problem(600, 10)
    mean, variance, _ = p.exact()
    errors, spreads = [], []
    for size in (10, 40, 160, 610):
        found = p.predicted(*p.scaled(Scale("inducing", size), near=20))  # pyright: ignore[reportArgumentType]
        errors.append(float((found[0] - mean).square().mean().sqrt()))
        spreads.append(float((found[1] - variance).abs().mean()))
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]
    assert errors[3] < 1e-8
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[3] < 1e-8


def test_near_rows_help() -> None:
    p = Problem(600, 10)
    mean = p.exact()[0]
    errors = [float((p.predicted(*p.scaled(Scale("inducing", 40), near=near))[0] - mean).square().mean().sqrt())  # pyright: ignore
              for near in (5, 150, 500)]  # fmt: skip
    assert errors[0] > 1.2 * errors[1] > 1.44 * errors[2]


def test_the_variance_does_not_collapse_away_from_the_features() -> None:
    p = Problem(600, 10)
    away = replace(p.new, X=p.new.X + 4.0)
    p.new = away
    exact = p.exact()[1]
    for size in (10, 40):
        found = p.predicted(*p.scaled(Scale("inducing", size), near=20))[1]  # pyright: ignore[reportArgumentType]
        assert bool((found > 0.9 * exact).all())
        assert bool((found < p.kernel.diagonal(away)).all())


def test_leave_one_out_is_a_refit() -> None:
    p = Problem()
    Z, near = torch.arange(0, 66, 5), torch.cat([torch.arange(0, 60, 9), torch.arange(60, 66)])
    residuals, variances = p.with_features(Z, near)[0].leave_one_out()
    for i in range(p.m):
        row = 60 + i
        keep = torch.cat([torch.arange(row), torch.arange(row + 1, 66)])
        found, far = p.with_features(Z, near, keep)
        cross, diagonal, m = far.at(p.kernel, p.rows[torch.tensor([row])])
        torch.testing.assert_close(residuals[i], p.y[row] - (found.mean(cross) + m)[0], rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(variances[i], found.variance(cross, diagonal)[0] + p.noise[row], rtol=1e-7, atol=1e-8)


def test_a_row_of_weight_two_is_two_rows() -> None:
    """A near one, and a far one that the features hold."""
    p, twice = Problem(), Problem()
    Z, near = torch.arange(0, 66, 5), torch.cat([torch.arange(0, 60, 9), torch.arange(60, 66)])
    index = torch.cat([torch.arange(66), torch.tensor([9, 10])])
    twice.rows, twice.y, twice.noise, twice.weight = p.rows[index], p.y[index], p.noise[index], p.weight[index]
    p.weight[[9, 10]] = 2.0
    far = summarise(p.kernel, inducing(p.kernel, p.rows[Z]), twice.rows, twice.y, twice.noise, torch.cat([torch.tensor([66]), near]),
                    whole=True, target=6)  # fmt: skip
    found = joint(far.gram(p.kernel, far.rows), twice.noise[far.near], twice.y[far.near] - far.mean, target=6)
    close(p.predicted(found, far), p.predicted(*p.with_features(Z, near)), 1e-7)


@pytest.mark.parametrize("form", [None, *FORMS])
def test_random_features_are_the_kernel_on_average(form: str | None) -> None:
    p = Problem(20, 10)
    k = p.kernel
    if form:
        settings, given = Settings(network=NETWORK, base=8), Shift.from_domains(p.rows.X, p.y, 1 - 3 * (p.rows.domain == 0).long())
        stage = first_stage(frame(given), 1, replace(settings, steps=1))
        k = replace(k, domains=Embedded(base_samples(given, stage, settings), form, torch.tensor(1.5, dtype=DOUBLE)))
    own = k.domains.kernels(p.rows, p.rows).nngp
    h = coordinates(k.domains, p.rows)
    shown = torch.exp(-torch.cdist(h, h).square() / 2) if form == "exponential" else h @ h.mT
    torch.testing.assert_close(shown, own, rtol=1e-7, atol=1e-7)
    found = torch.zeros(30, 30, dtype=DOUBLE)
    for seed in range(8):
        phi = channels(k, p.rows, 1500, keyed(seed))(p.rows)
        torch.testing.assert_close(phi.square().sum(1), k.diagonal(p.rows))
        found += phi @ phi.mT / 8
    K = k.gram(p.rows)
    unit = K.diagonal().sqrt()
    assert float(((found - K) / torch.outer(unit, unit)).abs().max()) < 0.06


def test_random_features_are_a_process_of_their_own() -> None:
    p = Problem()
    found, far = p.scaled(Scale("features", 25))
    assert far is not None
    assert far.near.tolist() == list(range(60, 66))
    phi, new = far.features(p.rows), far.features(p.new)
    naive = joint(phi @ phi.mT, p.noise, p.y, target=p.m)
    cross = new @ phi.mT
    right = naive.mean(cross), naive.variance(cross, new.square().sum(1)), naive.covariance(cross, new @ new.mT)
    close(p.predicted(found, far), right)
    close(found.leave_one_out(), naive.leave_one_out())


def test_features_ask_for_a_network_that_can_be_drawn() -> None:
    p = Problem()
    p.kernel = replace(p.kernel, network=NETWORK * NETWORK)
    with pytest.raises(InputError, match="approximation: expected a FullyConnected network"):
        p.scaled(Scale("features", 25))


def test_rows_to_learn_on_keep_the_target_and_the_shares_of_the_sources() -> None:
    domain = torch.cat([torch.full((600,), 1), torch.full((300,), 2), torch.zeros(20).long()])
    index = thin(domain, Scale(rows=110))
    assert bool((index.diff() > 0).all())
    assert torch.equal(index[-20:], torch.arange(900, 920))
    assert [int((domain[index] == d).sum()) for d in range(3)] == [20, 60, 30]
    assert torch.equal(index, thin(domain, Scale(rows=110)))
    assert not torch.equal(index, thin(domain, Scale(rows=110, seed=1)))
    assert 18 <= len(thin(domain, Scale(rows=20))) <= 20
    assert torch.equal(thin(domain, Scale(rows=920)), torch.arange(920))
    assert len(thin(torch.zeros(50).long(), Scale(rows=20))) == 20


def test_neighbours_on_a_line() -> None:
    X = torch.arange(100.0, dtype=DOUBLE)[:, None]
    aim = torch.tensor([[20.2], [70.2]], dtype=DOUBLE)
    assert sorted(neighbours(X, aim, 6, keyed(0)).tolist()) == [19, 20, 21, 69, 70, 71]
    assert sorted(neighbours(X, aim[:0], 100, keyed(0)).tolist()) == list(range(100))
    assert len(set(neighbours(X, aim, 90, keyed(0)).tolist())) == 90


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for own in found if isinstance(found, tuple | list) else [found]:
            if isinstance(own, Tensor) and own.untyped_storage().nbytes():
                self.numel = max(self.numel, own.numel())
        return found


def test_memory_is_linear_in_the_rows() -> None:
    p = Problem(20_000, 5)
    with torch.no_grad(), Largest() as seen:
        found, far = p.scaled(Scale(features=20))
        assert far is not None
        p.predicted(found, far)
    assert 20_005 * 3 <= seen.numel < 20_005 * 60


def shift(n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p = Problem(n, 12, outputs=1, seed=seed)
    X = torch.cat([p.rows.X, p.new.X])
    y = torch.cat([p.y[:, 0], torch.full((40,), torch.nan, dtype=DOUBLE)])
    return X.numpy(), y.numpy(), np.repeat([1, -2], [n, 52])


SMALL = {"approximation": "inducing", "features": 15, "max_iter": 3}
MANY = (adapt.TransferGPRegressor, adapt.ReweightedGP, adapt.MeanEmbeddingGP, adapt.DINOInitRegressor, adapt.DINOTrainRegressor)


@pytest.mark.parametrize("made", MANY)
@pytest.mark.parametrize("approximation", ["inducing", "features"])
def test_estimators_do_not_see_the_order_of_rows(made, approximation: str) -> None:
    X, y, codes = shift()
    order = np.random.default_rng(0).permutation(len(X))
    options = {**SMALL, "approximation": approximation}
    a, b = (made(**options).fit(X[index], y[index], codes[index]) for index in (slice(None), order))
    assert a._process.far is not None
    for one, two in zip(a.predict(X[-5:], return_std=True), b.predict(X[-5:], return_std=True), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    cov = a.predict(X[-5:], return_cov=True)[1]
    std = a.predict(X[-5:], return_std=True)[1]
    np.testing.assert_allclose(np.diag(cov), std**2 - a.noise_std_**2, rtol=1e-6, atol=1e-9)


def test_estimators_are_near_the_exact_ones() -> None:
    X, y, codes = shift(300)
    for made in (adapt.TransferGPRegressor, adapt.DINOInitRegressor):
        mean, std = made(max_iter=5).fit(X, y, codes).predict(X[-40:], return_std=True)
        few, wide = made(max_iter=5, approximation="inducing", features=120).fit(X, y, codes).predict(X[-40:], return_std=True)
        assert np.sqrt(np.mean((few - mean) ** 2)) < 0.3 * std.mean()
        assert np.abs(np.log(wide / std)).max() < 0.3


def test_parameters_are_learned_on_some_rows_in_the_units_of_all() -> None:
    X, y, codes = shift(300)
    rows = frame(Shift.from_domains(X, y, codes))
    settings = Settings(network=NETWORK, steps=3, scale=Scale(rows=60))
    found = first_stage(rows, 1, settings)
    some = first_stage(rows[thin(rows.rows.domain, settings.scale)], 1, settings)
    assert len(found.joint.y) == 312
    assert len(some.joint.y) == 60
    assert torch.equal(found.frame.x_mean, some.frame.x_mean)
    assert not bool(some.frame.rows.X.mean(0).abs().max() < 1e-9)
    for name, value in found.raw.items():
        assert torch.equal(value, some.raw[name])


def trained(time: float | int | None) -> tuple[Learned, dino_train.Trained, Tensor]:
    X, y, codes = shift()
    start = first_stage(frame(Shift.from_domains(X, y, codes)), 1, Settings(network=NETWORK, steps=3, scale=Scale("inducing", 15)))
    return start, dino_train.train(start, time=time), torch.as_tensor(X[-6:])


def test_training_starts_from_what_far_rows_say() -> None:
    start, found, X = trained(0)
    far = found.far
    assert far is not None
    assert start.far is not None
    assert len(far.near) == 15 + 12 < len(start.far.near)
    _, diagonal, m = far.at(start.kernel, dino_init.at_target(start, X))
    prediction = dino_train.predict(found, X)
    close((prediction.mean, prediction.variance), (m, diagonal), 1e-9)
    torch.testing.assert_close(found.residuals, (start.frame.y[far.near] - far.mean)[-12:])


def test_training_follows_the_flow_of_the_near_rows() -> None:
    start, found, X = trained(3.0)
    far, new = found.far, dino_init.at_target(start, X)
    assert far is not None
    root = start.noise[far.near].sqrt()
    Theta = start.kernel.pair(far.rows).ntk / torch.outer(root, root)
    step = torch.eye(len(root), dtype=DOUBLE) - torch.linalg.matrix_exp(-Theta * 3.0 / len(root))
    A = start.kernel.pair(new, far.rows).ntk / root @ torch.linalg.solve(Theta, step) / root
    cross, _, m = far.at(start.kernel, new)
    K = far.gram(start.kernel, far.rows) + torch.diag(start.noise[far.near])
    cov = far.gram(start.kernel, new) + A @ K @ A.mT - A @ cross.mT - cross @ A.mT
    prediction = dino_train.predict(found, X)
    right = m + A @ (start.frame.y[far.near] - far.mean), cov.diagonal(), cov
    close((prediction.mean, prediction.variance, dino_train.covariance(found, X)), right, 1e-6)


def test_training_to_the_end_meets_the_labels_and_a_rule_chooses_a_time() -> None:
    start, found, _ = trained(float("inf"))
    labelled = start.frame.rows.X[-12:] * start.frame.x_scale + start.frame.x_mean
    torch.testing.assert_close(dino_train.predict(found, labelled).mean, start.frame.y[-12:], rtol=1e-5, atol=1e-5)
    chosen = trained(None)[1]
    assert chosen.rule == "cross_validation"
    assert 0 < chosen.time < float("inf")
    assert bool((chosen.spread > 0).all())


def test_very_many_labels_are_left_out_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ones by every candidate, whether its process is exact or not."""
    monkeypatch.setattr(scale, "TRAINED", 8)
    monkeypatch.setattr(dino_train, "TRAINED", 8)
    monkeypatch.setattr(scale, "EXACT", 40)
    X, y, codes = shift()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = adapt.AutoTransferRegressor(max_iter=3)
        made.features = 6
        found = made.fit(X, y, codes)
    kept = held(12, Scale(features=6))
    assert len(kept) == 6
    assert {len(own.residuals) for own in found.candidates_} == {6}
    exact = next(own for own in found.candidates_ if own.name == "target" and not own.trained)
    torch.testing.assert_close(exact.residuals, exact.process.joint.leave_one_out()[0][kept])
    assert np.isfinite(found.predict(X[-5:])).all()


@pytest.mark.parametrize(("options", "message"), [({"approximation": "nystrom"}, "approximation: expected one of auto, exact"),
                                                  ({"features": 0}, "features: expected a whole number >= 1")])  # fmt: skip
def test_bad_parameters(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        adapt.TransferGPRegressor(**options).fit(*shift())


@pytest.mark.parametrize("method", ["kulsif", "kmm"])
def test_importance_weights_are_those_of_the_sample_at_the_sample(method: str) -> None:
    S, T = normal(300, 2, seed=0), normal(90, 2, seed=1) * 0.7 + 0.5
    found = weights_of_many(S, T, method=method, some=80, seed=3)
    generator = keyed(3)
    drawn, other = (torch.randperm(len(X), generator=generator)[:80] for X in (S, T))
    unit = torch.cat([S[drawn], T[other]]).std(0)
    s, t = S[drawn] / unit, T[other] / unit
    h, lam = scale_weights._chosen(s, t)
    right = importance_weights(s, t, method=method, width=h, ridge=lam)
    share = found[drawn] / found[drawn].mean()
    assert float((share - right).abs().max()) < (1e-8 if method == "kulsif" else 0.02) * float(right.max())
    assert float(found.mean()) == pytest.approx(1)
    assert bool((found >= 0).all())


def test_importance_weights_of_many_rows_find_the_ratio() -> None:
    S, T = normal(4000, 2, seed=0), normal(1000, 2, seed=1) * 0.7 + 0.5
    true = (S.square().sum(1) / 2 - ((S - 0.5) / 0.7).square().sum(1) / 2).exp()
    for method in ("kulsif", "kmm"):
        assert float(torch.corrcoef(torch.stack([weights_of_many(S, T, method=method, some=400), true]))[0, 1]) > 0.9
    few = S[:300], T[:200]
    torch.testing.assert_close(weights_of_many(*few, seed=2), importance_weights(*few, seed=2))
    torch.testing.assert_close(weights_of_many(S, T, method="logistic"), importance_weights(S, T, method="logistic"))


@pytest.mark.parametrize("target", [0, 1, 6])
@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_the_gradient_in_closed_form_is_that_through_the_factor(target: int, kappa: float) -> None:
    p, found = Problem(20, target), []
    weight = torch.linspace(0.5, 2.0, 20 + target, dtype=DOUBLE)
    counts = torch.tensor([kappa if target else 1.0] * 20 + [1.0] * target, dtype=DOUBLE)
    for closed in (True, False):
        K, noise = p.kernel.gram(p.rows).requires_grad_(), p.noise.clone().requires_grad_()
        if closed:
            value = log_likelihood(K, noise, p.y, target=target, weight=weight, kappa=kappa)
        else:
            value = joint(K, noise, p.y, target=target, weight=weight).log_likelihood(counts)
        (3 * value).backward()
        assert K.grad is not None
        assert noise.grad is not None
        found.append((value.detach(), (K.grad + K.grad.mT) / 2, noise.grad))
    close(found[0], found[1], 1e-9)
