"""The training step of closed-form mixtures: ascent on their exact dual, which is a likelihood.

    J = E_tgt[log v(Y)] - E_src[log c(X)]            with labels: the J of the whole law, plus the mean over the classes of theirs

Equation (T17): docs/derivations/transport.md.
"""

import torch
from torch import Tensor

from driftway.parallel import Group
from driftway.transport.dual import shares
from driftway.transport.labelled import LabelledMixture
from driftway.transport.learner import Learner, Settings
from driftway.transport.mixture import MixtureValue
from driftway.transport.primal_dual import assign
from driftway.transport.stream import Stream


class MixtureLearner(Learner):
    """Ascent on the exact dual of the closed-form family; with labels, on the duals of the whole law and of every class."""

    horizon = 3

    def __init__(self, value: MixtureValue | LabelledMixture, settings: Settings, *, eps: tuple[float, float], sigma: float,
                 group: Group) -> None:  # fmt: skip
        super().__init__(value, eps=eps, sigma=sigma, lr=settings.mixture_lr, group=group)
        self.mixture, self.settings = value, settings

    def eps(self, k: int) -> float:
        return self.eps_end + (self.eps_start - self.eps_end) / (1 + k / 100)

    def losses(self, k: int, source: Stream, target: Stream, own: torch.Generator) -> dict[str, Tensor]:
        del own
        n = self.group.size * self.settings.mixture_batch
        x, y = source.draw(n), target.draw(n)
        for value in (self.value, self.average):
            for part in value.modules():
                if isinstance(part, MixtureValue):
                    part.eps.fill_(self.eps(k))
        size, share = self.group.size, self.group.own
        losses = {"dual": size * (self.mixture.log_c(share(x.x)).sum() / len(x) - self.mixture.log_v(share(y.x)).sum() / len(y))}
        if isinstance(self.mixture, LabelledMixture) and y.c is not None:
            states, c = assign(x, y)
            mass = share(shares(c, y.c).to(y.x))
            gain = self.mixture.log_c(share(states), share(c)).sum() / len(c) - mass @ self.mixture.log_v(share(y.x), share(y.c))
            losses["labels"] = size * gain + sum(0 * z.sum() for k in y.c.unique().tolist() for z in self.mixture.part(k).parameters())
        return losses
