# %% [markdown]
# # From noise to moons, with a certificate
# Train a closed-form value on samples, move noise with one step, and prove how close to optimal the movement is.

# %%
import torch

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
assert transport.w2(z, y) < 2 * floor
assert certificate.lower <= exact <= certificate.upper
assert certificate.gap < 0.1
