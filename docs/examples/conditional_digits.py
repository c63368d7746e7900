# %% [markdown]
# # Digits by label
# Train one value for ten classes, draw the digit you ask for, and exaggerate it with guidance.

# %%
import torch
from matplotlib.figure import Figure
from sklearn.svm import SVC

from driftway import transport
from driftway.data import digits

values, labels = digits()
images = values.reshape(-1, 8, 8)
training, held = torch.arange(len(images)).split([1297, 500])

# %% [markdown]
# Labels are one whole number or text for each row. Each state is paired with images of its own label, and a tenth of the states with
# images of all: these train the value of null, the law of all digits.

# %%
model = transport.fit(
    None, images[training], labels=labels[training], family="vector", settings=transport.Settings(width=128, lr=5e-3),
    held=(None, images[held]), certify_every=10_000, steps=250,
)  # fmt: skip
asked = torch.arange(10).repeat_interleave(20)
drawn = {weight: model.sample(len(asked), steps=2, label=asked, guidance=weight) for weight in (1.0, 2.0)}

# %% [markdown]
# A classifier that was fitted to real digits reads the drawn ones. Surer than on real held-out digits is no better: it means alike.

# %%
judge = SVC(gamma="scale").fit(images[training].flatten(1).numpy(), labels[training].numpy())


def read(rows: torch.Tensor, names: torch.Tensor) -> float:
    """The fraction of the rows that the classifier takes for what they are called."""
    return float((judge.predict(rows.flatten(1).numpy()) == names.numpy()).mean())


real, plain, guided = read(images[held], labels[held]), read(drawn[1.0], asked), read(drawn[2.0], asked)
print(f"read as asked: real digits {real:.3f}, guidance 1 {plain:.3f}, guidance 2 {guided:.3f}")

# %% [markdown]
# Values can be read under a label. The certificate of one label is about images of that label.

# %%
x = torch.randn(1000, 8, 8, generator=torch.Generator().manual_seed(0))
certificate = transport.certificate(model, x, images[labels == 3], label=3)
print(f"to the digit 3: {certificate.lower:.2f} <= W2²/2 <= {certificate.upper:.2f}")

# %%
picture = Figure(figsize=(8, 4.4), layout="constrained")
for axes, (weight, rows) in zip(picture.subplots(1, 2), drawn.items(), strict=True):
    tiles = torch.nn.functional.pad(rows, (1, 1, 1, 1)).reshape(10, 20, 10, 10)[:, :10]
    sheet = tiles.transpose(1, 2).reshape(100, 100)
    axes.imshow(sheet.numpy(), cmap="gray_r", vmin=0, vmax=16)
    axes.set(title=f"guidance {weight:g}", xticks=[], yticks=[])

# %%
assert model.classes == tuple(range(10))
assert plain > 0.9
assert guided > plain - 0.02
assert certificate.lower <= certificate.upper
