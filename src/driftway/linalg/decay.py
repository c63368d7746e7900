"""The law by which the eigenvalues mu_j of a kernel matrix decay.

    finite rank   mu_j = 0 beyond m, or a flat level far below mu_m
    exponential   mu_j ~ A exp(-c j)
    power         mu_j ~ A (j + s)^-alpha                   alpha = 2b;  -2 <= s <= 2, as -1/2 in ((j - 1/2) pi)^-2, changes no rate

The last two are lines, y_j = log mu_j = log A - slope x_j with x_j = j or log(j + s), fitted by least squares in y.

Range, last. Rounding and flat noise are left out, and so are j > last = n/6 (16 for n < 96, but at most n/3). For features with
independent coordinates E mu_j^ = mu_j + (1/n) sum_k mu_j mu_k / (mu_j - mu_k) (Lawley, 1956), for a power law

    mu_j (1 + beta j/n),   beta = -(pi/alpha) cot(pi/alpha):

a sample's exponent near j is alpha - beta j/n, and its spectrum bends down towards j = n whatever the law.
Range, first. The fit to [last/4, last] is extended to smaller j while the next value is as predicted, within three standard errors,
20 %, or one place (repeated eigenvalues make stairs) up to a factor exp(1/2). The first eigenvalues of real kernels belong to no law.

Interval. Neighbouring log mu_j are not independent, and laws hold up to slow corrections. The variance of the slope has three parts: a
jackknife over blocks of neighbours, the square of the larger change when the first or the last third of the range is left out, and
the square of half the change with s = 0. Power laws: the interval reaches further by |beta| last / (2n), to the side where beta says
the truth lies. Such intervals are wide rather than narrow: they are to hold for samples of 100 points and more.

Equations (K36), (K37), (K38): docs/derivations/kernels.md.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from driftway.checks import kind, real, require
from driftway.linalg.spectrum import Spectrum

LEAST = 6  # values that a law is fitted to
MARGIN = 1.25  # a law wins when the other's error is this much larger
MISFIT = 0.1  # residuals beyond this fraction of the fall of log mu refuse a law
BEND = 1.5  # so does this ratio of the slopes of the two halves


@dataclass(frozen=True)
class Law:
    """A fitted law, log mu_j = log A - slope x_j.

    Attributes:
        name: "exponential" (x_j = j, slope c) or "power" (x_j = log(j + shift), slope alpha).
        amplitude: A.
        slope: c or alpha.
        shift: s; 0 for "exponential".
        interval: of the slope.
        first: index of the first eigenvalue that it was fitted to, counted from 1.
        last: and of the last.
        residual: root mean square residual of log mu there.
        error: root mean square error of predicting blocks of log mu from the others, on [last/4, last] for both laws.
        bend: slope on the second half of the range of x over that on the first; 1 if they agree within three standard errors.
    """

    name: str
    amplitude: float
    slope: float
    shift: float
    interval: tuple[float, float]
    first: int
    last: int
    residual: float
    error: float
    bend: float


@dataclass(frozen=True)
class Decay:
    """What is known of the decay of a spectrum.

    Attributes:
        verdict: "finite rank", "exponential", "power" or "none".
        rank: m: the index before the sharp drop if there is one, else the numerical rank.
        drop: log(mu_m / mu_{m+1}) of a sharp drop, else 0.
        exponential: the best exponential law, whatever the verdict; None with fewer than 6 usable eigenvalues.
        power: the best power law, likewise.
        remarks: in plain words; the first says why the verdict is what it is.
    """

    verdict: str
    rank: int
    drop: float
    exponential: Law | None
    power: Law | None
    remarks: tuple[str, ...]

    @property
    def exponent(self) -> float:
        """Alpha of the best power law, whatever the verdict; NaN if there is none."""
        return self.power.slope if self.power else math.nan

    @property
    def exponent_interval(self) -> tuple[float, float]:
        """Its interval."""
        return self.power.interval if self.power else (math.nan, math.nan)


def fit_decay(spectrum: Spectrum, *, confidence: float | int = 0.95) -> Decay:
    """The law by which a spectrum decays, or "none" where no law holds.

    "finite rank" needs m <= n/2 and a drop after mu_m by a factor 5 or more, in logarithms five times the median of the ten steps
    before it and three times mu_{m+1} over the mean of the values after it. Otherwise the law wins that predicts left-out blocks of log mu
    better, if the other's error is 25 % larger or more. It is refused when mu falls by less than 1.5, when it starts after eigenvalue 8
    and last/8, when its residuals exceed 0.1 of the fall of log mu, and when the slopes of its halves differ by a factor 1.5 (an
    exponential may get faster).

    Args:
        spectrum: of K/n; all eigenvalues, or the largest.
        confidence: of the intervals.

    Raises:
        InputError: if the confidence is not between 0 and 1, or all eigenvalues are zero.
    """
    kind("spectrum", spectrum, Spectrum, "a Spectrum")
    confidence = real("confidence", confidence, least=0, strict=True)
    require(confidence < 1, "confidence", expected="a number below 1", got=confidence, cure="pass e.g. 0.95")
    mu, n, floor, remarks = spectrum.values.cpu(), spectrum.size, spectrum.floor, []
    require(float(mu[0]) > 0, "spectrum", expected="a positive eigenvalue", got="zeros only", cure="check that the features are not zero")
    level = _flat_level(mu, n, floor)
    m, drop = _drop(mu, n, spectrum.rest, max(level, floor))
    if level and int((mu > 6 * level).sum()) >= 10:  # otherwise the tail is most of what there is
        mu, floor = mu - level, max(floor, level / 2)
        remarks.append(f"a flat tail of {level:.2g} was subtracted, and eigenvalues below 5 times it were left out")
    above = int((mu > 10 * floor).sum())
    last = min(above, m if drop else n, max(round(n / 6), 16), max(n // 3, LEAST))
    if last == above < len(mu) and not drop:
        remarks.append(f"eigenvalues after number {above} are rounding or noise and were left out")
    y = mu[:last].log()
    laws = {name: _law(name, y, n, confidence) for name in ("exponential", "power")} if last >= LEAST else {}
    verdict, reasons = _judge(laws, y)
    if drop:
        verdict, reasons = "finite rank", [f"after eigenvalue {m} a drop by a factor {math.exp(min(drop, 700)):.2g}"]
    elif verdict == "power":
        remarks.extend(_remarks(laws["power"]))
    return Decay(verdict, m, drop, laws.get("exponential"), laws.get("power"), (*reasons, *remarks))


def _flat_level(mu: Float[Tensor, " k"], n: int, floor: float) -> float:
    """The least of all n values if the last quarter is flat within 20 %, as noise on the diagonal of K makes it; else 0."""
    least = float(mu[-1])
    return least if len(mu) == n >= 16 and least > floor and float(mu[3 * n // 4]) < 1.2 * least else 0.0


def _drop(mu: Float[Tensor, " k"], n: int, rest: float, floor: float) -> tuple[int, float]:
    """m and the size of the drop after mu_m; without a sharp drop the number of values above the floor, and 0."""
    floor, best, size = max(floor, 1e-300), int((mu > floor).sum()), 0.0
    filled = torch.cat([mu, mu.new_full((n - len(mu),), rest / max(n - len(mu), 1))])
    logs = filled.clamp_min(floor).log()
    after = (filled.sum() - filled.cumsum(0)) / (n - 1 - torch.arange(n)).clamp_min(1)  # mean of the values after each
    spread = logs - after.clamp_min(floor).log()
    for m in range(1, min(len(mu), n // 2) + 1):
        gap, typical = float(logs[m - 1] - logs[m]), float(-logs[max(m - 11, 0):m].diff().median()) if m > 1 else 0.0
        if gap > max(math.log(5), 5 * typical, 3 * float(spread[m]), size):
            best, size = m, gap
    return best, size


def _judge(laws: dict[str, Law], y: Float[Tensor, " m"]) -> tuple[str, list[str]]:
    """The better law and why, or "none" and why."""
    if not laws:
        return "none", [f"fewer than {LEAST} eigenvalues can be used"]
    law, other = sorted(laws.values(), key=lambda law: law.error)
    faster = law.name == "exponential" and law.bend > 1
    why = f"the {law.name} law predicts log mu with error {law.error:.2g}, the {other.name} law with {other.error:.2g}"
    fall = float(y[law.first - 1] - y[law.last - 1])
    if fall < math.log(1.5):
        return "none", [f"the eigenvalues fall by a factor {math.exp(fall):.2g} only, from number {law.first} to number {law.last}"]
    if other.error < MARGIN * law.error:
        return "none", [f"{why}: too close to tell them apart"]
    if law.first > max(8, law.last / 8):
        return "none", [f"the best law ({law.name}) holds from eigenvalue {law.first} on only"]
    if law.residual > MISFIT * fall:
        return "none", [f"the residuals of the best law ({law.name}), {law.residual:.2g} in log mu, exceed {MISFIT:g} of its fall"]
    if not faster and not 1 / BEND <= law.bend <= BEND:
        return "none", [f"the slope of the best law ({law.name}) changes by a factor {law.bend:.2g} within the range"]
    return law.name, [why] + faster * [f"the decay is faster than exponential: the rate grows by a factor {law.bend:.2g} in the range"]


def _remarks(power: Law) -> list[str]:
    remarks = []
    if power.first > 1:
        remarks.append(f"the eigenvalues before number {power.first} do not belong to the law and were left out")
    if power.slope <= 1:
        remarks.append(f"the exponent {power.slope:.2f} is <= 1: outside the trace-class regime of the theorem")
    elif power.interval[0] <= 1:
        remarks.append(f"the exponent may be <= 1 (interval from {power.interval[0]:.2f}), outside the trace-class regime of the theorem")
    return remarks


@dataclass(frozen=True)
class _Line:
    """y = a - slope x, its root mean square residual, and the shift in x (None for "exponential")."""

    a: float
    slope: float
    residual: float
    shift: float | None

    def x(self, j: Tensor) -> Tensor:
        return j if self.shift is None else (j + self.shift).clamp_min(0.25).log()

    def miss(self, j: Tensor, y: Tensor) -> Tensor:
        return y - self.a + self.slope * self.x(j)


def _line(x: Tensor, y: Tensor, shift: float | None = None) -> _Line:
    centred = x - x.mean()
    slope = -float(centred @ y / (centred @ centred))
    a = float(y.mean()) + slope * float(x.mean())
    return _Line(a, slope, float((y - a + slope * x).square().mean().sqrt()), shift)


def _fit(name: str, j: Tensor, y: Tensor) -> _Line:
    """The line of least squares; over shifts too, to 0.0025."""
    if name == "exponential":
        return _line(j, y)
    low, s = max(-2.0, 0.5 - float(j[0])), 0.0
    for width, points in ((2.0, 81), (0.05, 41)):
        grid = torch.linspace(s - width, s + width, points, dtype=y.dtype).clamp(low, 2)
        x = (j + grid[:, None]).log()
        x = x - x.mean(1, keepdim=True)
        s = float(grid[((x @ (y - y.mean())).square() / x.square().sum(1)).argmax()])
    return _line((j + s).log(), y, s)


def _law(name: str, y: Float[Tensor, " m"], n: int, confidence: float) -> Law:
    j = torch.arange(1, len(y) + 1, dtype=y.dtype)
    core = min(max(2, math.ceil(len(j) / 4)), len(j) - LEAST + 1) - 1
    misses = [_fit(name, *kept).miss(*block) for block, kept in _splits(j[core:], y[core:])]
    first = _first(name, j, y, core)
    j, y = j[first:], y[first:]
    line, third, splits = _fit(name, j, y), len(j) // 3, _splits(j, y)
    g, left_out = len(splits), torch.tensor([_fit(name, *kept).slope for _, kept in splits])
    change = max(abs(_fit(name, j[part], y[part]).slope - line.slope) for part in (slice(third, None), slice(len(j) - third)))
    unshifted = 0.0 if line.shift is None else (_line(j.log(), y).slope - line.slope) / 2
    spread = math.sqrt((g - 1) * float(left_out.var(correction=0)) + change**2 + unshifted**2)
    half = float(stdtrit(g - 1, (1 + confidence) / 2)) * spread
    angle = math.pi / max(line.slope, 1.25)  # beta diverges at alpha = 1
    pull = -angle / math.tan(angle) * float(j[-1]) / (2 * n) if name == "power" else 0.0
    interval = line.slope - half + min(pull, 0.0), line.slope + half + max(pull, 0.0)
    return Law(name, math.exp(line.a), line.slope, line.shift or 0.0, interval, int(j[0]), int(j[-1]), line.residual,
               error=float(torch.cat(misses).square().mean().sqrt()), bend=_bend(line.x(j), y))  # fmt: skip


def _splits(j: Tensor, y: Tensor) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Up to 8 blocks of neighbours, each with what is left without it."""
    g = min(8, len(j) // 2)
    edges = [round(i * len(j) / g) for i in range(g + 1)]
    return [((j[a:b], y[a:b]), (torch.cat([j[:a], j[b:]]), torch.cat([y[:a], y[b:]]))) for a, b in pairwise(edges)]


def _first(name: str, j: Tensor, y: Tensor, first: int) -> int:
    """How many values to leave out at the start, at most `first`."""
    while first > 0:
        line, new = _fit(name, j[first:], y[first:]), j[first - 1:first]
        x, z = line.x(j[first:]), line.x(new)
        leverage = 1 + 1 / len(x) + float((z - x.mean()).square() / (x - x.mean()).square().sum())
        place = line.slope * float(x[0] - z)
        beyond = line.shift is not None and first + line.shift <= 0
        if beyond or abs(float(line.miss(new, y[first - 1:first]))) > max(3 * line.residual * math.sqrt(leverage), 0.2, min(place, 0.5)):
            break
        first -= 1
    return first


def _bend(x: Tensor, y: Tensor) -> float:
    cut, slopes, variance = min(max(int((x < (x[0] + x[-1]) / 2).sum()), 3), len(x) - 3), [], 0.0
    for part in (slice(cut), slice(cut, None)):
        line, m = _line(x[part], y[part]), len(x[part])
        slopes.append(line.slope)
        variance += line.residual**2 * m / (m - 2) / float((x[part] - x[part].mean()).square().sum())
    if abs(slopes[1] - slopes[0]) <= 3 * math.sqrt(variance) + 1e-9 * abs(slopes[0]):
        return 1.0
    return max(slopes[1] / slopes[0], 0.0) if slopes[0] > 0 else math.inf
