# %% [markdown]
# # From one data set to another
# Two data sets that were never paired. What moves where depends on whether labels must survive the journey.

# %%
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from driftway import transport

generator = torch.Generator().manual_seed(0)


def clusters(left: str, height: float, n: int = 2000) -> tuple[torch.Tensor, list[str]]:
    """Rows around (-2, height) and (2, height), and their colours: `left` on the left, the other on the right."""
    side = torch.arange(n) % 2
    rows = 0.5 * torch.randn(n, 2, generator=generator) + torch.stack([4.0 * side - 2, torch.full((n,), height)], 1)
    return rows, [left if s == 0 else ({"red", "blue"} - {left}).pop() for s in side.tolist()]


x, x_labels = clusters("red", 0.0)
y, y_labels = clusters("blue", 3.0)

# %% [markdown]
# Without labels every row goes straight up to the near cluster: the cheapest way, which turns red into blue.

# %%
settings = transport.Settings(components=8)
plain = transport.fit(x, y, settings=settings, steps=250, certify_every=1000)

# %% [markdown]
# With labels on both sides red stays red, and distance decides within a colour only.

# %%
coloured = transport.fit(x, y, labels=y_labels, source_labels=x_labels, settings=settings, steps=250, certify_every=1000)

# %%
fresh, names = clusters("red", 0.0, 1000)
goal, goal_names = clusters("blue", 3.0, 1000)
ends = {"without labels": plain.sample(fresh), "with labels": coloured.sample(fresh, label=names)}


def kept(rows: torch.Tensor) -> float:
    """The fraction of rows that end in the cluster of their own colour; in the target blue is on the left."""
    return sum((name == "blue") == (row[0] < 0) for name, row in zip(names, rows.tolist(), strict=True)) / len(rows)


for title, rows in ends.items():
    print(f"{title}: {kept(rows):.0%} keep their colour, W2 to fresh target rows {transport.w2(rows, goal):.3f}")

# %% [markdown]
# The cost of the plain model is certified on rows that it has not seen; for the coloured one, each colour has a certificate of its own.

# %%
certificate = transport.certificate(plain, fresh, goal)
red, red_goal = (
    rows[torch.tensor([name == "red" for name in colours])] for rows, colours in ((fresh, names), (goal, goal_names))
)  # fmt: skip
within = transport.certificate(coloured, red, red_goal, label="red")
print(f"all: {certificate.lower:.3f} <= W2²/2 <= {certificate.upper:.3f}; red: {within.lower:.3f} to {within.upper:.3f}")

# %% [markdown]
# The way back is the same value, negated: no training, the same straight paths.

# %%
back = plain.reverse().sample(plain.sample(fresh, steps=20, rule="explicit"), steps=20)
error = (back - fresh).norm(dim=1).median()
print(f"there and back again, the median row misses its start by {error:.3f}")

# %%
picture = Figure(figsize=(8, 3.6), layout="constrained")
for axes, (title, rows) in zip(picture.subplots(1, 2, sharey=True), ends.items(), strict=True):
    lines = torch.stack([fresh, rows], 1)[:150]
    axes.add_collection(LineCollection(list(lines.numpy()), colors=[f"tab:{name}" for name in names[:150]], alpha=0.4, linewidths=0.7))
    axes.scatter(*rows.T.numpy(), s=4, c=[f"tab:{name}" for name in names])
    axes.set(title=title, aspect="equal")

# %%
assert kept(ends["without labels"]) < 0.02
assert kept(ends["with labels"]) > 0.98
assert certificate.lower <= certificate.upper
assert certificate.gap < 0.1
assert within.gap < 0.1
assert error < 0.1
