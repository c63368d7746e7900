"""The estimator that chooses: transfer as much as the target's labels support, or not at all.

Equations (A22), (A23): docs/derivations/adapt.md.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from driftway.adapt.dino_init import Settings
from driftway.adapt.distribution_kernel import FORMS
from driftway.adapt.estimators_base import DomainRegressor, moments
from driftway.adapt.learn import Learned
from driftway.adapt.shift import Shift
from driftway.adapt.stacking import PROCESSES, Candidate, candidates, densities, stack
from driftway.checks import choice, count, kind, real, require

COMBINE = ("stack", "best")


@dataclass(frozen=True)
class Decision:
    """What became of the sources.

    Attributes:
        transfer: whether they are of use.
        gain: mean log density of a target label, above that of the target alone; in nats.
        error: standard error of the gain, from how labels differ in it; 0 without labels.
        target_weight: weight of the candidates without sources.
        weights: of all candidates.
        densities: mean log density of the target's labels, each foreseen without it, of all candidates.
        sentence: all this in words.
    """

    transfer: bool
    gain: float
    error: float
    target_weight: float
    weights: dict[str, float]
    densities: dict[str, float]
    sentence: str


class AutoTransferRegressor(DomainRegressor):
    """All of them side by side, each counting as much as it foresees the labels of the target; says when transfer does not pay.

    Args:
        candidates: of target, pooled, linear (transfer, without hidden layers), transfer and dino.
        combine: stack, a mixture; or best, the one that foresees best.
        trained: whether the trained network of each but linear is a candidate too; dino in the exponential form has none.
        form: of the domain kernel of dino: product, cosine, centred or exponential.
        base: base samples of each domain, at most.
        rank: features of a row that its weights are made from.
        pull: standard deviation of the prior of these weights' parameters; 0 leaves them uniform.
        depth: hidden layers of the network whose kernel is used.
        activation: relu, leaky_relu, abs, erf or gelu.
        source_weight: how much the likelihood of the sources counts in learning, from 0 to 1.
        max_iter: quasi-Newton steps.
        random_state: seed of whatever is drawn.
        approximation: exact, inducing, features, or auto: exact up to 5,000 labelled rows, then inducing (scale.py).
        features: that rows far from the target are summarised by.

    Attributes:
        candidates_: what was fitted.
        weights_: of each.
        decision_: whether to transfer, and what it gains.
    """

    def __init__(self, candidates=PROCESSES, combine="stack", trained=True, form="cosine", base=100, rank=4, pull=0.1, depth=2,
                 activation="relu", source_weight=0.3, max_iter=40, random_state=0, approximation="auto",
                 features=1000):  # fmt: skip
        super().__init__(depth, activation, source_weight, max_iter, random_state, approximation, features)
        self.candidates = candidates
        self.combine = combine
        self.trained = trained
        self.form = form
        self.base = base
        self.rank = rank
        self.pull = pull

    def _settings(self) -> Settings:
        choice("combine", self.combine, COMBINE)
        choice("form", self.form, FORMS)
        kind("trained", self.trained, bool, "True or False")
        several = isinstance(self.candidates, list | tuple) and len(self.candidates) > 0
        require(several, "candidates", expected="a list of names", got=repr(self.candidates), cure=f"pass some of {PROCESSES}")
        for name in self.candidates:
            choice("candidates", name, PROCESSES)
        return replace(super()._settings(), base=count("base", self.base), rank=count("rank", self.rank),
                       pull=real("pull", self.pull, least=0))  # fmt: skip

    def _fit(self, shift: Shift) -> list[Candidate]:
        names = tuple(self.candidates) if shift.sources else ("target",)
        found = candidates(shift, names, self._settings(), form=self.form, trained=self.trained)
        require(len(found) > 0, "candidates", expected="a process that needs no label of the target", got=names,
                cure="label some target rows, or add pooled, linear, transfer or dino")  # fmt: skip
        return found

    def _describe(self) -> None:
        self.candidates_ = self.model_
        table = torch.stack([own.log_density for own in self.candidates_], 1)
        self.weights_ = stack(table)
        if self.combine == "best":
            self.weights_ = torch.nn.functional.one_hot(table.sum(0).argmax(), len(self.candidates_)).to(table)
        self.decision_ = _decide(self.candidates_, table, self.weights_)
        super()._describe()

    @property
    def _process(self) -> Learned:
        """The process that weighs most."""
        return self.candidates_[int(self.weights_.argmax())].process

    def _moments(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = [moments(own.predict(rows), own.frame) for own in self.candidates_]
        means, variances, noises = (torch.stack(part) for part in zip(*parts, strict=True))
        w = self.weights_[:, None, None]
        mean = (w * means).sum(0)
        return mean, (w * (variances + (means - mean).square())).sum(0), (w[..., 0] * noises).sum(0)

    def _covariance(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        mean, total = self._moments(rows)[0], torch.zeros(())
        for w, own in zip(self.weights_, self.candidates_, strict=True):
            found = own.predict(rows)
            apart = moments(found, own.frame)[0] - mean
            unit = found.B.diagonal() * own.frame.y_scale.square()
            total = total + w * (own.covariance(rows)[..., None] * unit + apart[:, None] * apart[None])
        return mean, total


def _decide(found: list[Candidate], table: Tensor, w: Tensor) -> Decision:
    """Whether the sources are of use."""
    alone = torch.tensor([own.name == "target" for own in found])
    names = [own.name + ", trained" * own.trained for own in found]
    share, m = float(w[alone].sum()), len(table)
    gain = error = 0.0
    if alone.any() and not alone.all() and m:
        gains = densities(table, w) - densities(table[:, alone], stack(table[:, alone]))
        gain, error = float(gains.mean()), float(gains.std(correction=0)) / max(m - 1, 1) ** 0.5
    transfer = bool(not alone.all() and (not alone.any() or (share < 0.5 and gain > error) or m == 0))
    if alone.all():
        sentence = "there is nothing to transfer"
    elif not alone.any() or not m:
        sentence = "transfer was not compared with the target alone" + ", which has no labels" * (not m)
    else:
        verdict = "transfer" if transfer else "do not transfer"
        sentence = (f"{verdict}: the target's labels are foreseen with {gain:+.2f} ± {error:.2f} nats each against the target alone, which "
                    f"weighs {share:.0%} of the mixture")  # fmt: skip
    return Decision(transfer, gain, error, share, dict(zip(names, w.tolist(), strict=True)),
                    dict(zip(names, table.mean(0).tolist(), strict=True)) if m else {}, sentence)  # fmt: skip
