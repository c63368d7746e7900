# %% [markdown]
# # Kernels of networks
# Three things to do with a network and no training: regress with honest intervals, read off how fast a network can learn, and test whether
# two samples have one law.

# %%
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from torch import nn

from driftway import kernels, linalg
from driftway.data import digits

generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## A network of infinite width, and what it does not know
# At infinite width a random network is a Gaussian process. On 300 patients, depth and noise are chosen by the marginal likelihood, which
# needs no held-out rows. All ten columns and the target are standardised with the training rows.

# %%
columns, disease = (torch.from_numpy(a) for a in load_diabetes(return_X_y=True))
order = torch.randperm(len(columns), generator=generator)
train, held = order[:300], order[300:]
x = (columns - columns[train].mean(0)) / columns[train].std(0)
y = (disease - disease[train].mean()) / disease[train].std()

fits = {}
for depth in (1, 2, 3):
    network = kernels.FullyConnected(depth, "erf", w_std=1.0, b_std=0.3)
    S = network.nngp(x[train])
    fits |= {(depth, noise): (network, kernels.posterior(S, y[train], noise=noise)) for noise in (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)}
(depth, noise), (network, fit) = max(fits.items(), key=lambda item: float(item[1][1].log_marginal_likelihood()))

cross = network.nngp(x[held], x[train])
mean = fit.mean(cross)
spread = (fit.variance(cross, network.nngp.diagonal(x[held])) + noise).sqrt()
inside = ((y[held] - mean).abs() < 1.645 * spread).double().mean()
explained = 1 - (y[held] - mean).square().mean() / y[held].var()
print(f"{depth} hidden layers, noise {noise}: R² {explained:.2f} on {len(held)} held-out rows, {inside:.0%} of them in the 90 % interval")

# %% [markdown]
# ## The tangent kernel of a network at hand
# Any module has a tangent kernel at its present weights. Its spectrum says along how many directions of the data gradient descent learns
# quickly. Here a small convolutional network on 400 digits, with all ten outputs.

# %%
values, labels = digits()
images = values.reshape(-1, 1, 8, 8).float() / 16
torch.manual_seed(0)  # of the layers' weights
cnn = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
                    nn.Flatten(), nn.Linear(512, 10)).eval()  # fmt: skip
K = kernels.tangent_gram(cnn, images[:400])
spectrum = linalg.eigendecompose(K)
decay = linalg.fit_decay(spectrum)
low, high = decay.exponent_interval
print(f"decay: {decay.verdict}; exponent {decay.exponent:.2f} ({low:.2f} to {high:.2f}); {decay.remarks[0]}")
print(f"effective dimension at 1 % of the trace: {spectrum.effective_dimension(0.01 * spectrum.trace):.1f} of {spectrum.size}")

# %% [markdown]
# Scopes without common parameters add up: here the readout and everything below it.

# %%
parts = [kernels.tangent_gram(cnn, images[:100], scope=scope) for scope in ("5.*", ("0.*", "2.*"))]

# %% [markdown]
# ## One law or two?
# MMD with the NTK of an infinite network, and a permutation test whose level is exact. Are the first eights of the file like the later
# ones? They are not: the file goes from writer to writer. Shuffled eights have one law.

# %%
eights = images[labels == 8]
shuffled = eights[torch.randperm(len(eights), generator=generator)]
ntk = kernels.FullyConnected(2, "relu").ntk
in_order, mixed = (kernels.mmd_test(z[:80], z[80:], kernel=ntk, generator=generator) for z in (eights, shuffled))
print(f"p-values: the first 80 eights against the rest {in_order.p_value:.3f}, shuffled {mixed.p_value:.3f}")

# %%
picture = Figure(figsize=(12, 3.6), layout="constrained")
left, middle, right = picture.subplots(1, 3)
rank, place = mean.argsort(), torch.arange(len(held))
left.fill_between(place, (mean - 1.645 * spread)[rank], (mean + 1.645 * spread)[rank], color="#0072B2", alpha=0.2, label="90 % interval")
left.plot(place, mean[rank], color="#0072B2", label="mean")
left.scatter(place, y[held][rank], s=8, color="#D55E00", label="held-out rows", zorder=3)
left.set(title="diabetes: a network of infinite width", xlabel="rows by prediction", ylabel="progression, standardised")
left.legend(frameon=False)
power = decay.power
assert power is not None
j = torch.arange(1, len(spectrum.values) + 1)
middle.loglog(j, spectrum.values, ".", color="#0072B2", markersize=4)
used = torch.arange(power.first, power.last + 1)
middle.loglog(used, power.amplitude * (used + power.shift) ** -power.slope, color="#D55E00", label=f"exponent {power.slope:.2f}")
middle.set(title=f"digits: tangent kernel of a network ({decay.verdict})", xlabel="j", ylabel="eigenvalue of K/n")
middle.legend(frameon=False)
right.hist(in_order.null, bins=40, color="#BBBBBB", label="permutations")
right.axvline(in_order.statistic, color="#D55E00", label="as filed")
right.axvline(mixed.statistic, color="#0072B2", label="shuffled")
right.set(title="80 eights against 94: MMD² with the NTK", xlabel="MMD²", ylabel="permutations")
right.legend(frameon=False, loc="center")

# %%
assert 0.8 < inside < 0.97
assert explained > 0.4
torch.testing.assert_close(parts[0] + parts[1], K[:100, :100], rtol=1e-4, atol=1e-4)
assert decay.verdict == "power"
assert in_order.rejected
assert mixed.p_value > 0.05
