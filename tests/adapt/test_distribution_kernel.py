"""The distribution kernel against sums written out pair by pair, the cases that it nests, and networks of finite width."""

import math

import pytest
import torch
from torch import Tensor

from driftway.adapt.distribution_kernel import (
    FORMS,
    Attention,
    Base,
    Correlation,
    DistributionKernel,
    Domains,
    Embedded,
    Rows,
    base,
    uniform,
)
from driftway.adapt.network import DistributionNetwork
from driftway.checks import InputError
from driftway.kernels import FullyConnected

DOUBLE = torch.float64
NET = FullyConnected(2, "relu", w_std=2**0.5, b_std=0.3)
D, COUNTS = 3, (5, 4, 6)  # columns; base samples of the target and of two sources
RELEVANCE = torch.tensor([1.2, 0.5, 0.8], dtype=DOUBLE)
every_form = pytest.mark.parametrize("form", FORMS)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, known: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, known, atol=tolerance, rtol=tolerance)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE)


def places() -> Rows:
    """Rows of all domains, among them a zero, equal rows, and a row in two domains."""
    X = normal(8, D, seed=1)
    X[2], X[5], X[7] = 0, X[4], X[0]
    return Rows(X, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]))


def samples(domains: int = 3, *, weighted: bool = True) -> Base:
    domain = torch.cat([torch.full((m,), d) for d, m in enumerate(COUNTS[:domains])])
    X = normal(len(domain), D, seed=2) + 0.8 * domain[:, None]
    return base(NET, Rows(X, domain), RELEVANCE, torch.linspace(0.5, 2, len(domain), dtype=DOUBLE) if weighted else None)


def attention(domains: int = 3, size: float = 0.5) -> Attention:
    return Attention(normal(2, D, seed=3), size * normal(domains, 2, 2, seed=4), size * normal(domains, 2, seed=5))


FAMILIES: dict[str, Domains] = {
    "correlation": Correlation(torch.tensor([0.7, -0.4], dtype=DOUBLE)),
    **{form: Embedded(samples(), form, number(0.6)) for form in FORMS},
    **{f"{form}, by row": Embedded(samples(), form, number(0.6), attention()) for form in FORMS},
}
every_family = pytest.mark.parametrize("name", FAMILIES)


def whole(domains: Domains, *, offset: float = 0.4, relevance: Tensor = RELEVANCE) -> DistributionKernel:
    return DistributionKernel(NET, relevance, domains, number(1.3), number(offset))


def softmax_by_hand(x: Tensor, d: int, b: Base, own: Attention) -> list[float]:
    w = []
    for i in range(len(b.rows)):
        score = (own.phi @ x) @ own.A[d] @ (own.phi @ b.rows.X[i]) + own.v[d] @ (own.phi @ b.rows.X[i])
        w.append(float(b.weight[i] * score.exp()) if int(b.rows.domain[i]) == d else 0.0)
    return [value / sum(w) for value in w]


class TestPairByPair:
    def weights(self, family: Embedded) -> Tensor:
        """Those of the rows of `places`; less the share of each sample, for the centred form."""
        rows, b = places(), family.base
        if family.attention is None:
            total = [b.weight[b.rows.domain == d].sum() for d in range(3)]
            W = [[float(b.weight[i] / total[int(d)]) if b.rows.domain[i] == d else 0.0 for i in range(len(b.rows))] for d in rows.domain]
        else:
            W = [softmax_by_hand(rows.X[i], int(rows.domain[i]), b, family.attention) for i in range(len(rows))]
        return torch.tensor(W, dtype=DOUBLE) - (b.weight / b.weight.sum() if family.form == "centred" else 0)

    def inner(self, name: str) -> tuple[Tensor, Tensor]:
        """k_P between the rows of `places` from K_base alone, and its tangent kernel from Theta_base: no coordinates."""
        family = FAMILIES[name]
        assert isinstance(family, Embedded)
        W, pair, n = self.weights(family), NET.kernels(family.base.rows.X * RELEVANCE), len(places())
        C, T = (torch.stack([torch.stack([(W[i][:, None] * W[j] * gram).sum() for j in range(n)]) for i in range(n)])
                for gram in (pair.nngp, pair.ntk))  # fmt: skip
        c = C.diagonal()
        if family.form == "exponential":
            return torch.exp(-(c[:, None] + c - 2 * C) / (2 * 0.6**2)), torch.zeros(n, n, dtype=DOUBLE)
        C = C + 0.6**2 * (family.form == "centred")
        norm = (C.diagonal()[:, None] * C.diagonal()).sqrt() if family.form in ("cosine", "centred") else 1.0
        return C / norm, T / norm

    @pytest.mark.parametrize("name", [name for name in FAMILIES if name != "correlation"])
    def test_embeddings(self, name: str):
        found, (k, theta) = FAMILIES[name].kernels(places(), places()), self.inner(name)
        close(found.nngp, k)
        close(found.ntk, theta)

    @pytest.mark.parametrize("name", ["cosine", "exponential, by row"])
    def test_the_whole_kernel(self, name: str):
        rows, (known, _) = places(), self.inner(name)
        x = rows.X * RELEVANCE
        for i, j in ((0, 0), (0, 1), (2, 4), (4, 5), (0, 7), (6, 3)):
            k_x = NET.kernel("nngp", x[i][None], x[j][None])[0, 0]
            same = float(rows.domain[i] == rows.domain[j])
            close(whole(FAMILIES[name]).gram(rows)[i, j], 1.3**2 * (k_x * known[i, j] + 0.4**2 * same))

    def test_correlations(self):
        lam = [0.7, -0.4]
        known = [[1, lam[0], lam[1]], [lam[0], 1, lam[0] * lam[1]], [lam[1], lam[0] * lam[1], 1]]
        close(Correlation(torch.tensor(lam, dtype=DOUBLE)).matrix, torch.tensor(known, dtype=DOUBLE))

    def test_coordinates_are_those_of_the_kernels(self):
        b = samples()
        pair = NET.kernels(b.rows.X * RELEVANCE)
        close(b.F @ b.F.mT, pair.nngp)
        close(b.T @ b.T.mT, pair.ntk)

    def test_equal_base_samples_take_one_coordinate(self):
        X = normal(3, D, seed=2).repeat(4, 1)
        b = base(NET, Rows(X, torch.zeros(12, dtype=torch.long)), RELEVANCE)
        assert b.F.shape == (12, 3)
        close(b.F @ b.F.mT, NET.kernel("nngp", X * RELEVANCE))


class TestWeights:
    def test_positive_of_sum_one_and_of_the_own_domain(self):
        rows, b = places(), samples()
        for W in (uniform(rows, b), attention().weights(rows, b)):
            own = rows.domain[:, None] == b.rows.domain
            assert bool((W[own] > 0).all())
            assert not W[~own].any()
            close(W.sum(1), torch.ones(len(rows), dtype=DOUBLE))

    def test_by_hand(self):
        rows, b, own = places(), samples(), attention()
        known = [softmax_by_hand(rows.X[i], int(rows.domain[i]), b, own) for i in range(len(rows))]
        close(own.weights(rows, b), torch.tensor(known, dtype=DOUBLE))

    @every_form
    def test_zero_attention_is_uniform(self, form: str):
        b, rows, zero = samples(), places(), attention(size=0.0)
        close(zero.weights(rows, b), uniform(rows, b), 1e-14)
        close(Embedded(b, form, number(0.6), zero).kernels(rows, rows).nngp, Embedded(b, form, number(0.6)).kernels(rows, rows).nngp)

    def test_without_A_the_embedding_is_that_of_reweighted_base_samples(self):
        """Importance weighting: weights exp(v.phi b) that no row changes."""
        b, rows, own = samples(), places(), attention()
        own = Attention(own.phi, torch.zeros_like(own.A), own.v)
        W = own.weights(rows, b)
        for d in range(3):
            close(W[rows.domain == d], W[rows.domain == d][:1].expand(int((rows.domain == d).sum()), -1), 1e-15)
        importance = (b.rows.X @ own.phi.mT * own.v[b.rows.domain]).sum(1).exp()
        reweighted = Base(b.rows, b.weight * importance, b.F, b.T)
        for form in ("product", "cosine", "exponential"):
            close(Embedded(b, form, number(0.6), own).kernels(rows, rows).nngp,
                  Embedded(reweighted, form, number(0.6)).kernels(rows, rows).nngp)  # fmt: skip

    def test_with_A_weights_depend_on_the_row(self):
        W = attention().weights(places(), samples())
        assert float((W[0] - W[1]).abs().max()) > 0.01

    def test_large_scores_do_not_overflow(self):
        W = attention(size=1e6).weights(places(), samples())
        close(W.sum(1), torch.ones(8, dtype=DOUBLE))

    def test_a_weight_is_as_many_equal_samples(self):
        b, rows = samples(weighted=False), places()
        times = torch.tensor([1, 3, 1, 2, 1, 1, 1, 4, 1, 2, 1, 1, 1, 1, 5])
        index = torch.arange(len(times)).repeat_interleave(times)
        repeated = base(NET, Rows(b.rows.X[index], b.rows.domain[index]), RELEVANCE)
        weighted = Base(b.rows, times.double(), b.F, b.T)
        for form in FORMS:
            for own in (None, attention()):
                close(Embedded(weighted, form, number(0.6), own).kernels(rows, rows).nngp,
                      Embedded(repeated, form, number(0.6), own).kernels(rows, rows).nngp, 1e-9)  # fmt: skip


class TestNested:
    def test_uniform_weights_are_the_adaptive_transfer_process(self):
        """lam = c_st / (c_ss c_tt)^(1/2), and MMD^2 = c_ss + c_tt - 2 c_st; to rounding."""
        rows = places()[:6]
        b = samples(2, weighted=False)
        gram = NET.kernel("nngp", b.rows.X * RELEVANCE)
        t, s = b.rows.domain == 0, b.rows.domain == 1
        tt, ss, st = gram[t][:, t].mean(), gram[s][:, s].mean(), gram[s][:, t].mean()
        lam = st / (ss * tt).sqrt()
        assert 0.5 < float(lam) < 0.999
        free = whole(Correlation(lam[None]))
        fixed = whole(Embedded(b, "cosine"))
        close(fixed.gram(rows), free.gram(rows))
        close(fixed.cross(rows, rows[:3]), free.cross(rows, rows[:3]))
        close(fixed.diagonal(rows), free.diagonal(rows))
        apart = Embedded(b, "exponential", number(0.6)).kernels(rows, rows).nngp[0, 3]
        close(apart, torch.exp(-(ss + tt - 2 * st) / (2 * 0.6**2)))
        h = Embedded(b, "product").embed(rows)[0]
        close((h[0] - h[3]).square().sum(), ss + tt - 2 * st)

    @pytest.mark.parametrize("form", ["cosine", "centred", "exponential"])
    @pytest.mark.parametrize("own", [None, attention(2)])
    def test_equal_base_samples_are_the_pooled_process(self, form: str, own: Attention | None):
        """Also with weights by row, for rows at one place under one A and v."""
        rows, X = places()[:6], normal(5, D, seed=2)
        if own is not None:
            own = Attention(own.phi, torch.zeros_like(own.A), own.v[:1].expand(2, -1))
        b = base(NET, Rows(X.repeat(2, 1), torch.arange(2).repeat_interleave(5)), RELEVANCE)
        found = Embedded(b, form, number(0.6), own)
        close(found.kernels(rows, rows).nngp, torch.ones(6, 6, dtype=DOUBLE))
        pooled = whole(Correlation(number(1.0)[None]))
        close(whole(found).gram(rows), pooled.gram(rows))
        x = NET.kernel("nngp", rows.X * RELEVANCE)
        close(whole(found, offset=0.0).gram(rows), 1.3**2 * x)

    def test_no_correlation_is_no_transfer(self):
        rows = places()[:6]
        K = whole(Correlation(number(0.0)[None])).gram(rows)
        assert not K[:3, 3:].any()
        x = NET.kernel("nngp", rows.X * RELEVANCE)
        close(K[:3, :3], 1.3**2 * (x[:3, :3] + 0.4**2))

    def test_a_large_tau_is_the_pooled_process_and_a_small_one_leaves_the_differences_alone(self):
        b, rows = samples(2), places()[:6]
        close(Embedded(b, "centred", number(1e8)).kernels(rows, rows).nngp, torch.ones(6, 6, dtype=DOUBLE))
        apart = Embedded(b, "centred", number(1e-8)).kernels(rows, rows).nngp
        close(apart[0, 3], number(-1.0))  # with two domains, m lies between their embeddings

    def test_a_source_alone_and_the_target_alone(self):
        """Rows of a domain do not see that there are others, but for the centre."""
        b, rows = samples(), places()
        few = Base(Rows(b.rows.X[:5], b.rows.domain[:5]), b.weight[:5], b.F[:5], b.T[:5])
        for form in ("product", "cosine", "exponential"):
            close(Embedded(b, form, number(0.6)).kernels(rows[:3], rows[:3]).nngp,
                  Embedded(few, form, number(0.6)).kernels(rows[:3], rows[:3]).nngp)  # fmt: skip


class TestLaws:
    @every_family
    def test_gram_cross_diagonal_and_pairs_agree(self, name: str):
        k, rows = whole(FAMILIES[name]), places()
        K, pair = k.gram(rows), k.pair(rows)
        assert torch.equal(K, K.mT) or float((K - K.mT).abs().max()) < 1e-14
        close(k.cross(rows, rows), K, 1e-12)
        close(k.diagonal(rows), K.diagonal(), 1e-12)
        close(pair.nngp, K, 1e-12)
        close(k.pair(rows, rows[2:]).ntk, pair.ntk[:, 2:], 1e-12)
        close(k.pair(rows, rows[2:]).nngp, K[:, 2:], 1e-12)
        close(k.pair_diagonals(rows).ntk, pair.ntk.diagonal(), 1e-12)
        close(k.pair_diagonals(rows).nngp, K.diagonal(), 1e-12)

    @every_family
    def test_positive_semidefinite_and_so_is_what_training_adds(self, name: str):
        k = whole(FAMILIES[name])
        rows = Rows(normal(30, D, seed=7), torch.arange(30) % 3)
        pair = k.pair(rows)
        for matrix in (pair.nngp, pair.ntk, pair.ntk - pair.nngp):
            assert float(torch.linalg.eigvalsh(matrix)[0]) >= -1e-12 * float(matrix.abs().max())

    @every_family
    def test_gradients_are_right(self, name: str):
        family, rows, b = FAMILIES[name], places(), samples()
        weights = normal(8, 8, seed=9)

        def loss(relevance: Tensor, scale: Tensor, offset: Tensor, *own: Tensor) -> Tensor:
            if isinstance(family, Correlation):
                domains: Domains = Correlation(own[0])
            else:
                domains = Embedded(b, family.form, own[0], Attention(own[1], own[2], own[3]))
            return (weights * DistributionKernel(NET, relevance, domains, scale, offset).gram(rows)).sum()

        seen = attention(size=0.0 if isinstance(family, Embedded) and family.attention is None else 0.5)
        own = [family.lam] if isinstance(family, Correlation) else [number(0.6), seen.phi, seen.A, seen.v]
        leaves = [leaf.clone().requires_grad_() for leaf in (RELEVANCE, number(1.3), number(0.4), *own)]
        assert torch.autograd.gradcheck(loss, leaves, atol=1e-6)

    @pytest.mark.parametrize("form", FORMS)
    def test_gradients_are_finite_where_all_base_samples_are_equal(self, form: str):
        rows = Rows(torch.zeros(4, D, dtype=DOUBLE), torch.tensor([0, 0, 1, 1]))
        b = base(NET, Rows(torch.zeros(6, D, dtype=DOUBLE), torch.arange(6) % 2), RELEVANCE)
        own, size, relevance = attention(2), number(0.6).requires_grad_(), RELEVANCE.clone().requires_grad_()
        A, v = own.A.clone().requires_grad_(), own.v.clone().requires_grad_()
        K = DistributionKernel(NET, relevance, Embedded(b, form, size, Attention(own.phi, A, v)), number(1.0), number(0.1)).gram(rows)
        slopes = torch.autograd.grad(K.sum(), [size, relevance, A, v], allow_unused=True)
        assert all(slope is None or bool(slope.isfinite().all()) for slope in slopes)

    def test_the_order_of_the_base_samples_changes_nothing(self):
        b, rows = samples(), places()
        order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
        mixed = base(NET, b.rows[order], RELEVANCE, b.weight[order])
        for form in FORMS:
            one, two = (Embedded(own, form, number(0.6), attention()).kernels(rows, rows) for own in (b, mixed))
            close(one.nngp, two.nngp, 1e-12)
            close(one.ntk, two.ntk, 1e-12)


class TestNetworks:
    """Theta against the module of finite width: f(x, P) = N^(-1/2) sum_j a_j g_j(x) h_j(P)."""

    def network(self, form: str, width: int, seed: int = 0, own: Attention | None = None) -> DistributionNetwork:
        b = samples(2, weighted=False)
        base_rows = [b.rows.X[b.rows.domain == d] for d in (0, 1)]
        weights = None if own is None else lambda x, d, z: ((x @ own.phi.mT @ own.A[d] + own.v[d]) @ (z @ own.phi.mT).mT).softmax(1)
        return DistributionNetwork(base_rows, width=width, generator=torch.Generator().manual_seed(seed), w_std=2**0.5, b_std=0.3,
                                   normalize=form == "cosine", weights=weights)  # fmt: skip

    def kernel(self, form: str, own: Attention | None = None) -> DistributionKernel:
        b = samples(2, weighted=False)
        plain = base(NET, b.rows, torch.ones(D, dtype=DOUBLE))
        return DistributionKernel(NET, torch.ones(D, dtype=DOUBLE), Embedded(plain, form, None, own), number(1.0), number(0.0))

    @pytest.mark.parametrize("form", ["product", "cosine"])
    @pytest.mark.parametrize("own", [None, attention(2)])
    def test_the_limit_kernels_of_the_module(self, form: str, own: Attention | None):
        rows = places()[:6]
        found, known = self.kernel(form, own).pair(rows), self.network(form, 4, own=own).limit_kernels(rows.X, rows.domain)
        close(found.nngp, known.nngp)
        close(found.ntk, known.ntk)

    @pytest.mark.parametrize("form", ["product", "cosine"])
    def test_tangent_kernels_of_finite_networks_by_autograd(self, form: str):
        rows, width, nets = places()[:6], 256, 24
        kernels, values = [], []
        for seed in range(nets):
            network = self.network(form, width, seed)
            f = network(rows.X, rows.domain)[:, 0]
            theta = list(network.parameters())
            J = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(out, theta, retain_graph=True)]) for out in f])
            kernels.append(J @ J.mT)
            values.append(f.detach())
        Theta, spread = torch.stack(kernels).mean(0), torch.stack(kernels).std(0) / nets**0.5
        known = self.kernel(form).pair(rows).ntk
        assert float(((Theta - known).abs() / (4 * spread + 0.01 * known)).max()) < 1
        plain = known - self.kernel(form).pair(rows).nngp  # without the readout it is another kernel
        assert float(((Theta - plain).abs() / (4 * spread + 0.01 * known)).max()) > 1


def test_rows():
    rows = places()
    assert len(rows) == 8
    assert torch.equal(rows[rows.domain == 1].X, rows.X[3:6])
    assert torch.equal(rows[2:4].domain, torch.tensor([0, 1]))


def test_an_unknown_form():
    with pytest.raises(InputError, match="form: expected one of product, cosine, centred, exponential, got 'sine'"):
        Embedded(samples(), "sine")


def test_the_size_is_one_by_default():
    b, rows = samples(), places()
    for form in ("centred", "exponential"):
        close(Embedded(b, form).kernels(rows, rows).nngp, Embedded(b, form, number(1.0)).kernels(rows, rows).nngp, 0)
    assert math.isclose(float(Embedded(b, "exponential").diagonals(rows).nngp.mean()), 1)
