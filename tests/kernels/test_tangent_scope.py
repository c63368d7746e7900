"""Parts of networks: each parameter in one of them, by the names real libraries use; and real transformers against their Jacobian."""

import warnings

import pytest
import torch
from torch import nn

from driftway.checks import InputError
from driftway.kernels.tangent import tangent_features, tangent_gram
from driftway.kernels.tangent.scope import PARTS, part, select
from tests.kernels.jacobian import DOUBLE, draw, jacobian, shaken, trace_gram


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.blocks, self.lm_head = nn.Embedding(7, 4), nn.ModuleList([nn.Linear(4, 4)]), nn.Linear(4, 7)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        return self.lm_head(self.blocks[0](self.wte(ids)).tanh().mean(1))


def names(model, scope) -> list[str]:
    return list(select(model, scope))


def parts_of(model) -> list[str]:
    found = []
    for name in PARTS:
        try:
            select(model, name)
        except InputError:
            continue
        found.append(name)
    return found


# --- the choice -----------------------------------------------------------------------------------------------------------


def test_a_tied_parameter_is_in_the_part_of_its_first_name_and_under_any_name():
    model = Tied()
    assert names(model, "all") == ["wte.weight", "blocks.0.weight", "blocks.0.bias", "lm_head.bias"]
    assert names(model, "embedding") == ["wte.weight"]
    assert names(model, "head") == ["lm_head.bias"]
    assert names(model, "lm_head.*") == ["wte.weight", "lm_head.bias"]
    assert names(model, ("lm_head.weight", "wte.*", "embedding")) == ["wte.weight"]


def test_scopes_are_parts_globs_names_or_several():
    model = Tied()
    assert names(model, "mlp") == names(model, "blocks.0.*") == ["blocks.0.weight", "blocks.0.bias"]
    assert names(model, "*.bias") == ["blocks.0.bias", "lm_head.bias"]
    assert names(model, ["head", "mlp"]) == ["blocks.0.weight", "blocks.0.bias", "lm_head.bias"]  # in the order of the model
    assert names(model, "blocks.0.bias") == ["blocks.0.bias"]
    model.blocks.requires_grad_(False)
    assert names(model, "trainable") == ["wte.weight", "lm_head.bias"]
    model.requires_grad_(False)
    with pytest.raises(InputError, match=r"^scope: .* got 'trainable', which matches none"):
        select(model, "trainable")


@pytest.mark.parametrize(("entry", "words"), [("atention", "(embedding, head, mlp)"), ("lm_heed.*", "close names: lm_head"),
                                              ("wte.wieght", "close names: wte.weight"), ("", "the first names: wte.weight")])  # fmt: skip
def test_what_matches_nothing_is_told_with_close_names(entry, words):
    with pytest.raises(InputError, match=r"^scope: expected a part of the network or a glob") as error:
        select(Tied(), ("head", entry))
    assert f"got {entry!r}, which matches none" in str(error.value)
    assert words in str(error.value)


def test_parts_of_common_names():
    def of(owner, name):
        return part(owner, name)

    linear, norm = nn.Linear(2, 2), nn.LayerNorm(2)
    assert of(linear, "layer1.0.conv1.weight") == "mlp"
    assert of(nn.BatchNorm2d(2), "layer1.0.downsample.1.weight") == "norm"
    assert of(linear, "fc.weight") == of(linear, "classifier.6.weight") == of(linear, "head.weight") == "head"
    assert of(linear, "transformer.h.0.attn.c_proj.weight") == of(linear, "model.layers.0.self_attn.out_proj.weight") == "attention"
    assert of(norm, "attention.output.LayerNorm.weight") == "norm"
    assert of(linear, "base_model.model.x.attention.q.lora_A.default.weight") == "lora"
    assert of(linear, "base_model.model.classifier.modules_to_save.default.weight") == "head"
    assert of(linear, "base_model.model.bert.pooler.dense.weight") == of(linear, "module.bert.pooler.dense.weight") == "head"
    assert of(linear, "conv1.weight") == of(linear, "weight") == "other"
    assert of(type("NormalNet", (nn.Module,), {})(), "scale") == "other"


def additive(model, batch) -> None:
    known, parts = tangent_gram(model, batch), parts_of(model)
    split = [set(select(model, name)) for name in parts]
    assert sum(map(len, split)) == len(set().union(*split)) == len(select(model, "all"))
    total = sum(tangent_gram(model, batch, scope=name) for name in parts)
    torch.testing.assert_close(total, known, rtol=1e-8, atol=1e-9 * float(known.abs().max()))


def test_the_matrices_of_all_parts_add_up():
    ids = torch.randint(7, (5, 3), generator=torch.Generator().manual_seed(0))
    model = shaken(Tied())
    additive(model, ids)
    J = jacobian(model, ids, ["blocks.0.weight", "blocks.0.bias", "lm_head.bias"])
    torch.testing.assert_close(tangent_gram(model, ids, scope=("head", "mlp")), trace_gram(J), rtol=1e-10, atol=1e-10)
    assert list(tangent_features(model, ids, scope="head").shapes) == ["lm_head.bias"]


# --- transformers ---------------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
         "max_position_embeddings": 12, "pad_token_id": 0}  # fmt: skip
GPT2 = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 12, "pad_token_id": 0}
OPT = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 12, "max_position_embeddings": 12,
       "pad_token_id": 0, "word_embed_proj_dim": 8}  # fmt: skip
DISTIL = {"vocab_size": 20, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12, "max_position_embeddings": 12, "pad_token_id": 0}
MODELS = {  # kind, configuration, tolerance
    "bert": ("Bert", SIZES, 1e-10), "gpt2": ("GPT2", GPT2, 1e-10), "llama": ("Llama", {**SIZES, "num_key_value_heads": 1}, 1e-6),
    "roberta": ("Roberta", {**SIZES, "max_position_embeddings": 16, "pad_token_id": 1}, 1e-10), "distilbert": ("DistilBert", DISTIL, 1e-10),
    "opt": ("OPT", OPT, 1e-10),
}  # fmt: skip
# Llama computes its norms and its softmax in single precision


def build(transformers, name, attention="eager", head="ForSequenceClassification", **options):
    kind, sizes, _ = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**sizes, attn_implementation=attention, **options)
    return shaken(getattr(transformers, kind + head)(config))


def padded(n=4, T=6, pad=0):
    ids = torch.randint(2, 20, (n, T), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(T) < torch.tensor([T, T - 2, 2, T - 1])[:n, None]).long()
    return {"input_ids": ids.where(mask == 1, pad), "attention_mask": mask, "labels": torch.arange(n) % 2}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_transformers_give_their_jacobian_without_a_slow_parameter(transformers, name, attention):
    model, batch = build(transformers, name, attention), padded()
    J, tolerance = jacobian(model, batch), MODELS[name][2]
    found = tangent_features(model, batch, batch_size=3)
    assert found.slow == frozenset()
    scale = float(trace_gram(J).abs().max())
    torch.testing.assert_close(found.gram(), trace_gram(J), rtol=tolerance, atol=tolerance * scale)
    margin = J[:, 1] - J[:, 0]
    torch.testing.assert_close(tangent_gram(model, batch, outputs=(1, 0)), margin @ margin.mT, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("name", ["roberta", "distilbert", "opt"])
def test_other_transformers_are_exact(transformers, name):
    model, batch = build(transformers, name), padded(3, pad=MODELS[name][1]["pad_token_id"])
    K, tolerance = trace_gram(jacobian(model, batch)), MODELS[name][2]
    torch.testing.assert_close(tangent_gram(model, batch), K, rtol=tolerance, atol=tolerance * float(K.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_parts_of_transformers(transformers, name):
    model = build(transformers, name)
    assert set(parts_of(model)) == {"norm", "embedding", "attention", "head", "mlp"}
    attention = names(model, "attention")
    assert all("attn" in n or "attention" in n for n in attention)
    assert not any("norm" in n.lower() for n in attention)
    assert all(n.split(".")[0] in ("classifier", "pre_classifier", "score") or ".pooler." in n for n in names(model, "head"))
    assert all("emb" in n or ".wte." in n or ".wpe." in n for n in names(model, "embedding"))
    assert not any(n.endswith("_token") for n in names(model, "mlp"))


def test_the_parts_of_a_language_model_with_tied_head_add_up(transformers):
    model = build(transformers, "gpt2", head="LMHeadModel")
    batch = {k: v for k, v in padded(3).items() if k != "labels"}

    def last(model, batch):
        return model(**batch).logits[:, -1, :2]

    parts = parts_of(model)
    assert parts == ["norm", "embedding", "attention", "mlp"]  # the head is the table
    total = sum(tangent_gram(model, batch, scope=name, forward=last) for name in parts)
    K = trace_gram(jacobian(model, batch, forward=last))
    torch.testing.assert_close(total, K, rtol=1e-9, atol=1e-9 * float(K.abs().max()))


def test_a_language_model_is_told_to_choose_a_score(transformers):
    model = build(transformers, "gpt2", head="LMHeadModel")
    with pytest.raises(InputError, match=r"^forward: expected scores of shape \(4,\).*got shape \(4, 6, 20\); pass forward=lambda model"):
        tangent_gram(model, padded())


@pytest.fixture(scope="module")
def adapted(transformers):
    peft = pytest.importorskip("peft", reason="not installed; driftway does not need it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(transformers, "bert")
        return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")).double().eval()


def test_adapters_at_their_start_have_no_gradient_in_a(adapted):
    batch = padded()
    lora = names(adapted, "lora")
    assert len(lora) == 4
    assert all("lora_" in name for name in lora)
    assert torch.equal(tangent_gram(adapted, batch, scope="*lora_A*"), torch.zeros(4, 4, dtype=DOUBLE))
    K = trace_gram(jacobian(adapted, batch, lora))
    found = tangent_features(adapted, batch, scope="lora")
    assert found.slow == frozenset()
    torch.testing.assert_close(found.gram(), K, rtol=1e-10, atol=1e-10 * float(K.abs().max()))
    assert torch.equal(tangent_gram(adapted, batch, scope="*lora_B*"), found.gram())


def test_adapters_and_the_trained_head_are_what_is_trainable(adapted):
    batch, trainable = padded(), names(adapted, "trainable")
    assert set(trainable) == {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert [n for n in trainable if "lora_" not in n] == [n for n in names(adapted, "head") if "modules_to_save" in n]
    K = trace_gram(jacobian(adapted, batch, trainable))
    torch.testing.assert_close(tangent_gram(adapted, batch, scope="trainable"), K, rtol=1e-10, atol=1e-10 * float(K.abs().max()))
    additive(adapted, batch)


def test_images_of_a_vision_transformer(transformers):
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, image_size=4,
                                    patch_size=2)  # fmt: skip
    model, batch = shaken(transformers.ViTForImageClassification(config)), {"pixel_values": draw(3, 3, 4, 4)}
    found, K = tangent_features(model, batch), trace_gram(jacobian(model, batch))
    torch.testing.assert_close(found.gram(), K, rtol=1e-10, atol=1e-10 * float(K.abs().max()))
    assert all("token" in name or "position" in name for name in found.slow)  # parameters of the model itself
    assert set(parts_of(model)) == {"norm", "embedding", "attention", "head", "mlp"}
