# %% [markdown]
# # From noise to moons, with a certificate
# Train a closed-form value on samples, move noise with one step, and prove how close to optimal the movement is.

# %%
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from driftway import transport
from driftway.data import moons, standard_normal

generator = torch.Generator().manual_seed(0)
noise, data = standard_normal(2), moons

# %%
# Samplers, arrays, tensors and DataLoaders all serve as data. With two data sets (here: two samplers) costs keep their units.
model = transport.fit(
    lambda n, own: noise.sample(n, generator=own),
    lambda n, own: data.sample(n, generator=own),
    steps=600,
)

# %% [markdown]
# One step is enough: the law of the end point is known, so more steps change nothing but the path.

# %%
x = noise.sample(1000, generator=generator)
y = data.sample(1000, generator=generator)
z = model.sample(x, steps=1)
floor = transport.w2(data.sample(1000, generator=generator), y)
print(f"W2 to fresh data {transport.w2(z, y):.3f}; of two sets of fresh data {floor:.3f}")

# %% [markdown]
# The certificate brackets half of W2² between the two samples. Its lower end comes from the prices, its upper end from the policy.

# %%
certificate = transport.certificate(model, x, y)
exact = transport.w2(x, y) ** 2 / 2
print(f"{certificate.lower:.4f} <= {exact:.4f} <= {certificate.upper:.4f}: a gap of {certificate.gap:.1%}")

# %%
picture = Figure(figsize=(8, 3.8), layout="constrained")
left, right = picture.subplots(1, 2, sharex=True, sharey=True)
left.add_collection(LineCollection(list(torch.stack([x, z], 1)[:300].numpy()), colors="#BBBBBB", linewidths=0.6))
left.scatter(*x[:300].T, s=6, color="#7F7F7F", label="noise")
left.scatter(*z[:300].T, s=6, color="#D55E00", label="moved in one step", zorder=3)
left.set(title="one straight step", aspect="equal", ylim=(-6.2, 4.4))
left.legend(loc="lower right")
right.scatter(*y.T, s=5, color="#0072B2", label="fresh data")
right.scatter(*z.T, s=5, color="#D55E00", label="moved", alpha=0.6)
right.set(title=f"W2 {transport.w2(z, y):.2f}; of two sets of data {floor:.2f}", aspect="equal")
right.legend(loc="lower right")

# %%
assert transport.w2(z, y) < 2 * floor
assert certificate.lower <= exact <= certificate.upper
assert certificate.gap < 0.1
