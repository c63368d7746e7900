"""Task vectors: their algebra, what they do to weights, and their folders, ours and that of transformers and mergekit."""

import json
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from driftway.checks import InputError
from driftway.finetune.taskvector import TaskVector, combined


def network(dtype=torch.float32, *, tie=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)
    if tie:
        model = nn.Sequential(nn.Embedding(6, 3), model, nn.Linear(3, 6, bias=False)).to(dtype)
        model[2].weight = model[0].weight
    return model


def moved(model, seed, *, size=0.1):
    generator, tuned = torch.Generator().manual_seed(seed), deepcopy(model)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator).to(p))
    return tuned


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def close(tau, sigma):
    assert list(tau.tensors) == list(sigma.tensors)
    for name, t in tau.tensors.items():
        torch.testing.assert_close(t, sigma.tensors[name], msg=name)


@pytest.mark.parametrize("forms", ["modules", "dicts", "base dict", "tuned dict"])
@pytest.mark.parametrize("tie", [False, True])
def test_base_plus_tau_is_the_tuned_model(forms, tie):
    base = network(tie=tie)
    tuned = moved(base, 1)
    a = base.state_dict() if forms in ("dicts", "base dict") else base
    b = tuned.state_dict() if forms in ("dicts", "tuned dict") else tuned
    tau = TaskVector.between(a, b)
    assert ("2.weight" in tau.tensors) is False if tie else True
    assert not any("num_batches" in name for name in tau.tensors)
    assert any("running" in name for name in tau.tensors) == (forms == "dicts")
    for name, t in tau.applied_to(base.state_dict()).items():
        torch.testing.assert_close(t, tuned.state_dict()[name])


def test_the_algebra_is_that_of_the_weights():
    base = network(torch.float64)
    a, b = (TaskVector.between(base, moved(base, seed)) for seed in (1, 2))
    close(a + b - b, a)
    close(2 * a, a + a)
    close(-(a * 0.5), a * -0.5)
    close(combined([a, b, a], [1, 2, 3]), a * 4 + b * 2)
    assert (a + b).norm() ** 2 == pytest.approx(a.norm() ** 2 + 2 * a.dot(b) + b.norm() ** 2)
    assert a.cosine(-2 * a) == pytest.approx(-1)
    assert a.cosine(b) == pytest.approx(a.dot(b) / a.norm() / b.norm())


def test_half_precision_keeps_its_dtype_and_loses_no_difference():
    base = network(torch.bfloat16)
    tuned = moved(base, 1, size=0.02)
    tau = TaskVector.between(base, tuned)
    assert {t.dtype for t in tau.tensors.values()} == {torch.float32}
    assert equal(tau.applied_to(base.state_dict()), tuned.state_dict())
    halves = (0.5 * tau).applied_to((0.5 * tau).applied_to({n: p.float() for n, p in base.state_dict().items() if n in tau.tensors}))
    for name, p in halves.items():
        torch.testing.assert_close(p, tuned.state_dict()[name].float())


def test_nothing_writes_into_its_argument():
    base = network()
    tuned, old = moved(base, 1), deepcopy(base.state_dict())
    tau = TaskVector.between(base, tuned)
    kept = {name: t.clone() for name, t in tau.tensors.items()}
    state, copied = tau.applied_to(base.state_dict()), tau.apply(base, -3)
    state["0.weight"].zero_()
    (tau + tau).tensors["0.weight"].zero_()
    assert equal(base.state_dict(), old)
    assert equal(tau.tensors, kept)
    torch.testing.assert_close(copied[0].weight, base[0].weight - 3 * tau.tensors["0.weight"])


def test_a_model_is_changed_for_a_while_and_gets_its_old_bits_back():
    base = network(torch.bfloat16, tie=True)
    old, tau = deepcopy(base.state_dict()), TaskVector.between(base, moved(base, 1))
    with tau.applied(base, 2) as model:
        assert model is base
        assert base[2].weight is base[0].weight
        assert equal(base.state_dict(), tau.applied_to(old, 2) | {"2.weight": base[0].weight.detach()})
    assert equal(base.state_dict(), old)
    with pytest.raises(RuntimeError, match="inside"), tau.applied(base):
        raise RuntimeError("inside")
    assert equal(base.state_dict(), old)
    assert all(p.requires_grad for p in base.parameters())


def test_tied_weights_stay_tied_in_a_state_dict():
    base = network(tie=True)
    state = TaskVector.between(base, moved(base, 1)).applied_to(base.state_dict())
    assert state["2.weight"] is state["0.weight"]
    assert not torch.equal(state["2.weight"], base[0].weight)


def test_scope():
    base = network()
    tuned = moved(base, 1)
    assert list(TaskVector.between(base, tuned, scope="norm").tensors) == ["1.weight", "1.bias"]
    assert list(TaskVector.between(base.state_dict(), tuned, scope=["0.*", "*.bias"]).tensors) == ["0.weight", "0.bias", "1.bias", "3.bias"]
    assert list(TaskVector.between(base.state_dict(), tuned.state_dict(), scope="3.*").tensors) == ["3.weight", "3.bias"]
    part = TaskVector.between(base, tuned, scope="3.*").apply(base)
    assert torch.equal(part[0].weight, base[0].weight)
    torch.testing.assert_close(part[3].weight, tuned[3].weight)


def test_bad_input():
    base = network()
    tuned, tau = moved(base, 1), TaskVector.between(base, moved(base, 1))
    with pytest.raises(InputError, match=r"^tuned: expected other weights than base, got the same object; keep a copy"):
        TaskVector.between(base, base)
    with pytest.raises(InputError, match=r"^tuned: expected the tensors of base, got none named 3.weight, 3.bias"):
        TaskVector.between(base, tuned[:3])
    with pytest.raises(InputError, match=r"^base: expected the tensors of tuned, got none named extra"):
        TaskVector.between(base, tuned.state_dict() | {"extra": torch.zeros(2)})
    with pytest.raises(InputError, match=r"3.weight \(3, 4\) against \(2, 4\)"):
        TaskVector.between(base, nn.Sequential(*tuned[:3], nn.Linear(4, 2)))
    with pytest.raises(InputError, match=r"^scope: .*'norm', which matches none; pass one of the two as a module"):
        TaskVector.between(base.state_dict(), tuned.state_dict(), scope="norm")
    with pytest.raises(InputError, match=r"^scope: "):
        TaskVector.between(base, tuned, scope="attention")
    for use in (tau.apply, lambda m: tau.applied(m).__enter__(), lambda m: tau.applied_to(m.state_dict())):
        with pytest.raises(InputError, match=r"expected the tensors of the task vector, got none named 3.weight, 3.bias"):
            use(base[:3])
    with pytest.raises(InputError, match=r"^scale: expected a finite number"):
        tau.apply(base, float("nan"))
    with pytest.raises(InputError, match=r"^coefficients: expected 1, one for each vector, got 2"):
        combined([tau], [1, 2])
    with pytest.raises(InputError, match=r"^vectors: expected at least one"):
        combined([])
    with pytest.raises(InputError, match=r"^other: expected two vectors other than zero"):
        tau.cosine(0 * tau)
    with pytest.raises(InputError, match="the same scope"):
        tau + TaskVector.between(base, tuned, scope="norm")


def test_a_task_vector_is_read_back(tmp_path):
    base = network(torch.bfloat16)
    tau = TaskVector.between(base, moved(base, 1))
    tau.save(tmp_path / "tau")
    assert sorted(path.name for path in (tmp_path / "tau").iterdir()) == ["config.json", "model.safetensors"]
    back = TaskVector.load(str(tmp_path / "tau"))
    assert set(back.tensors) == set(tau.tensors)
    assert all(torch.equal(t, back.tensors[name]) for name, t in tau.tensors.items())
    assert (back - tau).norm() == 0
    with pytest.raises(InputError, match=r"^folder: expected a model folder"):
        TaskVector.load(tmp_path / "none")


def llama(transformers):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True)).to(torch.bfloat16)


def merged(base, tasks, weights):
    """What mergekit's task_arithmetic does, from the files: deltas in the base's dtype, tensor by tensor under the base's names."""
    return {name: (t + sum(w * (task[name].to(t.dtype) - t) for task, w in zip(tasks, weights, strict=True))).to(t.dtype)
            for name, t in base.items()}  # fmt: skip


@pytest.mark.parametrize("shards", [False, True])
def test_an_export_is_a_model_for_transformers_and_for_task_arithmetic(transformers, tmp_path, shards):
    base = llama(transformers)
    base.save_pretrained(tmp_path / "base", **({"max_shard_size": "1KB"} if shards else {}))
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "base" / "pytorch_model.bin.index.json").write_text("{}")
    taus = [TaskVector.between(base, moved(base, seed, size=0.02)) for seed in (1, 2)]
    for k, tau in enumerate(taus):
        tau.export(tmp_path / "base", str(tmp_path / f"task {k}"))
    folder = tmp_path / "task 0"
    assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "base").iterdir()} - {"pytorch_model.bin.index.json"}
    assert len(list(folder.glob("*.safetensors"))) > 1 or not shards
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    back = transformers.LlamaForCausalLM.from_pretrained(folder)
    assert equal(dict(back.named_parameters()), dict(taus[0].apply(base).named_parameters()))
    read = [{name: t for f in sorted(p.glob("*.safetensors")) for name, t in load_file(f).items()}
            for p in (tmp_path / "base", folder, tmp_path / "task 1")]  # fmt: skip
    assert "lm_head.weight" not in read[0]
    assert [{n: (t.shape, t.dtype) for n, t in r.items()} for r in read[1:]] == [{n: (t.shape, t.dtype) for n, t in read[0].items()}] * 2
    theirs, ours = merged(read[0], read[1:], [0.6, 0.4]), combined(taus, [0.6, 0.4]).applied_to(read[0])
    for name, t in theirs.items():
        torch.testing.assert_close(t, ours[name], rtol=2**-6, atol=2**-10)


def test_exports_are_strict(transformers, tmp_path):
    base = llama(transformers)
    base.save_pretrained(tmp_path / "base")
    tau = TaskVector.between(base, moved(base, 1))
    with pytest.raises(InputError, match=r"^folder: expected another folder than base"):
        tau.export(tmp_path / "base", tmp_path / "x" / ".." / "base")
    with pytest.raises(InputError, match=r"^base: expected a folder with model.safetensors, got none in .*; write the base with"):
        tau.export(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match=r"^base: expected the tensors of the task vector, got none named head.weight"):
        TaskVector({"head.weight": torch.zeros(2)}).export(tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"^folder: "):
        TaskVector.load(tmp_path / "base")
