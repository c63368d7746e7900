"""Time in real runs of the Trainer on small models: growth, pace and clipping, resumption, and a stop where the best one is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from driftway.finetune.metric import raw_kernel, spread
from driftway.finetune.trainer import SpectralStopping


class Net(nn.Module):
    """Linear in x, or with a hidden layer that begins small, so that its kernel grows."""

    def __init__(self, p, outputs=1, hidden=0):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(problem_type="regression" if outputs == 1 else None, to_json_string=lambda: "{}")
        self.body = nn.Linear(p, hidden, bias=False) if hidden else nn.Identity()
        self.head = nn.Linear(hidden or p, outputs, bias=False)
        with torch.no_grad():
            for w in self.parameters():
                w.mul_(0.3 if hidden else 0.0)

    def forward(self, x, labels=None):
        logits = self.head(self.body(x))
        if labels is None:
            loss = None
        elif logits.shape[1] == 1:
            loss = (logits.squeeze(1) - labels).square().mean()
        else:
            loss = nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def data(n=72, p=24, classes=False, noise=0.5, seed=0):
    """Features whose variances fall, and targets of the leading ones."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=g) * torch.arange(1, p + 1).pow(-0.75)
    f = 2 * x[:, 0] - 2 * x[:, 1] + x[:, 2]
    if classes:
        return x, ((f / noise).sigmoid() > torch.rand(n, generator=g)).long()
    return x, f + noise * torch.randn(n, generator=g)


def train(path, model, x, y, *callbacks, resume=None, **options):
    settings = {"learning_rate": 0.05, "max_steps": 12, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
                "per_device_train_batch_size": len(x), "logging_steps": 5000, "save_strategy": "no"} | options  # fmt: skip
    args = TrainingArguments(str(path), report_to=[], disable_tqdm=True, use_cpu=True, **settings)
    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    run = Trainer(model, args, train_dataset=rows, callbacks=list(callbacks))
    run.train(resume_from_checkpoint=resume)
    return next(c for c in run.callback_handler.callbacks if isinstance(c, SpectralStopping)), run.state.global_step


class Recorder(TrainerCallback):
    """What entered each step; to be listed before the callback that it watches."""

    def __init__(self, spectral):
        self.spectral, self.growth, self.v, self.norms = spectral, [], [], []

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.growth.append(self.spectral.clock.growth)
        self.v.append([(p.numel(), float(s["exp_avg_sq"].mean()) / (1 - 0.999 ** (state.global_step + 1)))
                       for p in model.parameters() if (s := optimizer.state.get(p)) and "exp_avg_sq" in s])  # fmt: skip


def endless(**options):
    """A callback that never stops."""

    class Endless(SpectralStopping):
        def on_train_begin(self, *args, **kwargs):
            super().on_train_begin(*args, **kwargs)
            self.stop_eta = 1e9

    Endless.__name__ = "SpectralStopping"
    return Endless(**options)


def test_growth_enters_eta(tmp_path):
    x, y = data()
    model, spectral = Net(24, hidden=8), endless(drift_every=3, drift_limit=100)
    begin = raw_kernel(model, [{"x": x}], classes=False)
    record = Recorder(spectral)
    train(tmp_path, model, x, y, record, spectral)
    assert spectral.eta == pytest.approx(2 * 0.05 * sum(record.growth))
    assert record.growth[:3] == [1, 1, 1]
    assert record.growth[3] == record.growth[5] != record.growth[6]
    rows = spectral.probe_rows
    K = raw_kernel(model, [{"x": x}], classes=False)[rows][:, rows]
    assert spectral.clock.growth == pytest.approx(spread(K) / spread(begin[rows][:, rows]), rel=1e-4)
    assert spectral.clock.growth > 1.5


def test_pace_enters_eta(tmp_path):
    x, y = data()
    model, spectral = Net(24, hidden=8), endless(drift_every=0)
    record = Recorder(spectral)
    train(tmp_path, model, x, y, record, spectral, optim="adamw_torch", learning_rate=0.02)
    reference = list(spectral.clock.reference.values())
    expected = sum(0.02 * sum(n * r**2 / v**0.5 for (n, v), r in zip(step, reference, strict=True)) / sum(
        n * r for (n, _), r in zip(step, reference, strict=True)) for step in record.v)  # fmt: skip
    assert spectral.metric == "adam"
    assert len(record.v) == 12
    assert spectral.eta == pytest.approx(expected, rel=1e-3)
    assert record.v[0] == [(n, pytest.approx(r**2, rel=1e-3)) for (n, _), r in zip(record.v[0], reference, strict=True)]
    assert abs(spectral.eta / (12 * 0.02) - 1) > 0.05


def test_clipping_hardly_changes_the_time_of_adam(tmp_path):
    x, y = data()
    free, clipped = endless(drift_every=0), endless(drift_every=0)
    models = Net(24, hidden=8), Net(24, hidden=8)
    train(tmp_path, models[0], x, y, free, optim="adamw_torch", learning_rate=1e-3)
    train(tmp_path, models[1], x, y, clipped, optim="adamw_torch", learning_rate=1e-3, max_grad_norm=0.01)
    assert clipped.clipped == 12
    assert free.clipped == 0
    assert clipped.eta == pytest.approx(free.eta, rel=0.05)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("restore", [False, True])
def test_a_resumed_run_keeps_its_clock(tmp_path, restore):
    x, y = data()
    options = {"optim": "adamw_torch", "learning_rate": 0.02, "save_strategy": "steps", "save_steps": 5, "max_grad_norm": 0.3,
               "restore_callback_states_from_checkpoint": restore}  # fmt: skip
    whole, _ = train(tmp_path, Net(24, hidden=8), x, y, endless(drift_every=2, drift_limit=100), **options)
    now, steps = train(tmp_path / "again", Net(24, hidden=8), x, y, SpectralStopping(drift_every=2, drift_limit=100),
                       resume=str(tmp_path / "checkpoint-5"), **options)  # fmt: skip
    assert steps == 12
    assert now.stop is None
    assert now.stop_eta == 1e9
    assert now.clock.reference == whole.clock.reference != {}
    assert now.weights == whole.weights != {}
    assert now.clock.growth == pytest.approx(whole.clock.growth, rel=1e-5)
    assert now.clock.clipped == whole.clock.clipped > 0
    assert now.eta == pytest.approx(whole.eta, rel=1e-5)
    assert now.drifts == [[step, pytest.approx(change, rel=1e-4)] for step, change in whole.drifts]


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_stop_is_near_the_best_step_in_hindsight(tmp_path, classes, seed):
    """A linear model, for which the theory is exact, with noise in the labels: descent is written out to the end beside it."""
    x, y = data(n=150, p=120, classes=classes, noise=1.5, seed=seed)
    x_test, y_test = data(n=2000, p=120, classes=classes, noise=1.5, seed=seed + 100)
    rate, model = 0.4 if classes else 0.1, Net(120, 2 if classes else 1)
    spectral, steps = train(tmp_path, model, x, y, SpectralStopping(drift_every=0), learning_rate=rate, max_steps=3000)
    reference, losses = Net(120, 2 if classes else 1), []
    for step in range(1200):
        with torch.no_grad():
            losses.append(float(reference(x_test, y_test).loss))
            if step == steps:
                for p, q in zip(model.parameters(), reference.parameters(), strict=True):
                    torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
        gradient = torch.autograd.grad(reference(x, y).loss, list(reference.parameters()))
        with torch.no_grad():
            for p, g in zip(reference.parameters(), gradient, strict=True):
                p -= rate * g
    best = min(losses)
    assert steps == spectral.stop_step < 1200
    assert losses[steps] < 1.08 * best
    assert best < 0.9 * losses[0]
    assert losses[-1] > 1.02 * losses[steps]


def test_a_time_that_is_not_reached_is_said(tmp_path):
    x, y = data()
    spectral, steps = train(tmp_path, Net(24), x, y, SpectralStopping(drift_every=0), learning_rate=1e-4)
    assert steps == 12
    assert any(text.startswith("the schedule ends at time 0.0024, before the stop at") for text in spectral.report)
    assert any(text.startswith("training ended at eta 0.0024, before the stop") for text in spectral.report)
    assert math.isfinite(spectral.stop_eta)
