# %% [markdown]
# # Regression on a target with few labels
# The power of a wind turbine on the coast is on record. The same type now stands on a mountain, in thinner air, colder and windier, and
# with its power limited at 1.6 MW instead of 2. Thirty measurements of it have been taken. What does it yield at other weather, how sure is
# that, and are the old records of any use? All records are generated here, so that the answers are known.

# %%
import warnings

import numpy as np
from matplotlib.figure import Figure
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from driftway.adapt import AutoTransferRegressor, PooledGP, TargetOnlyGP, importance_weighted_cv

rng = np.random.default_rng(2)
COLUMNS = ["wind m/s", "temperature C", "pressure hPa", "turbulence", "yaw degrees"]
SOURCE, LABELS, UNLABELLED, TEST = 200, 30, 100, 700
QUANTILE = 1.645  # of 90 % intervals


def weather(n, wind, shape, temperature):
    """Records of the weather: Weibull winds, the rest independent."""
    return np.c_[wind * rng.weibull(shape, n), temperature + 6 * rng.standard_normal(n), 1013 + 8 * rng.standard_normal(n),
                 rng.gamma(6, 0.02, n), 12 * rng.standard_normal(n)]  # fmt: skip


def power(X, air=1.0, limit=2.0, noise=0.04):
    """MW: half the density of the air times the cube of the wind across the rotor, up to a limit; and an error of measurement."""
    wind, temperature, pressure, turbulence, yaw = X.T
    density = air * 1.2 * pressure / 1013 * 288 / (273 + temperature)
    free = 0.5 * density * 0.42 * 5000 * (wind * np.cos(np.pi * yaw / 180)) ** 3 / 1e6 * (1 + 3 * turbulence**2)
    capped = free * (1 + (free / limit) ** 3) ** (-1 / 3)
    return capped * (1 - np.clip(turbulence - 0.1, 0, None)) + noise * rng.standard_normal(len(X))


# %% [markdown]
# ## One table for both
# `sample_domain` tells where a row is from: a positive code is a source, a negative one the target. Target rows without label have NaN in
# y. They serve too: they show the weather up there.

# %%
coast, mountain = weather(SOURCE, 8, 2.2, 12), weather(LABELS + UNLABELLED + TEST, 11, 2.2, 0)
coast_power, mountain_power = power(coast), power(mountain, air=0.75, limit=1.6)
known, test = slice(0, LABELS), slice(LABELS + UNLABELLED, None)
X = np.concatenate([coast, mountain[: LABELS + UNLABELLED]])
y = np.concatenate([coast_power, mountain_power[known], np.full(UNLABELLED, np.nan)])
domain = np.repeat([1, -1], [SOURCE, LABELS + UNLABELLED])


def judged(model):
    """On rows that no model has seen: mean absolute error, the share of 90 % intervals that hold, and half their mean width."""
    mean, std = model.predict(mountain[test], return_std=True)
    error = np.abs(mean - mountain_power[test])
    return float(error.mean()), float((error < QUANTILE * std).mean()), float(QUANTILE * std.mean())


models = {"thirty labels alone": TargetOnlyGP(), "all as one": PooledGP(), "transfer": AutoTransferRegressor()}
found = {name: judged(model.fit(X, y, sample_domain=domain)) for name, model in models.items()}
for name, (error, coverage, width) in found.items():
    print(f"{name:20s} error {1000 * error:3.0f} kW, 90 % intervals of ± {1000 * width:.0f} kW hold {coverage:.0%}")

# %% [markdown]
# ## Was it worth it?
# `AutoTransferRegressor` fits several processes, each as a network at its initialisation and trained. Every label of the target is foreseen
# by each of them from other rows, and they count as much as they foresee. So the verdict costs no label. The correlation that was learned
# says the same in another way: 1 would be the same function on the coast and up there, 0 two that know nothing of each other.

# %%
auto = models["transfer"]
correlation = auto.correlation_[0, 1]
print(f"{auto.decision_.sentence}; correlation {correlation:.2f}")
for name, weight in auto.decision_.weights.items():
    print(f"  {name:20s} {weight:4.0%}")

# %% [markdown]
# ## A source that is of no use
# The logger on the coast has mixed up its rows: the power no longer belongs to the weather beside it. Nothing tells the regressor. With
# thirty labels the verdict is not always this one; what it costs to be wrong is little, as the weights are small in any case.

# %%
mixed = np.concatenate([rng.permutation(coast_power), y[SOURCE:]])
control = AutoTransferRegressor().fit(X, mixed, sample_domain=domain)
without = judged(control)
print(f"{control.decision_.sentence}; error {1000 * without[0]:.0f} kW, 90 % intervals hold {without[1]:.0%}")

# %% [markdown]
# ## No label at all
# Summer on the coast: the same turbine, so that power given weather is as before, but warm and calm. How far off will which regression be?
# Cross-validation answers for the weather on record. Weighted by how much more often summer has such weather, the same errors answer for
# summer.

# %%
summer = weather(UNLABELLED + TEST, 5, 3, 20)
summer_power = power(summer[UNLABELLED:])
both = np.concatenate([coast, summer[:UNLABELLED]])
labels = np.concatenate([coast_power, np.full(UNLABELLED, np.nan)])
seasons = np.repeat([1, -1], [SOURCE, UNLABELLED])
choices = {"quadratic": make_pipeline(StandardScaler(), PolynomialFeatures(2), Ridge()),
           "cubic": make_pipeline(StandardScaler(), PolynomialFeatures(3), Ridge()),
           "boosting": HistGradientBoostingRegressor(random_state=0)}  # fmt: skip
plain, weighted, truth = {}, {}, {}
for name, model in choices.items():
    plain[name] = -cross_val_score(model, coast, coast_power, scoring="neg_mean_squared_error").mean()
    weighted[name] = importance_weighted_cv(model, both, labels, seasons)
    truth[name] = ((model.fit(coast, coast_power).predict(summer[UNLABELLED:]) - summer_power) ** 2).mean()
    print(f"{name:10s} mean squared error cross-validated {plain[name]:.4f}, weighted {weighted[name].value:.4f} ± "
          f"{weighted[name].error:.4f}, in truth {truth[name]:.4f}")  # fmt: skip
print(f"the weights of {SOURCE} rows are worth {weighted['cubic'].ess:.0f} equal ones")

# %% [markdown]
# Without labels a fit works as well, and says what it rests on.

# %%
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    PooledGP().fit(both, labels, sample_domain=seasons)
for warning in heard:
    print(warning.message)

# %%
picture = Figure(figsize=(9, 3.6), layout="constrained")
left, right = picture.subplots(1, 2, width_ratios=(1.4, 1))
wind = np.linspace(0, 25, 100)
line = np.tile(np.median(mountain, 0), (100, 1))
line[:, 0] = wind
for name, colour in (("thirty labels alone", "#999999"), ("transfer", "#0072B2")):
    mean, std = models[name].predict(line, return_std=True)
    left.plot(wind, mean, color=colour, label=name)
    left.fill_between(wind, mean - QUANTILE * std, mean + QUANTILE * std, color=colour, alpha=0.2, linewidth=0)
left.plot(wind, power(line, air=0.75, limit=1.6, noise=0), color="#D55E00", linestyle="--", label="truth")
left.plot(mountain[known, 0], mountain_power[known], "k.", label="labels")
left.set(title="on the mountain, other weather at its median", xlabel=COLUMNS[0], ylabel="MW", ylim=(-0.4, 2.1))
left.legend(frameon=False, loc="upper left")
right.barh(list(auto.decision_.weights), list(auto.decision_.weights.values()), color="#0072B2")
right.set(title="weights of the mixture")

# %%
alone, pooled, transfer = (found[name] for name in models)
assert transfer[0] < 0.8 * alone[0]
assert transfer[0] < 0.7 * pooled[0]
assert transfer[1] > 0.85
assert auto.decision_.transfer
assert auto.decision_.gain > 0.1
assert correlation > 0.8
assert not control.decision_.transfer
assert without[0] < 1.15 * alone[0]
assert min(weighted, key=lambda name: weighted[name].value) == min(truth, key=truth.get)
assert all(abs(np.log(weighted[name].value / truth[name])) < abs(np.log(plain[name] / truth[name])) for name in ("quadratic", "boosting"))
assert any("no target row has a label" in str(warning.message) for warning in heard)
