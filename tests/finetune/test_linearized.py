"""A linearised network: its outputs are those of the Jacobian, its kernel stands still, its training is the closed form."""


import pytest
import torch
from torch import nn

from driftway.checks import InputError
from driftway.finetune.linearized import Linearized
from driftway.finetune.merging import change, pulled, sample_weights
from driftway.finetune.taskvector import TaskVector
from driftway.kernels import gradient_flow, tangent_features, tangent_gram
from tests.kernels.jacobian import draw, jacobian, shaken

DOUBLE = torch.float64


def mlp(outputs=2):
    torch.manual_seed(0)
    return shaken(nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, outputs)))


def random_vector(model, seed, names=None, size=1.0):
    return TaskVector({name: size * draw(*p.shape, seed=seed + i) for i, (name, p) in enumerate(model.named_parameters())
                       if names is None or name in names})  # fmt: skip


def flat(tau):
    return torch.cat([t.flatten() for t in tau.tensors.values()])


def test_outputs_are_f_0_plus_the_jacobian_times_delta():
    model, X = mlp(), draw(5, 3)
    tau = random_vector(model, 1)
    torch.testing.assert_close(Linearized(model)(X), model(X))
    torch.testing.assert_close(Linearized(model, at=tau)(X), model(X) + jacobian(model, X) @ flat(tau))


def test_the_model_is_not_touched_and_only_delta_is_trained():
    model, X = mlp(), draw(5, 3)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    linear = Linearized(model, scope="0.*").train()
    optimiser = torch.optim.AdamW([p for p in linear.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        linear(X).square().sum().backward()
        optimiser.step()
    assert all(p.requires_grad and p.grad is None and torch.equal(p, old[name]) for name, p in model.named_parameters())
    assert list(linear.task_vector().tensors) == ["0.weight", "0.bias"]
    assert linear.task_vector().norm() > 0
    assert linear.training
    assert not linear.base.training


def test_the_kernel_is_that_of_the_base_wherever_delta_is():
    model, X = mlp(), draw(5, 3)
    linear = Linearized(model, at=random_vector(model, 1, size=3.0))
    K = tangent_gram(model, X, outputs="full")
    torch.testing.assert_close(tangent_gram(linear, X, scope="trainable", outputs="full"), K)
    moved = random_vector(model, 1, size=3.0).apply(model)
    assert float((tangent_gram(moved, X, outputs="full") - K).norm() / K.norm()) > 0.1  # which the network itself does not keep


@pytest.mark.parametrize("outputs", [1, 2])
def test_gradient_descent_follows_the_closed_form(outputs):
    model, X, y, alpha, steps = mlp(outputs), draw(6, 3), draw(6, outputs, seed=3), 2e-3, 200
    features = tangent_features(model, X, outputs="full")
    K, f_0 = features.gram(), model(X).detach()
    linear = Linearized(model)
    optimiser = torch.optim.SGD([p for p in linear.parameters() if p.requires_grad], lr=alpha)
    for _ in range(steps):
        optimiser.zero_grad()
        ((linear(X) - y).square().sum() / 12).backward()
        optimiser.step()
    f_t = linear(X).detach()
    r = (y - f_0).flatten()
    powers = torch.linalg.matrix_power(torch.eye(len(K), dtype=DOUBLE) - alpha * K / 6, steps)
    torch.testing.assert_close((y - f_t).flatten(), powers @ r)
    flow = gradient_flow(K, r)
    mu = float(torch.linalg.eigvalsh(K)[-1]) / 6
    assert float(((y - f_t).flatten() - flow.residual(alpha * steps * outputs)).abs().max()) < alpha * mu * float(r.norm())
    expected = pulled(features, sample_weights(K, y - f_0, eta=alpha * steps))
    difference = (linear.task_vector() - expected).norm() / expected.norm()
    assert difference < alpha * mu


def test_task_vectors_compose_exactly():
    model, X = mlp(), draw(5, 3)
    a, b = random_vector(model, 1), random_vector(model, 9)
    start = model(X)
    gains = [Linearized(model, at=tau)(X) - start for tau in (a, b, 2 * a - 0.5 * b)]
    torch.testing.assert_close(gains[2], 2 * gains[0] - 0.5 * gains[1])
    assert (Linearized(model, at=a).task_vector() - a).norm() == 0


def test_a_state_is_read_back():
    model, X = mlp(), draw(5, 3)
    linear, other = Linearized(model, at=random_vector(model, 1)), Linearized(mlp())
    other.load_state_dict(linear.state_dict())
    torch.testing.assert_close(other(X), linear(X), rtol=0, atol=0)


def test_half_precision_weights_have_a_delta_in_single_precision():
    model = mlp().bfloat16()
    linear = Linearized(model)
    assert {d.dtype for d in linear.delta} == {torch.float32}
    assert linear(draw(4, 3).bfloat16()).dtype == torch.bfloat16


def test_tied_weights_move_together():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3), nn.Tanh(), nn.Linear(3, 6, bias=False)).double()
    model[2].weight = model[0].weight
    ids, tau = torch.arange(6), random_vector(model, 1)
    linear, s = Linearized(model, at=tau), 1e-6
    assert linear.names == ("0.weight",)
    with torch.no_grad():
        slope = (tau.apply(model, s)(ids) - tau.apply(model, -s)(ids)) / (2 * s)
        torch.testing.assert_close(linear(ids) - model(ids), slope, rtol=1e-7, atol=1e-8)


def test_the_fused_layer_of_torch():
    torch.manual_seed(0)
    model = shaken(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True))
    X, tau = draw(3, 4, 8), random_vector(model, 1)
    before = torch.backends.mha.get_fastpath_enabled()
    linear = Linearized(model, forward=lambda m, x: m(x)[:, 0], at=tau)
    J = jacobian(model, X, forward=lambda m, x: m(x)[:, 0])
    with torch.no_grad():
        torch.testing.assert_close(linear(X), model(X)[:, 0] + J @ flat(tau))
    assert torch.backends.mha.get_fastpath_enabled() == before


def language_model(transformers, name, attention):
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "Llama":
        sizes |= {"num_key_value_heads": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(**sizes, max_position_embeddings=16, attn_implementation=attention)
    model = shaken(getattr(transformers, f"{name}ForSequenceClassification")(config))
    ids = torch.randint(2, 20, (4, 6), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(6) < torch.tensor([6, 4, 2, 5])[:, None]).long()
    return model, {"input_ids": ids.where(mask == 1, 0), "attention_mask": mask}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["Bert", "Llama"])
def test_language_models_with_padded_texts(transformers, name, attention):
    model, batch = language_model(transformers, name, attention)
    tau = random_vector(model, 1, size=0.3)
    expected = model(**batch).logits.detach() + change(tangent_features(model, batch, outputs="full"), tau)
    linear = Linearized(model, at=tau)
    loose = {"rtol": 1e-5, "atol": 1e-5} if name == "Llama" else {}  # its norms and its softmax are in single precision
    torch.testing.assert_close(linear(**batch).detach(), expected, **loose)
    torch.testing.assert_close(linear(batch).detach(), expected, **loose)
    assert model.config._attn_implementation == attention
    linear(**batch).sum().backward()
    J = jacobian(model, batch).sum((0, 1))
    torch.testing.assert_close(torch.cat([d.grad.flatten() for d in linear.delta]), J, **loose)


def test_an_attention_without_tangents_is_replaced_in_the_copy_alone(transformers):
    model, batch = language_model(transformers, "Bert", "eager")
    tau = random_vector(model, 1, size=0.3)
    expected = Linearized(model, at=tau)(**batch)
    model.config._attn_implementation = "flash_attention_2"  # as a model on another machine has it
    linear = Linearized(model, at=tau)
    assert linear.base.model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "flash_attention_2"
    torch.testing.assert_close(linear(**batch), expected)


def test_bad_input():
    model, X = mlp(), draw(5, 3)
    with pytest.raises(InputError, match=r"^scope: "):
        Linearized(model, scope="attention")
    with pytest.raises(InputError, match=r"^scope: expected the tensors of the task vector, got none named 2.weight"):
        Linearized(model, scope=["0.*", "3.*"], at=random_vector(model, 1))
    with pytest.raises(InputError, match=r"^forward: expected a tensor of scores from the model, got tuple"):
        Linearized(model, forward=lambda m, x: (m(x),))(X)
    with pytest.raises(InputError, match=r"^model: expected operations with a forward derivative, got one without \(.*rnn"):
        Linearized(nn.LSTM(3, 4, batch_first=True), forward=lambda m, x: m(x)[0][:, -1])(draw(2, 5, 3).float())
