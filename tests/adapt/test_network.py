"""The finite distribution-informed network: its formula, its moments and tangent kernel against the limit, its training, and bad input."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from driftway.adapt.descent import step_size, train
from driftway.adapt.distribution_kernel import Attention, DistributionKernel, Embedded, Rows, base
from driftway.adapt.network import DistributionNetwork
from driftway.adapt.weights import AttentionWeights
from driftway.checks import InputError
from driftway.kernels import FullyConnected, embed, gradient_flow, posterior

DOUBLE = torch.float64


def keyed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=keyed(seed))


def attention() -> AttentionWeights:
    """Frozen weights that depend on the row, of two domains."""
    own = AttentionWeights(normal(3, 4, seed=10) / 2, normal(2, 3, 3, seed=11), normal(2, 3, seed=12))
    return own.requires_grad_(False)


BASE = [normal(5, 4, seed=1) + 1.0, normal(7, 4, seed=2)]
X, DOMAIN = normal(6, 4, seed=3), torch.tensor([0, 1, 1, 0, 1, 0])
CASES = {"uniform": (None, False), "uniform, cosine": (None, True), "attention": (attention(), False),
         "attention, cosine": (attention(), True)}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)


def build(case: str = "attention, cosine", *, width: int = 16, seed: int = 0, **options) -> DistributionNetwork:
    weights, normalize = CASES[case]
    return DistributionNetwork(BASE, width=width, generator=keyed(seed), weights=copy.deepcopy(weights), normalize=normalize, **options)


def tangent(net: DistributionNetwork) -> Tensor:
    """J J' of all outputs over what requires a gradient, (n, k, n, k)."""
    theta = [p for p in net.parameters() if p.requires_grad]
    f = net(X, DOMAIN)
    J = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(value, theta, retain_graph=True)]) for value in f.flatten()])
    return (J @ J.T).reshape(*f.shape, *f.shape)


@every_case
def test_the_formula_entry_by_entry(case: str) -> None:
    weights, normalize = CASES[case]
    net = build(case, width=3, outputs=2, depth=1, activation="erf", w_std=1.3, b_std=0.4)
    K = [FullyConnected(1, "erf", 1.3, 0.4).nngp(base) for base in BASE]

    def perceptron(part: torch.nn.Module, x: Tensor) -> list[Tensor]:
        (W, V), (B, C) = part.W, part.B
        hidden = [torch.erf(1.3 * (W[i] @ x) / 4**0.5 + 0.4 * B[i]) for i in range(3)]
        return [1.3 * sum(V[j, i] * hidden[i] for i in range(3)) / 3**0.5 + 0.4 * C[j] for j in range(3)]

    for x, d, found in zip(X, DOMAIN.tolist(), net(X, DOMAIN), strict=True):
        base, m = BASE[d], len(BASE[d])
        w = [1 / m] * m
        if weights is not None:
            score = [float((weights.phi @ x) @ weights.A[d] @ (weights.phi @ b) + weights.v[d] @ (weights.phi @ b)) for b in base]
            w = [math.exp(s) / sum(map(math.exp, score)) for s in score]
        norm = sum(w[i] * w[j] * K[d][i, j] for i in range(m) for j in range(m)) ** 0.5 if normalize else 1.0
        g, h = perceptron(net.g, x), [perceptron(net.h, b) for b in base]
        for c in range(2):
            f = sum(net.readout[j, c] * g[j] * sum(w[i] * h[i][j] for i in range(m)) / norm for j in range(3)) / 3**0.5
            torch.testing.assert_close(found[c], f)


@every_case
@pytest.mark.parametrize("name", ["relu", "erf"])
def test_covariance_and_mean_tangent_kernel_of_many_draws_are_the_limit(case: str, name: str) -> None:
    """With one hidden layer both means are those of infinite width at every width: only Monte Carlo errors are left."""
    draws, own = 1200, keyed(5)
    net = build(case, width=8, outputs=2, depth=1, activation=name, w_std=1.2, b_std=0.5)
    theta = {key: torch.randn(draws, *p.shape, generator=own, dtype=DOUBLE) for key, p in net.named_parameters() if p.requires_grad}

    def f(own: dict[str, Tensor]) -> Tensor:
        return functional_call(net, own, (X, DOMAIN))

    limit, found = net.limit_kernels(X, DOMAIN), {"nngp": [], "ntk": []}
    for start in range(0, draws, 300):
        part = {key: p[start : start + 300] for key, p in theta.items()}
        J = torch.cat([jac.flatten(3) for jac in vmap(jacrev(f))(part).values()], 3)
        value = vmap(f)(part)
        found["nngp"].append(torch.einsum("rnk,rml->rnkml", value, value))
        found["ntk"].append(torch.einsum("rnkp,rmlp->rnkml", J, J))
    for key, parts in found.items():
        own_draws, K = torch.cat(parts), torch.einsum("nm,kl->nkml", getattr(limit, key), torch.eye(2, dtype=DOUBLE))
        z = (own_draws.mean(0) - K) / (own_draws.std(0) / draws**0.5)
        assert z.abs().max() < 4.5, key
        assert z.square().mean() < 2, key
        assert ((own_draws.std(0) / draws**0.5).norm() / K.norm()) < 0.15, key  # the test has power


def test_one_wide_network_of_two_layers_has_the_tangent_kernel_of_the_limit() -> None:
    nets = [build(width=256, seed=seed, depth=2) for seed in range(4)]
    limit, K = nets[0].limit_kernels(X, DOMAIN), torch.stack([tangent(net)[:, 0, :, 0] for net in nets])
    error = (K - limit.ntk).flatten(1).norm(dim=1) / limit.ntk.norm()
    assert error.max() < 0.6
    assert (K.mean(0) - limit.ntk).norm() / limit.ntk.norm() < 0.2
    assert (limit.nngp - limit.ntk).norm() / limit.ntk.norm() > 0.5


def test_trained_weights_add_a_random_term() -> None:
    """sum_il (dw_i . dv_l) f(x, b_i) f(x', b_l): the part of the tangent kernel that does not settle as the width grows."""
    net = build("attention", outputs=1)
    frozen = tangent(net)[:, 0, :, 0]
    assert isinstance(net.weights, AttentionWeights)
    net.weights.requires_grad_(True)
    one = DistributionNetwork(BASE, width=16, generator=keyed(0), normalize=False, weights=lambda x, d, base: torch.eye(len(base)).to(base))
    F = [one(x.expand(len(BASE[d]), 4), d)[:, 0].detach() for x, d in zip(X, DOMAIN.tolist(), strict=True)]  # f(x, b_i)
    slopes = []
    for n, (x, d) in enumerate(zip(X, DOMAIN.tolist(), strict=True)):
        g = torch.autograd.grad(net.weights(x[None], d, BASE[d])[0] @ F[n], list(net.weights.parameters()))
        slopes.append(torch.cat([t.flatten() for t in g]))
    J = torch.stack(slopes)
    torch.testing.assert_close(tangent(net)[:, 0, :, 0], frozen + J @ J.T)


@pytest.mark.parametrize("normalize", [False, True])
def test_limit_kernels_are_products_with_inner_products_of_mean_embeddings(normalize: bool) -> None:
    net, k = build("uniform, cosine" if normalize else "uniform"), FullyConnected(2, "relu", 1.5, 0.05)
    mu, y = [embed(base, kernel=k.nngp) for base in BASE], normal(3, 4, seed=4)
    c = float(mu[0].inner(mu[1])) / (float(mu[0].norm() * mu[1].norm()) if normalize else 1)
    s = float(mu[1].inner(mu[1])) / (float(mu[1].norm() ** 2) if normalize else 1)
    torch.testing.assert_close(net.limit_kernels(X, 0, y, 1).nngp, c * k.nngp(X, y))
    torch.testing.assert_close(net.limit_kernels(X, 1, y, 1).nngp, s * k.nngp(X, y))


@every_case
def test_the_limit_is_the_distribution_kernel(case: str) -> None:
    weights, normalize = CASES[case]
    one, rows = torch.ones((), dtype=DOUBLE), Rows(torch.cat(BASE), torch.cat([torch.full((len(b),), d) for d, b in enumerate(BASE)]))
    network, relevance = FullyConnected(2, "relu", 1.5, 0.05), torch.ones(4, dtype=DOUBLE)
    attends = None if weights is None else Attention(weights.phi, weights.A, weights.v)
    domains = Embedded(base(network, rows, relevance), "cosine" if normalize else "product", attention=attends)
    known = DistributionKernel(network, relevance, domains, one, 0 * one).pair(Rows(X, DOMAIN))
    found = build(case).limit_kernels(X, DOMAIN)
    for key in ("nngp", "ntk"):
        torch.testing.assert_close(getattr(found, key), getattr(known, key), rtol=1e-12, atol=0)


@every_case
def test_parts_of_the_limit_are_those_of_the_whole(case: str) -> None:
    net = build(case)
    whole, part = net.limit_kernels(X, DOMAIN), net.limit_kernels(X[:2], DOMAIN[:2], X[2:], DOMAIN[2:])
    for key in ("nngp", "ntk"):
        torch.testing.assert_close(getattr(part, key), getattr(whole, key)[:2, 2:])
        assert torch.linalg.eigvalsh(getattr(whole, key)).min() > 0


def test_uniform_weights_see_a_domain_through_its_mean_embedding_alone() -> None:
    twice = [torch.cat([BASE[0], BASE[0].flip(0)]), BASE[1], BASE[0]]
    net, other = build("uniform, cosine"), DistributionNetwork(twice, width=16, generator=keyed(0))
    torch.testing.assert_close(net(X, DOMAIN), other(X, DOMAIN))
    torch.testing.assert_close(other(X, 0), other(X, 2))
    assert (other(X, 0) - other(X, 1)).abs().max() > 1e-3


def test_attention_starts_uniform_and_one_that_is_blind_to_rows_weighs_base_samples() -> None:
    fresh = AttentionWeights.uniform(4, 2, generator=keyed(7), dtype=DOUBLE)
    net, uniform = (DistributionNetwork(BASE, width=16, generator=keyed(0), weights=weights) for weights in (fresh, None))
    torch.testing.assert_close(net(X, DOMAIN), uniform(X, DOMAIN))
    blind = AttentionWeights(fresh.phi, fresh.A, normal(2, 8, seed=8))
    w = blind(X, 1, BASE[1])
    torch.testing.assert_close(w, w[:1].expand_as(w))
    given = DistributionNetwork(BASE, width=16, generator=keyed(0), weights=lambda x, d, base: blind(x[:1], d, base))
    torch.testing.assert_close(given(X, 1), DistributionNetwork(BASE, width=16, generator=keyed(0), weights=blind)(X, 1))


def test_rows_are_independent_of_each_other_and_of_their_order() -> None:
    net, order = build(), torch.tensor([3, 1, 0, 5, 4, 2])
    torch.testing.assert_close(net(X[order], DOMAIN[order]), net(X, DOMAIN)[order])
    torch.testing.assert_close(torch.cat([net(x[None], int(d)) for x, d in zip(X, DOMAIN, strict=True)]), net(X, DOMAIN))


def test_seeds_dtypes_states_and_gradients_of_rows() -> None:
    net, again = build(), build()
    assert torch.equal(net(X, DOMAIN), again(X, DOMAIN))
    other = build(seed=1)
    assert not torch.equal(net(X, DOMAIN), other(X, DOMAIN))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(X, DOMAIN), other(X, DOMAIN))
    single = DistributionNetwork([base.float() for base in BASE], width=16, generator=keyed(0))
    assert single(X.float(), DOMAIN).dtype == torch.float32
    smooth, x = build(activation="erf", depth=1), X.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda rows: smooth(rows, DOMAIN), (x,))


Y = normal(6, 2, seed=6)


def test_descent_in_the_readout_is_kernel_descent_and_leaves_the_rest() -> None:
    net, steps = build(outputs=2), 25
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    F, start = net.features(X, DOMAIN).detach(), net(X, DOMAIN).detach()
    K, lr = F @ F.T / 16, step_size(net, X, DOMAIN, scope="readout") / 4
    seen = list(train(net, X, DOMAIN, Y, steps=steps, lr=lr, scope="readout"))
    r = torch.matrix_power(torch.eye(6, dtype=DOUBLE) - lr / 6 * K, steps) @ (Y - start)
    torch.testing.assert_close(Y - net(X, DOMAIN), r)
    assert [step for step, _ in seen] == list(range(steps + 1))
    assert seen[0][1] == pytest.approx(float((Y - start).square().sum() / 12))
    assert seen[-1][1] == pytest.approx(float(r.square().sum() / 12))
    assert {key for key, p in net.named_parameters() if not torch.equal(p, before[key])} == {"readout"}


def test_small_steps_follow_the_flow_of_the_networks_own_kernel() -> None:
    """Halved steps, halved distance: time is steps times lr, and A_t (y - f_0) is what f gains."""
    distances = []
    for part in (1, 2):
        net = build(outputs=2)
        F, start = net.features(X, DOMAIN).detach(), net(X, DOMAIN).detach()
        lr = step_size(net, X, DOMAIN, scope="readout") / 20 / part
        for _ in train(net, X, DOMAIN, Y, steps=40 * part, lr=lr, scope="readout"):
            pass
        K = F @ F.T / 16
        flow = gradient_flow(K, Y, start=start).mean(K, 40 * part * lr, start=start)
        distances.append(float((net(X, DOMAIN).detach() - flow).norm() / (flow - start).norm()))
    assert distances[1] == pytest.approx(distances[0] / 2, rel=0.1)
    assert distances[1] < 0.01


def test_ridge_and_weights_end_in_the_posterior_with_that_noise() -> None:
    net, noise = build(outputs=2, width=32), torch.tensor([0.5, 1.0, 2.0, 0.7, 1.5, 1.0], dtype=DOUBLE)
    F, start = net.features(X, DOMAIN).detach(), net(X, DOMAIN).detach()
    losses = [loss for _, loss in train(net, X, DOMAIN, Y, steps=1500, scope="readout", weights=1 / noise, ridge=1.0)]
    K = F @ F.T / 32
    torch.testing.assert_close(net(X, DOMAIN), start + posterior(K, Y - start, noise=noise).mean(K), atol=1e-5, rtol=0)
    assert all(b <= a + 1e-12 for a, b in pairwise(losses))


def test_a_wide_network_follows_the_tangent_kernel_and_not_the_other() -> None:
    y, off = Y[:, 0], {"ntk": [], "nngp": []}
    for seed in range(4):
        net = build(width=128, seed=seed, activation="erf", b_std=0.5)
        limit, start = net.limit_kernels(X, DOMAIN), net(X, DOMAIN)[:, 0].detach()
        lr = step_size(net, X, DOMAIN) / 10
        for _ in train(net, X, DOMAIN, y, steps=60, lr=lr):
            pass
        change = net(X, DOMAIN)[:, 0].detach() - start
        for key, own in off.items():
            K = getattr(limit, key)
            flow = gradient_flow(K, y, start=start).mean(K, 60 * lr, start=start) - start
            own.append(float((change - flow).norm() / flow.norm()))
    assert sum(off["ntk"]) / 4 < 0.15
    assert sum(off["nngp"]) / 4 > 0.25


def test_scope_all_trains_what_requires_a_gradient() -> None:
    for free in (False, True):
        net = build()
        net.weights.requires_grad_(free)  # type: ignore[union-attr]
        before = {key: p.detach().clone() for key, p in net.named_parameters()}
        for _ in train(net, X, DOMAIN, Y[:, :1], steps=2):
            pass
        still = {key for key, p in net.named_parameters() if torch.equal(p, before[key])}
        assert still == (set() if free else {"weights.phi", "weights.A", "weights.v"})


@pytest.mark.parametrize("scope", ["readout", "all"])
def test_the_default_step_is_stable_by_the_limit(scope: str) -> None:
    net = build()
    K = getattr(net.limit_kernels(X, DOMAIN), {"readout": "nngp", "all": "ntk"}[scope])
    c = torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0, 1.0], dtype=DOUBLE)
    largest = float(torch.linalg.eigvals(c[:, None] * K).real.max()) / 6 + 0.5 / 6
    assert 0.3 / largest < step_size(net, X, DOMAIN, scope=scope, weights=c, ridge=0.5) <= 1 / largest


@pytest.mark.parametrize(("options", "names"), [
    ({"base": []}, "base"), ({"base": [BASE[0], BASE[1][:, :2]]}, r"base\[1\]"),
    ({"base": [BASE[0], BASE[1].float()]}, r"base\[1\]"), ({"base": [BASE[0][None]]}, r"base\[0\]"),
    ({"base": [BASE[0] * math.nan]}, r"base\[0\]"), ({"width": 0}, "width"), ({"outputs": 0}, "outputs"), ({"depth": -1}, "depth"),
    ({"activation": "swish"}, "activation"), ({"w_std": 0.0}, "w_std"), ({"b_std": -1.0}, "b_std")])  # fmt: skip
def test_bad_networks(options: dict, names: str) -> None:
    with pytest.raises(InputError, match=f"^{names}"):
        DistributionNetwork(**{"base": BASE, "width": 4, "generator": keyed(0), **options})


@pytest.mark.parametrize(("x", "domain", "names"), [
    (X[:, :2], 0, "x"), (X.float(), 0, "x"), (X, 2, "domain"), (X, -1, "domain"), (X, DOMAIN[:2], "domain")])  # fmt: skip
def test_bad_rows(x: Tensor, domain: int | Tensor, names: str) -> None:
    for call in (build(), build().limit_kernels):
        with pytest.raises(InputError, match=f"^{names}"):
            call(x, domain)


def test_weights_of_another_shape_and_embeddings_that_vanish() -> None:
    net = DistributionNetwork(BASE, width=4, generator=keyed(0), weights=lambda x, d, base: base[:, :1])
    with pytest.raises(InputError, match=r"^weights"):
        net(X, 0)
    centred = DistributionNetwork([torch.cat([BASE[0], -BASE[0]])], width=4, generator=keyed(0), depth=0, b_std=None)
    with pytest.raises(InputError, match=r"^normalize"):
        centred(X, 0)


@pytest.mark.parametrize(("options", "names"), [
    ({"y": Y[:3]}, "y"), ({"y": Y}, "y"), ({"y": Y[:, 0].float()}, "y"), ({"y": Y[:, 0] / 0}, "y"), ({"steps": -1}, "steps"),
    ({"lr": -1.0}, "lr"), ({"lr": math.nan}, "lr"), ({"scope": "head"}, "scope"), ({"ridge": -1.0}, "ridge"),
    ({"weights": Y[:, 0]}, "weights"), ({"weights": Y.square()}, "weights"), ({"x": X[:, :1]}, "x")])  # fmt: skip
def test_bad_training_is_refused_before_the_first_step(options: dict, names: str) -> None:
    net = build()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match=f"^{names}"):
        train(net, **{"x": X, "domain": DOMAIN, "y": Y[:, 0], "steps": 2, **options})
    assert all(torch.equal(p, before[key]) for key, p in net.state_dict().items())


def test_steps_that_are_too_large_end_in_an_error() -> None:
    with pytest.raises(InputError, match=r"^lr: expected steps that keep the loss finite, got (inf|nan) at step \d+"):
        for _ in train(build(), X, DOMAIN, Y[:, 0], steps=200, lr=1e6):
            pass
