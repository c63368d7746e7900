"""Tangent kernels against the Jacobian: outputs, signs, products, projections, what inputs come in, and what a call leaves behind."""

import gc
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from driftway.checks import InputError
from driftway.kernels import memory
from driftway.kernels.tangent import TangentKernel, tangent_features, tangent_gram
from tests.kernels.jacobian import DOUBLE, draw, jacobian, shaken, trace_gram

C, V, T = 3, 9, 4  # outputs, tokens, positions


class Text(nn.Module):
    """Tokens and a mask to C scores; the head of all tokens has the weights of their table."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(V, 6, padding_idx=0), nn.Embedding(T + 3, 6)
        self.mix, self.norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, V)
        self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        h = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1])[None])
        h = self.norm(h + self.mix(h).tanh()) * mask[..., None]
        return self.head(h.sum(1) / mask.sum(1, keepdim=True))[:, :C]


def text() -> Text:
    return shaken(Text())  # type: ignore[return-value]


def tokens(n: int, T: int = T, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids, sizes = torch.randint(1, V, (n, T), generator=generator), torch.randint(1, T + 1, (n, 1), generator=generator)
    mask = (torch.arange(T) < sizes).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def plain() -> nn.Module:
    return shaken(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, C)))


def close(found: Tensor, known: Tensor, tolerance: float = 1e-10) -> None:
    assert found.shape == known.shape
    assert float((found - known).abs().max()) <= tolerance * float(known.abs().max())


# --- outputs and signs ----------------------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.3, -1.2, 0.7], dtype=DOUBLE)
READ = {"int": (1, lambda J: J[:, 1]), "last": (-1, lambda J: J[:, 2]), "pair": ((2, 0), lambda J: J[:, 2] - J[:, 0]),
        "tensor": (WEIGHTS, lambda J: torch.einsum("c,icp->ip", WEIGHTS, J)), "full": ("full", lambda J: J.flatten(0, 1)),
        "trace": ("trace", lambda J: J.flatten(1))}  # fmt: skip
SIGNS = {"none": (lambda g: g, lambda g: g), "both": (torch.sign, torch.sign), "left": (torch.sign, lambda g: g)}


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("read", READ)
def test_gram_and_cross_gram_are_products_of_the_jacobian(read, sign):
    model, x, y = text(), tokens(6), tokens(4, seed=1)
    outputs, rows = READ[read]
    J, L = rows(jacobian(model, x)), rows(jacobian(model, y))
    left, right = SIGNS[sign]
    found = tangent_gram(model, x, outputs=outputs, sign=sign, batch_size=4)
    close(found, left(J) @ right(J).mT)
    if sign != "left":
        assert torch.equal(found, found.mT)
    close(tangent_gram(model, x, y, outputs=outputs, sign=sign, batch_size=4), left(J) @ right(L).mT)
    a, b = tangent_features(model, x, outputs=outputs), tangent_features(model, y, outputs=outputs)
    close(a.cross(b, sign=sign), left(J) @ right(L).mT)
    close(b.cross(a, sign=sign), left(L) @ right(J).mT)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("read", ["pair", "full", "trace"])
def test_weights_of_parameters_are_a_diagonal_between_the_jacobians(read, sign):
    model, x, y = text(), tokens(6), tokens(4, seed=1)
    outputs, rows = READ[read]
    J, L = rows(jacobian(model, x)), rows(jacobian(model, y))
    weights = {name: 0.2 + 3 * i for i, (name, _) in enumerate(model.named_parameters())}
    D = torch.cat([torch.full((p.numel(),), weights[name], dtype=DOUBLE) for name, p in model.named_parameters()])
    if read == "trace":
        D = D.repeat(C)
    left, right = SIGNS[sign]
    found = tangent_gram(model, x, outputs=outputs, sign=sign, weights=weights, batch_size=4)
    close(found, (left(J) * D) @ right(J).mT)
    if sign != "left":
        assert torch.equal(found, found.mT)
    close(tangent_gram(model, x, y, outputs=outputs, sign=sign, weights=weights, batch_size=4), (left(J) * D) @ right(L).mT)
    features = tangent_features(model, x, outputs=outputs)
    close(features.gram(sign=sign, weights={**weights, "another": 7.0}), found)
    close(features.cross(tangent_features(model, y, outputs=outputs), sign=sign, weights=weights), (left(J) * D) @ right(L).mT)


def test_a_weight_for_every_parameter_is_asked_for():
    with pytest.raises(InputError, match=r"weights: expected a weight for each parameter in scope, got none for 2\.bias, 2\.weight;"):
        tangent_gram(plain(), draw(4, 5), weights={"0.weight": 1.0, "0.bias": 1.0})


@pytest.mark.parametrize("read", READ)
def test_diagonal_features_and_products(read):
    model, x = text(), tokens(6)
    outputs, rows = READ[read]
    J, found = rows(jacobian(model, x)), tangent_features(model, x, outputs=outputs, batch_size=4)
    K, V = J @ J.mT, draw(len(J), 2, seed=3)
    assert found.size == len(J)
    close(found.diagonal(), K.diagonal())
    close(found.operator() @ V, K @ V)
    close(found.operator() @ V[:, 0], K @ V[:, 0])
    close(found.dense() @ found.dense().mT, K)
    if read != "trace":
        close(found.dense(), J)
    columns = sum(shape.numel() for shape in found.shapes.values())
    assert columns == sum(p.numel() for p in model.parameters())


def test_one_score_for_each_row_is_one_output():
    model, x = plain(), draw(4, 5)
    flat = tangent_gram(model, x, forward=lambda model, batch: model(batch)[:, 1])
    assert torch.equal(flat, tangent_gram(model, x, outputs=1))
    close(flat, tangent_gram(model, x, forward=lambda model, batch: model(batch)[:, 1:2], outputs="full"))


def test_scores_are_those_of_the_model():
    model, x = text(), tokens(5)
    torch.testing.assert_close(tangent_features(model, x, batch_size=2).scores, model(**x).detach(), rtol=1e-12, atol=1e-12)


def test_the_kernel_predicts_a_step_of_gradient_descent():
    """One small step of f along the gradient of sum_j v_j f(x_j) moves f(y) by the step size times K(y, x) v, to first order."""
    model, x, y, v, eta = plain(), draw(6, 5), draw(3, 5, seed=1), draw(6, seed=2), 1e-6
    K, before = tangent_gram(model, y, x, outputs=0), model(y)[:, 0].detach()
    gradients = torch.autograd.grad(v @ model(x)[:, 0], list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            p += eta * g
    torch.testing.assert_close((model(y)[:, 0].detach() - before) / eta, K @ v, rtol=1e-3, atol=1e-4)


def test_a_linear_model_has_the_kernel_of_its_inputs():
    x = draw(7, 4)
    K = tangent_gram(nn.Linear(4, 2).double(), x, outputs=0)
    close(K, x @ x.mT + 1)


# --- projection -----------------------------------------------------------------------------------------------------------


def test_projections_are_unbiased_and_within_their_stated_error():
    """Over R seeds the mean of each entry is within five standard errors of K, and no spread is above the stated one."""
    model, x, R, dim = plain(), draw(5, 5), 400, 16
    found = tangent_features(model, x)
    K = found.gram()
    scale = (K.diagonal()[:, None] * K.diagonal()).sqrt()
    sketches = [found.project(dim, generator=torch.Generator().manual_seed(seed)) for seed in range(R)]
    off = torch.stack([s.features @ s.features.mT - K for s in sketches]) / scale
    assert all(s.error == pytest.approx(math.sqrt(2 / dim)) for s in sketches)
    bound = sketches[0].error
    assert float(off.mean(0).abs().max()) <= 5 * bound / math.sqrt(R)
    spread = off.square().mean(0).sqrt()
    assert float(spread.max()) <= bound * (1 + 5 / math.sqrt(2 * R))
    assert float(spread.max()) >= bound / 3  # stated, not vacuous


@pytest.mark.parametrize("outputs", ["trace", "full", 0])
def test_one_seed_projects_two_data_sets_alike(outputs):
    model, x, y = text(), tokens(3), tokens(4, seed=1)
    a, b = (tangent_features(model, z, outputs=outputs, memory=m) for z, m in ((x, 1.0), (y, 1e-6)))
    both = tangent_features(model, [x, y], outputs=outputs)
    S, U, W = (f.project(32, generator=torch.Generator().manual_seed(5)).features for f in (a, b, both))
    close(torch.cat([S, U]), W)


def test_a_wide_projection_is_the_kernel():
    found = tangent_features(plain(), draw(4, 5), outputs=0)
    S = found.project(200_000, generator=torch.Generator().manual_seed(0))
    close(S.features @ S.features.mT, found.gram(), 5 * S.error)


# --- what inputs come in --------------------------------------------------------------------------------------------------


def test_batches_come_as_tensor_array_dictionary_list_or_generator():
    model, x = plain(), draw(7, 5)
    K = tangent_gram(model, x)
    for held in (x.numpy(), [x[:3], x[3:]], (part for part in x.split(2)), [x.numpy()[:3], x[3:]]):
        close(tangent_gram(model, held), K)
    words, ids = text(), tokens(6)
    K = tangent_gram(words, ids)
    parts = [{name: entry[i : i + 2] for name, entry in ids.items()} for i in (0, 2, 4)]
    labelled = {**ids, "labels": torch.full((6,), torch.nan), "label": list("abcdef")}
    for held in (parts, iter(parts), {name: entry.numpy() for name, entry in ids.items()}, labelled, Held(ids)):
        close(tangent_gram(words, held), K)


class Held(Mapping):
    """A mapping that is no dictionary, as a tokenizer's output."""

    def __init__(self, entries):
        self.entries = entries

    def __getitem__(self, name):
        return self.entries[name]

    def __iter__(self):
        return iter(self.entries)

    def __len__(self):
        return len(self.entries)


def test_batches_may_be_padded_to_different_lengths():
    model = text()
    batches = [tokens(3, 4), tokens(2, 6, seed=1), tokens(4, 2, seed=2), tokens(1, 1, seed=3)]
    J = jacobian(model, batches)
    for size in (32, 2):
        found = tangent_features(model, batches, batch_size=size)
        close(found.gram(), trace_gram(J))
        close(found.diagonal(), trace_gram(J).diagonal())
        close(tangent_gram(model, batches, outputs=0, batch_size=size), J[:, 0] @ J[:, 0].mT)


@pytest.mark.parametrize("outputs", ["trace", "full", (0, 1)])
def test_the_batch_size_does_not_matter(outputs):
    model, x = text(), tokens(7)
    known = tangent_gram(model, x, outputs=outputs)
    for size in (1, 2, 3, 6):
        close(tangent_gram(model, x, outputs=outputs, batch_size=size), known)


def test_entries_of_one_row_go_to_every_row():
    def read(model, batch):
        return model(batch["x"] + batch["shift"]) * batch["scale"]

    model, x, shift = plain(), draw(5, 5), draw(1, 5, seed=1)
    batch = {"x": x, "shift": shift, "scale": 2.0}
    close(tangent_gram(model, batch, forward=read, batch_size=2), 4 * tangent_gram(model, x + shift))


# --- memory and files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("read", ["trace", "full", "int"])
def test_factors_in_files_give_what_factors_in_memory_give(read, temporary):
    model, x, y, outputs = text(), tokens(6), tokens(3, seed=1), READ[read][0]
    inside = tangent_features(model, x, outputs=outputs, batch_size=2)
    filed = tangent_features(model, x, outputs=outputs, batch_size=2, memory=1e-9)
    assert list(temporary.rglob("*.safetensors"))
    v = draw(inside.size, 2)
    close(filed.gram(), inside.gram())
    close(filed.gram(sign="both"), inside.gram(sign="both"))
    close(filed.dense(), inside.dense())
    close(filed.operator() @ v, inside.operator() @ v)
    other = tangent_features(model, y, outputs=outputs)
    close(filed.cross(other), inside.cross(other))
    close(other.cross(filed), other.cross(inside))
    sketch = [f.project(8, generator=torch.Generator().manual_seed(1)).features for f in (filed, inside)]
    close(*sketch)
    del filed
    gc.collect()
    assert not list(temporary.iterdir())


def test_layers_of_one_input_share_it_in_files(temporary):
    def call(net, x):
        return (net.q(x) * net.k(x) * net.v(x)).tanh().sum(1)

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(14, 14) for _ in range(3))

        forward = call

    model, x = shaken(Three()), draw(5, 2, 14)
    close(tangent_gram(model, x, memory=1e-9), trace_gram(jacobian(model, x)))
    assert not list(temporary.iterdir())


def test_nothing_is_left_in_files_after_an_error(temporary):
    model = plain()
    with pytest.raises(InputError):
        tangent_gram(model, [draw(3, 5), draw(2, 5) * torch.nan], memory=1e-9)
    gc.collect()
    assert not list(temporary.iterdir())


def test_matrices_that_do_not_fit_are_refused(monkeypatch):
    model, x = plain(), draw(40, 5)
    found = tangent_features(model, x)
    monkeypatch.setattr(memory, "available_memory", lambda device="cpu": 20_000)
    with pytest.raises(InputError, match=r"^batches: expected what fits into 1.86e-05 GiB.*use operator\(\) or project\(\)"):
        tangent_gram(model, x)
    with pytest.raises(InputError, match=r"^features: expected what fits into"):
        found.dense()
    close(found.operator() @ torch.ones(40, dtype=DOUBLE), trace_gram(jacobian(model, x)).sum(1))


# --- what a call leaves behind --------------------------------------------------------------------------------------------


def tower() -> nn.Module:
    """In single precision, with buffers, dropout, frozen and tied weights, and one module under two names."""
    torch.manual_seed(1)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), shared, nn.ReLU(inplace=True), nn.Dropout(0.5), shared, nn.Linear(6, 6),
                          nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, C))  # fmt: skip
    model[8].weight = model[6].weight
    model[0].weight.requires_grad_(False)
    return model.eval()


def picture(model: nn.Module) -> list[object]:
    """All that a call could change."""
    found: list[object] = []
    for name, module in model.named_modules(remove_duplicate=False):
        hooks = [len(getattr(module, kind)) for kind in vars(module) if kind.endswith("_hooks") and getattr(module, kind) is not None]
        found += [name, id(module), type(module), module.training, hooks]
        for held in (module._parameters, module._buffers):
            found += [(name, id(p), type(p), p.dtype, p.data_ptr(), p._version, p.requires_grad, p.grad, p.detach().numpy().tobytes())
                      for name, p in held.items() if p is not None]  # fmt: skip
    return [*found, torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()]


class Boom(RuntimeError):
    pass


@pytest.mark.parametrize("dtype", [None, torch.float32, DOUBLE])
def test_the_model_is_as_it_was(dtype):
    model, x = tower(), draw(5, 5).float()
    before = picture(model)
    tangent_gram(model, x, dtype=dtype, batch_size=2)
    assert picture(model) == before
    model(x).sum().backward()
    assert model[2].weight.grad is not None


def test_the_model_is_as_it_was_after_an_error_inside_it():
    model, x, calls = tower(), draw(5, 5).float(), []

    before = picture(model)

    def failing(stop):
        def read(model, batch):
            out = model(batch)
            calls.append(1)
            if len(calls) == stop:
                raise Boom
            return out

        return read

    tangent_gram(model, x, forward=failing(-1), batch_size=2)
    for stop in range(1, len(calls) + 1):
        calls.clear()
        with pytest.raises(Boom):
            tangent_gram(model, x, forward=failing(stop), batch_size=2)
        assert picture(model) == before


class Counting(nn.Module):
    """Writes into a buffer at every call."""

    def __init__(self):
        super().__init__()
        self.a, self.calls = nn.Linear(5, 2), nn.Buffer(torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return self.a(x)


def test_buffers_that_the_model_writes_are_as_they_were():
    model = Counting()
    tangent_gram(model, draw(5, 5).float())
    assert int(model.calls) == 0


def test_double_precision_of_a_single_precision_model_is_that_of_its_weights():
    model, x = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, C)), draw(5, 5)
    K = tangent_gram(model, x, dtype=DOUBLE)
    single = tangent_gram(model, x.float())
    assert K.dtype == single.dtype == DOUBLE
    close(single, K, 1e-5)
    close(K, trace_gram(jacobian(model.double(), x)))


def test_frozen_weights_count_unless_the_scope_says_trainable():
    model, x = plain(), draw(5, 5)
    known = tangent_gram(model, x)
    model[0].requires_grad_(False)
    assert torch.equal(tangent_gram(model, x), known)
    J = jacobian(model, x, ["2.weight", "2.bias"])
    close(tangent_gram(model, x, scope="trainable"), trace_gram(J))


def test_nothing_draws_random_numbers():
    model, before = plain(), torch.get_rng_state()
    tangent_gram(model, draw(4, 5), memory=1e-9)
    tangent_features(model, draw(4, 5)).project(3, generator=torch.Generator())
    assert torch.equal(before, torch.get_rng_state())


# --- the kernel as a kernel -----------------------------------------------------------------------------------------------


def test_the_kernel_joins_the_algebra():
    model, x, y = plain(), draw(5, 5), draw(4, 5, seed=1)
    k, K, L = TangentKernel(model), trace_gram(jacobian(model, x)), trace_gram(jacobian(model, x), jacobian(model, y))
    close(k(x), K)
    close(k(x, y), L)
    close(k.diagonal(x), K.diagonal())
    close((k * 2.0 + k * k)(x), 2 * K + K * K)
    one = TangentKernel(model, {"outputs": 1, "scope": "2.*"})
    J = jacobian(model, x, ["2.weight", "2.bias"])[:, 1]
    close(one(x), J @ J.mT)
    close(one.diagonal(x), (J @ J.mT).diagonal())


@pytest.mark.parametrize("options", [{"outputs": "full"}, {"sign": "both"}, {"scop": "all"}])
def test_options_that_make_no_kernel_are_refused(options):
    with pytest.raises(InputError, match=r"^options"):
        TangentKernel(plain(), options)(draw(5, 5))


# --- bad input ------------------------------------------------------------------------------------------------------------

x5 = draw(5, 5)
BAD_BATCHES = {
    "none": (None, "batches: expected a tensor, a dictionary of tensors, or an iterable of them, got NoneType"),
    "nothing": ([], "batches: expected at least one batch, got none; pass some rows (a generator is used up by one pass)"),
    "no-rows": (x5[:0], "batches: expected at least one row, got shape (0, 5)"),
    "pairs": ([(x5, x5)], "batches[0]: expected a tensor or a dictionary of tensors, got tuple; from a loader of (x, y) pass the x alone"),
    "texts": (["a text"], "batches[0]: expected a tensor or a dictionary of tensors, got str"),
    "array-of-texts": (np.array(["a", "b"]), "batches: expected"),
    "lists-of-tokens": ({"input_ids": [[1, 2], [3]]},
                        "batches: expected tensors, got a dictionary of input_ids; tokenize with return_tensors"),
    "nan": ([x5, x5 * torch.nan], "batches[1]: expected finite numbers, got 25 entries that are not; drop or fill them"),
    "uneven": ({"input": x5, "mask": x5[:3]}, "batches: expected the same number of rows in every tensor, got {'input': 5, 'mask': 3}"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_bad_batches_are_told(name):
    batches, text = BAD_BATCHES[name]
    with pytest.raises(InputError) as error:
        tangent_gram(plain(), batches)
    assert str(error.value).startswith(text)


def scores(shape) -> dict[str, object]:
    return {"forward": lambda model, batch: model(batch).sum() + torch.zeros(shape, dtype=DOUBLE)}


BAD_OPTIONS = {
    "outputs": ({"outputs": "all"}, 'outputs: expected "trace", "full", the number of an output, two such numbers, or one weight'),
    "outputs-beyond": ({"outputs": 3}, "outputs: expected numbers of outputs below 3, got 3; count outputs from 0"),
    "outputs-weights": ({"outputs": torch.ones(2)}, "outputs: expected one weight for each of the 3 outputs, got shape (2,)"),
    "sign": ({"sign": "plus"}, "sign: expected one of none, both, left, got 'plus'"),
    "memory": ({"memory": 0}, "memory: expected a finite number > 0, got 0"),
    "batch-size": ({"batch_size": 0}, "batch_size: expected a whole number >= 1, got 0"),
    "dtype": ({"dtype": torch.int32}, "dtype: expected"),
    "scope": ({"scope": "atention"},
              "scope: expected a part of the network or a glob over parameter names, got 'atention', which matches none"),
    "no-scope": ({"scope": ()}, "scope: expected a name or a list of names, got ()"),
    "scores-3d": (scores((5, 2, 2)), "forward: expected scores of shape (5,) or (5, outputs) for 5 rows, got shape (5, 2, 2)"),
    "scores-few": (scores((4, 2)), "forward: expected scores of shape (5,) or (5, outputs) for 5 rows, got shape (4, 2)"),
    "scores-tuple": ({"forward": lambda model, batch: (model(batch),)}, "forward: expected a tensor of scores from the model, got tuple"),
    "scores-nan": ({"forward": lambda model, batch: model(batch) / 0}, "forward: expected finite scores, got NaN or infinite ones"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_told(name):
    options, text = BAD_OPTIONS[name]
    with pytest.raises(InputError) as error:
        tangent_gram(plain(), x5, **options)  # type: ignore[arg-type]
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def test_nan_gradients_of_finite_scores_are_told():
    model = nn.Linear(5, 2, bias=False).double()
    x = draw(4, 5)
    x[2] = 0
    with pytest.raises(InputError, match="expected finite gradients"):
        tangent_gram(model, x, forward=lambda model, batch: model(batch).square().sum(1).sqrt())


def test_models_without_parameters_are_told():
    with pytest.raises(InputError, match=r"^model: expected a module with parameters, got ReLU"):
        tangent_gram(nn.ReLU(), x5)


def test_features_that_do_not_belong_together_are_told():
    model, other = plain(), shaken(nn.Linear(5, C))
    a = tangent_features(model, x5)
    for b in (tangent_features(other, x5), tangent_features(model, x5, outputs="full"), tangent_features(model, x5, scope="*.bias"),
              tangent_features(model, x5, outputs=0)):  # fmt: skip
        with pytest.raises(InputError, match=r"^other: expected features by the same network, scope and outputs"):
            a.cross(b)


class Noise(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(5, 4), nn.Linear(4, 2), kind
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True) if kind == "attention" else None

    def forward(self, x):
        h = self.a(x)
        if self.kind == "dropout":
            h = functional.dropout(h, 0.5)
        elif self.kind == "mean":
            h = h - h.mean(0)
        elif self.kind == "attention":
            h = self.attention(h[:, None], h[:, None], h[:, None])[0][:, 0]
        elif self.kind == "across":
            h = (h @ h.mT).softmax(1) @ h
        return self.b(h)


@pytest.mark.parametrize("n", [2, 3, 4, 9])
@pytest.mark.parametrize("kind", ["dropout", "mean", "attention", "across"])
def test_models_that_are_random_or_mix_rows_are_refused(kind, n):
    torch.manual_seed(0)
    model = Noise(kind).double().train(kind == "attention")
    with pytest.raises(InputError, match=r"^model"):
        tangent_gram(model, draw(n, 5))


@pytest.mark.parametrize(("layer", "why"), [(nn.Dropout(0.1), "Dropout in 1, which is random"),
                                            (nn.BatchNorm1d(3), "BatchNorm1d in 1, which mixes samples")])  # fmt: skip
def test_training_mode_is_refused_where_it_matters(layer, why):
    model = nn.Sequential(nn.Linear(5, 3), layer).double()
    model.train()
    with pytest.raises(InputError, match=rf"^model: expected evaluation mode, got training mode, with {why}; call model\.eval"):
        tangent_gram(model, x5)
    tangent_gram(model.eval(), x5)
    assert not model.training
    tangent_gram(nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.0)).double().train(), x5)


def test_batch_statistics_in_evaluation_mode_are_refused():
    for affine in (True, False):
        model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, affine=affine, track_running_stats=False)).double().eval()
        with pytest.raises(InputError, match=r"^model"):
            tangent_gram(model, x5)


def test_files_are_named_by_path_or_text(tmp_path):
    model = plain()
    for folder in (str(tmp_path / "a"), Path(tmp_path / "b")):
        close(tangent_gram(model, x5, cache=folder), tangent_gram(model, x5))
