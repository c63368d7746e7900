"""GPyTorch's Gaussian processes for `adapt_peers`: a length scale for each column, and coregionalisation of two domains.

RBF; the lengths have the prior that BoTorch gives them, log-normal around sqrt(d) (Hvarfner et al. 2024). Coregionalisation: an index
kernel of rank 1 over the domains times the kernel of the columns (intrinsic model), one noise. The largest posterior density by
75 steps of Adam, float64, Cholesky.
"""

import math
from typing import Any

import gpytorch
import numpy as np
import torch
from gpytorch.kernels import IndexKernel, RBFKernel, ScaleKernel
from gpytorch.priors import LogNormalPrior

STEPS, RATE = 75, 0.2  # 150 at half the rate give the same to the third digit


class Process(gpytorch.models.ExactGP):
    """Columns, and one last column for the domain where there are two."""

    def __init__(self, X: torch.Tensor, y: torch.Tensor, likelihood: Any, domains: int) -> None:
        super().__init__(X, y, likelihood)
        d = X.shape[1] - (domains > 1)
        prior = LogNormalPrior(math.sqrt(2) + math.log(d) / 2, math.sqrt(3))
        rbf: Any = RBFKernel(ard_num_dims=d, lengthscale_prior=prior)
        rbf.lengthscale = math.sqrt(d)
        self.mean: Any = gpytorch.means.ConstantMean()
        self.columns: Any = rbf if domains > 1 else ScaleKernel(rbf)
        self.index: Any = IndexKernel(num_tasks=domains, rank=1) if domains > 1 else None
        self.d = d

    def forward(self, X: torch.Tensor) -> Any:
        covariance = self.columns(X[:, : self.d])
        if self.index is not None:
            covariance = covariance.mul(self.index(X[:, self.d :].long()))
        return gpytorch.distributions.MultivariateNormal(self.mean(X), covariance)


def predict(X: np.ndarray, y: np.ndarray, test: np.ndarray, *, domains: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of new observations."""
    rows, labels, new = (torch.as_tensor(part, dtype=torch.float64) for part in (X, y, test))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the index kernel starts at random
        likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        model = Process(rows, labels, likelihood, domains).double()
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    descent = torch.optim.Adam(model.parameters(), lr=RATE)
    model.train()
    for _ in range(STEPS):
        descent.zero_grad()
        loss: Any = -evidence(model(rows), labels)  # pyright: ignore[reportOperatorIssue]
        loss.backward()
        descent.step()
    model.eval()
    likelihood.eval()
    with torch.no_grad(), gpytorch.settings.skip_posterior_variances(False):
        found: Any = likelihood(model(new))
        return found.mean.numpy(), found.variance.sqrt().numpy()
