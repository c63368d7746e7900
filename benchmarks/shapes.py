"""Images of one shape each, in three styles, made here and now: a regression task with a shift of domain and with known answers.

A square, an ellipse or a triangle, turned by any angle, lies wholly in the image. With its circle of radius r = R s around the centre c
(sides of the image are 1 long),

    s, x, y         the targets: scale uniform in [1/2, 1], place x and y uniform in [0, 1]; c = R + (1 - 2 R) (x, y)
    area            square 2 r^2, ellipse pi r^2 / 2, triangle 3 sqrt(3) r^2 / 4; the centroid is c

and m, the covered part of each pixel from a grid of SUB x SUB points in it, the styles are, as in the data set that they follow,

    colour          m k                      k a colour, uniform in [1/2, 1]^3, on black
    noise           min(u + m, 1)            u uniform in [0, 1], for each pixel and channel
    texture         m (1 - t) + (1 - m) t    t = (waves + k) / 2, waves: the sum of plane waves of random directions with amplitudes
                                             1/frequency, spread over [0, 1] in each channel, k uniform in [0, 1]^3

Nothing is read from a file. The features are those of a small network, trained on other images of the source, varied as is usual.

Source: dSprites, Matthey et al. (2017), with colour, noise and "Scream" backgrounds by Locatello et al. (2019), used for regression by
Chen et al. (2021).
"""

import math
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from driftway.checks import choice, count
from driftway.store import read_tensors, write_tensors
from driftway.transport.stream import generator

DOMAINS = ("colour", "noise", "texture")
SHAPES = ("square", "ellipse", "triangle")
TARGETS = ("scale", "x", "y")
R, SUB, WAVES, CHUNK = 0.28, 4, 8, 250
HIGHEST = 5  # frequency of a wave, per side of the image
LIVE = 0.02  # of the largest spread of a feature

Images = Float32[Tensor, "n 3 side side"]


def render(domain: str, n: int, *, generator: torch.Generator, side: int = 32) -> tuple[Images, Float32[Tensor, "n 3"]]:
    """Draw n images of a domain.

    Args:
        domain: "colour", "noise" or "texture".
        n: number of images.
        generator: of everything random.
        side: of an image, in pixels.

    Returns:
        images in [0, 1], and targets: scale, x, y.

    Raises:
        InputError: if the domain is unknown or a number is not positive.
    """
    domain, n, side = choice("domain", domain, DOMAINS), count("n", n), count("side", side)
    uniform = lambda *size: torch.rand(*size, generator=generator)  # noqa: E731
    targets = uniform(n, 3)
    targets[:, 0] = (1 + targets[:, 0]) / 2
    shapes, angles = torch.randint(len(SHAPES), (n,), generator=generator), 2 * math.pi * uniform(n)
    parts = zip(shapes.split(CHUNK), angles.split(CHUNK), targets.split(CHUNK), strict=True)
    m = torch.cat([covered(kinds, turns, places, side) for kinds, turns, places in parts])[:, None]
    if domain == "colour":
        return m * (1 + uniform(n, 3, 1, 1)) / 2, targets
    if domain == "noise":
        return (uniform(n, 3, side, side) + m).clamp(max=1), targets
    t = (waves(n, side, generator=generator) + uniform(n, 3, 1, 1)) / 2
    return m * (1 - t) + (1 - m) * t, targets


def covered(shapes: Int64[Tensor, " n"], angles: Float32[Tensor, " n"], targets: Float32[Tensor, "n 3"], side: int
            ) -> Float32[Tensor, "n side side"]:  # fmt: skip
    """m: the covered part of each pixel."""
    at = (torch.arange(side * SUB) + 0.5) / (side * SUB)
    s, x, y = targets.T[:, :, None, None]
    across, down = (at - (R + (1 - 2 * R) * x)) / (R * s), (at[:, None] - (R + (1 - 2 * R) * y)) / (R * s)
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    a, b = cos * across + sin * down, cos * down - sin * across  # the unit circle is the shape's own
    square = torch.maximum(a.abs(), b.abs()) <= math.sqrt(0.5)
    ellipse = a**2 + 4 * b**2 <= 1
    triangle = torch.maximum(-b, b / 2 + math.sqrt(0.75) * a.abs()) <= 0.5
    inside = torch.where(shapes[:, None, None] == 0, square, torch.where(shapes[:, None, None] == 1, ellipse, triangle))
    return inside.float().reshape(len(s), side, SUB, side, SUB).mean((2, 4))


def waves(n: int, side: int, *, generator: torch.Generator) -> Images:
    """Sums of plane waves, spread over [0, 1] in each channel."""
    uniform = lambda *size: torch.rand(*size, generator=generator)  # noqa: E731
    frequency, direction = 1 + (HIGHEST - 1) * uniform(n, 3, WAVES), 2 * math.pi * uniform(n, 3, WAVES)
    phase, at = 2 * math.pi * uniform(n, 3, WAVES, 1, 1), 2 * math.pi * (torch.arange(side) + 0.5) / side
    across, down = frequency * direction.cos(), frequency * direction.sin()
    total = torch.zeros(n, 3, side, side)
    for j in range(WAVES):
        line = across[:, :, j, None, None] * at + down[:, :, j, None, None] * at[:, None] + phase[:, :, j]
        total += line.cos() / frequency[:, :, j, None, None]
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low).clamp(min=1e-9)


@dataclass(frozen=True)
class Sizes:
    """How many images there are of each kind, and how long the network trains.

    Attributes:
        images: of the source, that the network is trained on; no method sees them.
        epochs: of its training.
        source: labelled rows of the source.
        labelled: labelled rows of the target, at most.
        unlabelled: rows of the target without label.
        test: rows of the target.
    """

    images: int = 10000
    epochs: int = 15
    source: int = 400
    labelled: int = 100
    unlabelled: int = 500
    test: int = 1000


@dataclass(frozen=True)
class Task:
    """Features of the images of a source and of a target, all from one network, with their targets.

    Attributes:
        X_s: rows of the source.
        y_s: their targets.
        X_t: rows of the target that have labels; a method with m labels sees the first m.
        y_t: their labels.
        X_u: rows of the target without label.
        X: test rows of the target.
        y: their targets.
        own: what the network itself says of the test rows.
        own_t: and of those that have labels.
    """

    X_s: Tensor
    y_s: Tensor
    X_t: Tensor
    y_t: Tensor
    X_u: Tensor
    X: Tensor
    y: Tensor
    own: Tensor
    own_t: Tensor


def network(features: int = 128) -> nn.Sequential:
    """Three convolutions and a layer of features, then a linear layer."""
    body = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
                         nn.Flatten(), nn.Linear(1024, features), nn.ReLU())  # fmt: skip
    return nn.Sequential(body, nn.Dropout(0.3), nn.Linear(features, 3))


def varied(x: Images, *, generator: torch.Generator, level: float = 0.5) -> Images:
    """Images in other contrasts, signs and tints of each channel, on ramps, with noise: what a network is usually trained on."""
    n, side = len(x), x.shape[-1]
    uniform = lambda *size: torch.rand(*size, generator=generator)  # noqa: E731
    tint = lambda *size: level * (uniform(*size) - 0.5)  # noqa: E731
    gain, ramp = (1 - level * uniform(n, 3, 1, 1)) * (2 * (uniform(n, 3, 1, 1) < 0.5) - 1), torch.linspace(-1, 1, side)
    noise = level * uniform(n, 1, 1, 1) / 2 * torch.randn(x.shape, generator=generator)
    return gain * (x - 0.5) + tint(n, 3, 1, 1) + tint(n, 3, 1, 1) * ramp + tint(n, 3, 1, 1) * ramp[:, None] + noise


def train(source: str, seed: int, sizes: Sizes, *, rate: float = 1.5e-3, batch: int = 64) -> nn.Sequential:
    """The network of a source and a seed: AdamW on squared errors of varied images."""
    own = generator("shapes", source, seed, "network")
    x, y = render(source, sizes.images, generator=own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=own)))
        net = network()
        optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=sizes.epochs * -(-sizes.images // batch))
        for _ in range(sizes.epochs):
            for rows in torch.randperm(len(x), generator=own).split(batch):
                optimiser.zero_grad()
                (net(varied(x[rows], generator=own)) - y[rows]).square().mean().backward()
                optimiser.step()
                schedule.step()
    return net.eval().requires_grad_(False)


def task(source: str, target: str, seed: int, sizes: Sizes, cache: Path) -> Task:
    """Features of a source's network, from their file if it is there. Features that hardly vary are left out; one scale serves all."""
    key = f"{source}-{seed}-{'-'.join(map(str, astuple(sizes)))}.safetensors"
    if not (cache / key).is_file():
        net, held = train(source, seed, sizes), {}
        for domain in DOMAINS:
            for role, n in (("source", sizes.source), ("labelled", sizes.labelled), ("unlabelled", sizes.unlabelled), ("test", sizes.test)):
                x, y = render(domain, n, generator=generator("shapes", domain, seed, role))
                held |= {f"{domain} {role} X": net[0](x - 0.5), f"{domain} {role} y": y, f"{domain} {role} own": net(x - 0.5)}
        write_tensors(cache / key, held, {"source": source, "seed": seed})
    held = {name: tensor.double() for name, tensor in read_tensors("cache", cache / key)[1].items()}
    parts = [(source, "source"), (target, "labelled"), (target, "unlabelled"), (target, "test")]
    raw = [held[f"{domain} {role} X"] for domain, role in parts]
    spread = torch.cat(raw[:3]).std(0)
    live, mean, scale = spread > LIVE * spread.max(), raw[0].mean(0), raw[0].var(0).mean().sqrt()
    X_s, X_t, X_u, X = ((own[:, live] - mean[live]) / scale for own in raw)
    y_s, y_t, _, y = (held[f"{domain} {role} y"] for domain, role in parts)
    return Task(X_s, y_s, X_t, y_t, X_u, X, y, held[f"{target} test own"], held[f"{target} labelled own"])
