import logging
import math
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification, Trainer, TrainingArguments

import driftway.finetune.trainer as trainer_module
from driftway.checks import InputError
from driftway.finetune.probe import affordable, evaluating, find_stop, problem, raw_kernel
from driftway.finetune.trainer import SpectralStopping
from driftway.stopping.schedule import Schedule

SHAPE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
         "max_position_embeddings": 12}  # fmt: skip


def bert(labels=2, kind=BertForSequenceClassification, seed=0):
    torch.manual_seed(seed)
    model = kind(BertConfig(**SHAPE, num_labels=labels))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # random weights of the usual size make rows nearly alike
    return model


def rows(n=72, classes=2, seed=0, floats=False, signal=0.6):
    """Each class has words of its own, which make up a part of its rows."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randperm(n, generator=g) % classes
    own = torch.rand(n, 8, generator=g) < signal
    tokens = torch.where(own, 4 * label[:, None] + torch.randint(4, (n, 8), generator=g), torch.randint(12, 20, (n, 8), generator=g))
    if floats:
        label = (tokens < 4).float().mean(1) + 0.1 * torch.randn(n, generator=g)
    return [{"input_ids": t, "attention_mask": torch.ones(8, dtype=torch.long), "labels": y} for t, y in zip(tokens, label, strict=True)]


def trained(tmp_path, callback, *, model=None, data=None, resume=None, **options):
    settings = {"learning_rate": 0.05, "max_steps": 30, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
                "per_device_train_batch_size": 24, "logging_steps": 5, "save_strategy": "no"} | options  # fmt: skip
    args = TrainingArguments(str(tmp_path), report_to=[], disable_tqdm=True, use_cpu=True, **settings)
    trainer = Trainer(model or bert(), args, train_dataset=rows() if data is None else data, callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def fixed(eta, **options):
    """A callback that computes everything but stops at a time of the test's choice."""

    class Fixed(SpectralStopping):
        def on_train_begin(self, *args, **kwargs):
            super().on_train_begin(*args, **kwargs)
            self.stop_eta = eta

    Fixed.__name__ = "SpectralStopping"
    return Fixed(drift_every=0, **options)


def test_it_stops_at_the_predicted_step_and_logs_eta(tmp_path):
    callback = SpectralStopping(rows=64, drift_every=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = trained(tmp_path, callback, max_steps=4000, learning_rate=0.2)
    assert callback.stop is not None
    assert 1 <= run.state.global_step == callback.stop_step == callback.stop.steps < 4000
    assert callback.eta <= callback.stop_eta * (1 + 1e-9) < callback.eta + 0.2 * (1 + 1e-6)
    logged = [entry for entry in run.state.log_history if "eta" in entry]
    assert logged[-1]["eta"] == pytest.approx(callback.eta)
    assert "64 of 72 rows" in callback.report[0]


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "constant_with_warmup"])
def test_schedules_agree_on_eta(tmp_path, kind):
    callback = fixed(0.5)
    run = trained(tmp_path, callback, lr_scheduler_type=kind, warmup_steps=4 if "warmup" in kind else 0, gradient_accumulation_steps=2,
                  per_device_train_batch_size=12)  # fmt: skip
    lrs, base = [], 0.05
    for t in range(30):
        lrs.append({"constant": base, "linear": base * (1 - t / 30), "cosine": base / 2 * (1 + math.cos(math.pi * t / 30)),
                    "constant_with_warmup": base * min(1, t / 4)}[kind])  # fmt: skip
    steps = next(t for t in range(31) if sum(lrs[: t + 1]) > 0.5 + 1e-9)
    assert run.state.global_step == steps
    assert callback.eta == pytest.approx(sum(lrs[:steps]))
    assert 0.44 < callback.eta <= 0.5 + 1e-9


@pytest.mark.parametrize("restore", [False, True])
def test_resume_keeps_eta(tmp_path, restore):
    options = {"save_strategy": "steps", "save_steps": 4, "restore_callback_states_from_checkpoint": restore}
    whole = fixed(0.5)
    run = trained(tmp_path, whole, **options)
    assert run.state.global_step == 10
    again = SpectralStopping(drift_every=0)
    resumed = trained(tmp_path / "again", again, resume=str(tmp_path / "checkpoint-8"), **options)
    now = next(c for c in resumed.callback_handler.callbacks if isinstance(c, SpectralStopping))
    assert now.eta == pytest.approx(whole.eta) == pytest.approx(0.5)
    assert now.stop_step == whole.stop_step
    assert now.stop is None  # nothing was computed again
    assert resumed.state.global_step == 10


def test_lora_and_adam(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(bert(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    callback = SpectralStopping(drift_every=0)
    run = trained(tmp_path, callback, model=model, optim="adamw_torch", learning_rate=1e-3, max_steps=3)
    assert callback.metric == "adam"
    assert any("Adam breaks the theory" in sentence for sentence in callback.report)
    assert run.state.global_step <= 3
    assert callback.stop_eta > 0


@pytest.mark.parametrize(("options", "optim", "expected"), [({"metric": "gradient"}, "adamw_torch", "gradient"), ({}, "adafactor", "sign")])
def test_the_metric_is_that_of_the_optimizer_or_chosen(tmp_path, options, optim, expected):
    callback = SpectralStopping(drift_every=0, **options)
    trained(tmp_path, callback, optim=optim, max_steps=1)
    assert callback.metric == expected


def distance(model, start):
    return math.sqrt(sum(float((p.detach() - q).square().sum()) for p, q in zip(model.parameters(), start, strict=True)))


def test_clipped_steps_count_as_the_shorter_steps_they_are(tmp_path):
    model = bert()
    start = [p.detach().clone() for p in model.parameters()]
    callback = fixed(1e9)
    trained(tmp_path, callback, model=model, max_steps=1, max_grad_norm=0.01)
    moved = distance(model, start)
    assert callback.clipped == 1
    assert moved == pytest.approx(0.05 * 0.01, rel=1e-3)
    free = bert()
    whole = fixed(1e9)
    trained(tmp_path, whole, model=free, max_steps=1)
    assert callback.eta / whole.eta == pytest.approx(moved / distance(free, start), rel=2e-2)


def test_momentum_is_a_longer_step(tmp_path):
    callback = fixed(1e9)
    trained(tmp_path, callback, max_steps=2, optim_args="momentum=0.5")
    assert callback.eta == pytest.approx(2 * 0.05 / 0.5)


def test_drift_is_measured_and_warned_of(tmp_path):
    calm, wild = SpectralStopping(drift_every=1), SpectralStopping(drift_every=1, drift_limit=0.05)
    calm_run = {"max_steps": 2, "learning_rate": 1e-6}
    trained(tmp_path, calm, **calm_run)
    assert [step for step, _ in calm.drifts] == list(range(1, len(calm.drifts) + 1))
    assert max(change for _, change in calm.drifts) < 1e-3
    with pytest.warns(UserWarning, match="the linear regime"):
        trained(tmp_path, wild, max_steps=3, learning_rate=2.0)
    assert any("has changed by" in sentence for sentence in wild.report)


def test_a_callback_does_not_disturb_training(tmp_path):
    with_, without = bert(), bert()
    trained(tmp_path, fixed(1e9), model=with_, max_steps=2)
    args = TrainingArguments(str(tmp_path), report_to=[], disable_tqdm=True, use_cpu=True, learning_rate=0.05, max_steps=2, optim="sgd",
                             lr_scheduler_type="constant", max_grad_norm=0.0, per_device_train_batch_size=24,
                             save_strategy="no")  # fmt: skip
    Trainer(without, args, train_dataset=rows()).train()
    for p, q in zip(with_.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_no_signal_is_no_reason_to_stop(tmp_path):
    callback = SpectralStopping("marginal_likelihood", rows=64, drift_every=0)
    with pytest.warns(UserWarning, match="no signal stands out from noise in the kernel of 64 of 72 rows"):
        run = trained(tmp_path, callback, data=rows(signal=0.0), max_steps=3)
    assert run.state.global_step == 3
    assert callback.stop_eta == math.inf
    assert not any("training ended" in sentence for sentence in callback.report)


def test_rows_that_gain_nothing_are_trained_until_they_lose(tmp_path):
    callback = SpectralStopping(drift_every=0)
    trained(tmp_path, callback, data=rows(signal=0.0), max_steps=3)
    assert callback.problem is not None
    assert not callback.problem.validation.gains
    assert 0 < callback.stop_eta < math.inf
    assert any("gain nothing from training" in sentence for sentence in callback.report)


def test_few_rows_are_said(tmp_path):
    callback = SpectralStopping(drift_every=0)
    with pytest.warns(UserWarning, match="30 rows, fewer than 64: the training set has no more"):
        trained(tmp_path, callback, data=rows(30), max_steps=1)


def test_a_budget_for_fewer_rows_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "affordable", lambda *_, **__: (40, 0.1))
    with pytest.warns(UserWarning, match="40 rows, fewer than 64: the budget allows no more"):
        trained(tmp_path, SpectralStopping(budget=5, drift_every=0), max_steps=1)


def batched(data):
    return [{name: torch.stack([row[name] for row in data]) for name in ("input_ids", "attention_mask")}], torch.stack(
        [row["labels"] for row in data])  # fmt: skip


@pytest.mark.parametrize(("labels", "classes", "floats"), [(2, 2, False), (3, 3, False), (1, 1, True)])
def test_the_problem_predicts_the_first_step_of_descent(labels, classes, floats):
    """The fall of the loss in a small step is the residual's form with the kernel, for each loss."""
    model = bert(labels).eval()
    batches, y = batched(rows(24, classes, floats=floats))
    found, n = problem(model, batches, y), 24
    before = model(**batches[0], labels=y).loss
    gradient = torch.autograd.grad(before, list(model.parameters()))
    fall = sum(float(g.square().sum()) for g in gradient)  # of the loss, per unit of learning rate
    r = found.residual.reshape(n, -1)
    # cross entropy: d loss / d f = -u/n; squared loss: -2u/n, where scale is 2
    assert found.scale**2 * float((r * (found.kernel @ r)).sum()) / n**2 == pytest.approx(fall, rel=0.35 if labels == 3 else 1e-3)


def test_the_sign_kernel_falls_as_fast_as_sign_descent():
    """With all rows in a batch Adam's first step is that of signs: the loss falls by |G|_1 per unit of learning rate."""
    model = bert().eval()
    batches, y = batched(rows(24))
    found, n = problem(model, batches, y, metric="sign", batch=24), 24
    gradient = torch.autograd.grad(model(**batches[0], labels=y).loss, list(model.parameters()))
    r = found.residual
    assert float(r @ found.kernel @ r) / n**2 == pytest.approx(sum(float(g.abs().sum()) for g in gradient), rel=1e-3)


def test_initial_outputs_replace_those_of_the_model():
    model = bert().eval()
    batches, y = batched(rows(24))
    f = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
    found = problem(model, batches, y, initial=f)
    p = (f[:, 1] - f[:, 0]).sigmoid()
    torch.testing.assert_close(found.residual, ((y - p) / (p * (1 - p)).sqrt()).double())


def test_more_rows_stop_later():
    model = bert()
    batches, y = batched(rows(72))
    found = problem(model, batches, y)
    for rule in ("marginal_likelihood", "rademacher"):
        few, many = (find_stop(found, rule, schedule=Schedule(0.1), rows=n, batch=24) for n in (72, 720))
        assert 2 * few.eta < many.eta < 30 * few.eta
        assert any("72 of 720 rows" in sentence for sentence in many.violations)


def test_more_budget_takes_more_rows_and_modes_return():
    model = bert()
    model.bert.embeddings.eval()
    batches, _ = batched(rows(16))
    small = {name: entry[:8] for name, entry in batches[0].items()}
    few, many = (affordable(model, [small, batches[0]], budget=budget)[0] for budget in (1e-4, 1000.0))
    assert few < 20
    assert many == 1024
    with evaluating(model):
        raw_kernel(model, batches)
    assert model.training
    assert not model.bert.embeddings.training


class Stream(IterableDataset):
    def __iter__(self):
        yield from rows()


@pytest.mark.parametrize(("data", "model", "options", "text"), [
    (Stream(), None, {}, "train_dataset: expected a data set with a length and rows by number, got the stream Stream"),
    (rows(12), None, {}, "train_dataset: expected at least 20 rows, got 12"),
    (None, None, {"budget": 1e-6}, r"budget: expected time for at least 20 rows, got 1e-06 s"),
    ([row | {"labels": torch.ones(8, dtype=torch.long)} for row in rows()], BertForTokenClassification, {},
     r"model: expected one row of scores for each example, got shape \(8, 8, 2\)"),
    ([row | {"labels": torch.tensor(1)} for row in rows()], None, {}, "labels: expected labels that differ"),
    ([{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows()], None, {},
     "train_dataset: expected a column labels, got columns input_ids, attention_mask"),
])  # fmt: skip
def test_bad_runs(tmp_path, data, model, options, text):
    with pytest.raises(InputError, match=text):
        trained(tmp_path, SpectralStopping(**options), data=data, model=bert(kind=model) if model else None)


@pytest.mark.parametrize(("options", "text"), [
    ({"rule": "holdout"}, "rule: expected one of rademacher, discrepancy, sure, gcv, marginal_likelihood, cross_validation, got 'holdout'"),
    ({"budget": 0}, "budget: expected a finite number > 0"),
    ({"metric": "left"}, "metric: expected one of auto, gradient, adam, sign"),
    ({"rows": 10}, "rows: expected a whole number >= 20"),
])  # fmt: skip
def test_bad_arguments(options, text):
    with pytest.raises(InputError, match=text):
        SpectralStopping(**options)


def test_no_rows_at_all():
    settings = {"max_grad_norm": 0.0, "world_size": 1, "fp16": False, "train_batch_size": 8, "gradient_accumulation_steps": 1}
    state = type("State", (), {"stateful_callbacks": None, "global_step": 0})()
    args = type("Args", (), settings)()
    with pytest.raises(InputError, match="train_dataset: expected training rows, got none"):
        SpectralStopping().on_train_begin(args, state, None, model=bert())


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.trainer_callback", None)
    with pytest.raises(InputError, match=r"transformers: expected the package transformers, got none installed; pip install"):
        runpy.run_path(str(Path(trainer_module.__file__)))


logging.getLogger("transformers").setLevel(logging.ERROR)
