"""The kernel of the optimizer against autograd, against torch's own optimizers, and against loops."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from driftway.checks import InputError
from driftway.finetune.clock import Clock
from driftway.finetune.metric import (
    contrast,
    gradients,
    inverse,
    metric_of,
    pace,
    raw_kernel,
    root_mean_squares,
    speed,
    spread,
)
from driftway.finetune.probe import problem


class Net(nn.Module):
    """Tensors of very different sizes of gradient."""

    def __init__(self, outputs=2, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, outputs)

    def forward(self, x):
        return self.last(torch.tanh(3 * self.first(x)))


def inputs(n=24, seed=1, size=16):
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    return x, [{"x": part} for part in x.split(size)]


def rows_of(model, x, k):
    """(n, k, p) gradients of centred scores, one by one."""
    found = []
    for row in x:
        f = model(row[None])[0]
        f = (f[1:] - f[:1]) if k == 2 else f - f.mean() if k > 2 else f
        found.append([[g.flatten() for g in torch.autograd.grad(own, list(model.parameters()), retain_graph=True)] for own in f])
    return found


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_weighted_kernel_is_that_of_autograd(k):
    model, (x, batches) = Net(k), inputs(12)
    weights = {name: 0.3 + i for i, (name, _) in enumerate(model.named_parameters())}
    J = rows_of(model, x, k)
    K = sum(w * (G := torch.stack([torch.cat([own[i] for own in row]) for row in J])) @ G.T for i, w in enumerate(weights.values()))
    found = raw_kernel(model, batches, metric="adam", weights=weights, classes=k > 1)
    torch.testing.assert_close(found, K.double(), rtol=1e-4, atol=1e-4)
    plain = raw_kernel(model, batches, metric="gradient", weights=weights, classes=k > 1)
    torch.testing.assert_close(plain, raw_kernel(model, batches, metric="adam", weights=dict.fromkeys(weights, 1.0), classes=k > 1))


@pytest.mark.parametrize("batch", [1, 8, 10, 16, 20, 24, 100])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_mean_squares_of_batches_are_those_of_a_loop(k, batch):
    """Batches of the optimizer need not be those of the passes."""
    model, (x, batches) = Net(k), inputs(24)
    u = torch.randn(24, *([] if k == 2 else [k]), generator=torch.Generator().manual_seed(2))
    mean, square = gradients(model, batches, u, scope="trainable", batch=batch, classes=k > 1)
    G, S = ({name: torch.zeros_like(p) for name, p in model.named_parameters()} for _ in range(2))
    for rows in torch.arange(24).split(batch):
        f = model(x[rows])
        f = f[:, 1] - f[:, 0] if k == 2 else f - f.mean(1, keepdim=True) if k > 2 else f
        found = torch.autograd.grad((u[rows] * f).sum() / len(rows), list(model.parameters()))
        for name, g in zip(G, found, strict=True):
            G[name] += g * len(rows) / 24
            S[name] += g.square() * len(rows) / 24
    for name in G:
        torch.testing.assert_close(mean[name], G[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(square[name], S[name], rtol=1e-4, atol=1e-6)


def test_half_precision_keeps_small_squares():
    model, (_, batches) = Net(1).to(torch.bfloat16), inputs(24)
    _, square = gradients(model, batches, 1e-4 * torch.ones(24, 1), scope="trainable", batch=8, classes=False)
    assert all(s.dtype == torch.float32 for s in square.values())
    assert all(float(s.max()) > 0 for s in square.values())


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_adam_moves_scores_by_the_kernel(kind, k):
    """A linear model with one number a tensor, where v is constant in each: f moves by lr K u / n, all rows in a batch."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.ParameterList([nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(6)])

        def forward(self, x):
            f = torch.stack([a * x[:, i] * 10.0**i for i, a in enumerate(self.a)], 1)
            f = f.reshape(len(x), 3, 2).sum(2)
            return f[:, :k] if k < 3 else f

    g = torch.Generator().manual_seed(0)
    x, model = torch.randn(32, 6, generator=g).double(), Linear()
    y = torch.randint(2, (32,), generator=g) if k == 2 else torch.arange(32) % 3 if k == 3 else torch.randn(32, 1, generator=g).double()
    x = x + 0.5 * y.reshape(-1, 1)
    found = problem(model, [{"x": x[:16]}, {"x": x[16:]}], y, metric="adam", batch=32)
    before = contrast(model, {"x": x}).detach() if k > 1 else model(x).detach()
    optimizer, lr = kind(model.parameters(), lr=1e-8, weight_decay=0.0, eps=1e-12), 1e-8
    loss = nn.functional.cross_entropy(model(x), y) if k > 1 else (model(x) - y).square().mean()
    loss.backward()
    optimizer.step()
    moved = (contrast(model, {"x": x}) if k > 1 else model(x)).detach() - before
    u = found.target - (before.sigmoid() if k == 2 else before.softmax(1) if k == 3 else before.squeeze(1)).double()
    if k < 3:
        expected = found.plain @ u / 32 * lr
        torch.testing.assert_close(moved.double().reshape(expected.shape), expected, rtol=1e-3, atol=1e-9)
    else:  # one kernel stands for those of all scores: the loss falls as the mean of them does
        fall = float((loss - nn.functional.cross_entropy(model(x), y)).detach()) / lr
        assert fall == pytest.approx(float((u * (found.plain @ u)).sum()) / 32**2, rel=0.5)
    state = {id(p): name for name, p in model.named_parameters()}
    assert pace(optimizer, state, found.reference) == pytest.approx(1.0, rel=1e-3)


def adam_state(model, v, steps=4):
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.9))
    for (name, p) in model.named_parameters():
        optimizer.state[p] = {"step": torch.tensor(float(steps)), "exp_avg_sq": torch.full_like(p, v[name] * (1 - 0.9**steps))}
    return optimizer


def test_pace_of_a_state_set_by_hand():
    model = Net()
    names = {id(p): name for name, p in model.named_parameters()}
    reference = {name: 0.1 + i for i, name in enumerate(names.values())}
    assert pace(torch.optim.Adam(model.parameters()), names, reference) == 1
    same = adam_state(model, {name: r**2 for name, r in reference.items()})
    assert pace(same, names, reference) == pytest.approx(1)
    quarter = adam_state(model, {name: r**2 / 4 for name, r in reference.items()})
    assert pace(quarter, names, reference) == pytest.approx(2)
    v = {name: (0.3 + i) ** 2 for i, name in enumerate(reference)}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    expected = sum(sizes[n] * reference[n] ** 2 / v[n] ** 0.5 for n in v) / sum(sizes[n] * reference[n] for n in v)
    assert pace(adam_state(model, v), names, reference) == pytest.approx(expected)
    zeros = {**reference, "last.bias": 0.0}
    assert pace(adam_state(model, {**{name: r**2 for name, r in reference.items()}, "last.bias": 1e9}), names, zeros) == pytest.approx(1)
    assert pace(torch.optim.SGD(model.parameters(), lr=1.0), names, reference) == 1


def test_pace_follows_torch_as_gradients_shrink():
    """Gradients that fall to a fifth: v is their mean square, and Adam's step grows as its root falls."""
    p = nn.Parameter(torch.zeros(50))
    optimizer = torch.optim.Adam([p], lr=1.0, betas=(0.0, 0.999))
    for scale in (1.0, 0.2, 0.2, 0.2):
        p.grad, before = torch.full((50,), scale), p.detach().clone()
        optimizer.step()
    v = (1 + 3 * 0.04) / 4
    assert pace(optimizer, {id(p): "p"}, {"p": 1.0}) == pytest.approx(v**-0.5, rel=1e-2)
    assert float((before - p.detach())[0]) == pytest.approx(0.2 * v**-0.5, rel=1e-2)


def test_tensors_without_gradients_yet_get_the_least_weight():
    roots = root_mean_squares({"a": torch.full((4,), 4.0), "b": torch.zeros(3), "c": torch.full((2,), 0.25)})
    assert roots == {"a": 2.0, "b": 0.0, "c": 0.5}
    assert inverse(roots) == {"a": 0.5, "b": 0.5, "c": 2.0}
    assert inverse({"a": 0.0}) == {"a": 1.0}


def test_half_of_a_low_rank_update_has_no_gradient_at_first():
    class LoRA(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.zeros(2, 3))

        def forward(self, x):
            return x @ self.a.T @ self.b.T

    x, batches = inputs(32)
    found = problem(LoRA(), batches, (x[:, 0] > 0).long(), metric="adam", batch=16)
    assert found.reference["a"] == 0 < found.reference["b"]
    assert found.weights["a"] == found.weights["b"] == pytest.approx(1 / found.reference["b"])
    assert found.kernel.isfinite().all()


def test_weights_are_those_of_the_gradients_and_take_the_scale_of_the_loss():
    x, batches = inputs(32)
    y = torch.randn(32, 3, generator=torch.Generator().manual_seed(5))
    model = Net(3)
    model.config = SimpleNamespace(problem_type="regression")
    found = problem(model, batches, y, metric="adam", batch=32)
    grads = torch.autograd.grad(nn.functional.mse_loss(model(x), y), list(model.parameters()))
    for (name, _), g in zip(model.named_parameters(), grads, strict=True):
        assert found.reference[name] == pytest.approx(float(g.square().mean().sqrt()), rel=1e-4)
        assert found.weights[name] * found.reference[name] == pytest.approx(2 / 3, rel=1e-6)
    assert found.scale == 1


def test_the_speed_of_signs_is_that_of_adam():
    K = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    u = torch.tensor([1.0, -2.0])
    mean, square = {"p": torch.tensor([3.0, 4.0])}, {"p": torch.tensor([1.0, 4.0])}
    assert speed(mean, square, u, K) == pytest.approx((9 / 1 + 16 / 2) * 4 / (2 - 4 + 12))


def test_spread_is_the_trace_of_the_centred_kernel():
    J = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    centred = J - J.mean(0)
    assert spread(J @ J.T) == pytest.approx(float(centred.square().sum()))
    assert spread(J @ J.T + 100.0) == pytest.approx(float(centred.square().sum()))


def named(name, **groups):
    kind = type(name, (), {})
    optimizer = kind()
    optimizer.param_groups = [{"params": [], **groups}]
    return optimizer


@pytest.mark.parametrize(("optimizer", "expected"), [
    (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), "gradient"),
    (torch.optim.Adam([nn.Parameter(torch.zeros(1))]), "adam"),
    (torch.optim.AdamW([nn.Parameter(torch.zeros(1))]), "adam"),
    (torch.optim.NAdam([nn.Parameter(torch.zeros(1))]), "adam"),
    (torch.optim.Adamax([nn.Parameter(torch.zeros(1))]), "sign"),
    (torch.optim.RMSprop([nn.Parameter(torch.zeros(1))]), "sign"),
    (named("AdamW8bit", betas=(0.9, 0.99)), "adam"),
    (named("FusedAdam", betas=(0.9, 0.99)), "adam"),
    (named("Adafactor", beta2_decay=-0.8), "sign"),
    (named("Lion", betas=(0.9, 0.99)), "sign"),
])  # fmt: skip
def test_the_metric_of_an_optimizer(optimizer, expected):
    assert metric_of(optimizer) == expected


def test_the_clock_adds_what_the_optimizer_did():
    p = nn.Linear(2, 1, bias=False)
    clock = Clock("gradient", scale=2.0)
    clock.watch(p, sgd := torch.optim.SGD(p.parameters(), lr=0.1, momentum=0.5, dampening=0.5), clipping=True)
    p(torch.tensor([[3.0, 4.0]])).sum().backward()
    clock.clip(1.0)
    assert clock.clipped == 1
    assert clock.step(sgd) == pytest.approx(2 * 0.1 / 5, rel=1e-5)
    clock.growth = 3.0
    clock.tick(sgd)
    assert clock.eta == pytest.approx(3 * 2 * 0.1 / 5, rel=1e-5)
    clock.unwatch()
    p(torch.tensor([[3.0, 4.0]])).sum().backward()
    clock.clip(1.0)
    assert clock.clipped == 1
    assert clock.step(sgd) == pytest.approx(3 * 2 * 0.1)


def test_clipping_under_adam_cancels():
    """Adam divides the factor of clipping out again: with clipping by the same factor each time, eta is that without."""
    found = {}
    for most in (1e9, 1e-3):
        torch.manual_seed(0)
        p = nn.Linear(4, 1, bias=False)
        adam = torch.optim.Adam(p.parameters(), lr=0.01)
        clock = Clock("adam", reference={"weight": 1.0})
        clock.watch(p, adam, clipping=True)
        for _ in range(3):
            adam.zero_grad()
            p(torch.ones(1, 4)).sum().backward()
            nn.utils.clip_grad_norm_(p.parameters(), most)
            clock.clip(most)
            adam.step()
            clock.tick(adam)
        found[most] = clock.eta
    assert found[1e9] == pytest.approx(0.03)
    assert found[1e-3] == pytest.approx(0.03, rel=1e-2)


@pytest.mark.parametrize(("call", "text"), [
    (lambda: problem(Net(), inputs(24)[1], torch.arange(24) % 2, metric="lion"), "metric: expected one of gradient, adam, sign"),
    (lambda: raw_kernel(Net(), inputs(24)[1], metric="adam", weights={"a": 1.0}), "weights: expected a weight for each parameter"),
    (lambda: problem(nn.Conv1d(1, 2, 1), [{"input": torch.ones(4, 1, 3)}], torch.arange(4)), "model: expected one row of scores"),
])  # fmt: skip
def test_bad_input_is_named(call, text):
    with pytest.raises(InputError) as error:
        call()
    assert text in str(error.value)


def test_one_column_of_numbers_for_several_outputs_is_a_target_for_each():
    _, batches = inputs(24)
    model = Net(3)
    model.config = SimpleNamespace(problem_type="regression")
    found = problem(model, batches, torch.randn(24, 1, generator=torch.Generator().manual_seed(0)))
    assert found.target.shape == found.start.shape == found.residual.shape == (24, 3)
    assert math.isfinite(float(found.validation.held[0]))
