import json
import logging
import shutil
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from driftway.checks import InputError
from driftway.finetune.heads import Head, head, one_hot
from driftway.finetune.language import LanguageModel, load_language_model, with_lora
from driftway.finetune.probe import problem

WORDS = ["good", "bad", "film", "a", "very", "plot", "and", "fine", "dull"]
TEXTS = ["a good film", "bad plot", "a very fine film and a good plot", "dull", "very bad film", "fine and good"]
SMALL = {"vocab_size": 16, "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 16, "pad_token_id": 1}  # fmt: skip
KINDS = {"bert": SMALL, "roberta": SMALL, "llama": SMALL | {"num_key_value_heads": 1},
         "distilbert": {"vocab_size": 16, "max_position_embeddings": 24, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
         "gpt2": {"vocab_size": 16, "n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2}}  # fmt: skip
LAYER = {"bert": "classifier", "roberta": "classifier.out_proj", "distilbert": "classifier", "gpt2": "score", "llama": "score"}


def tokenizer(transformers, words=WORDS, **special):
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", "[PAD]", "[END]", *words])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **({"unk_token": "[UNK]", "pad_token": "[PAD]"} | special))


@pytest.fixture
def folder(transformers, tmp_path):
    """Writes a random model of a kind; without a head, or with one for so many outputs."""

    def write(kind="bert", outputs=None, name="model", words=WORDS, **special):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **KINDS[kind])
        if outputs:
            config.num_labels = outputs
        auto = transformers.AutoModelForSequenceClassification if outputs else transformers.AutoModel
        model = auto.from_config(config)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape))  # biases too
        model.save_pretrained(tmp_path / name)
        tokenizer(transformers, words, **({"pad_token": None, "eos_token": "[END]"} if kind in ("gpt2", "llama") else {}) | special
                  ).save_pretrained(tmp_path / name)  # fmt: skip
        return tmp_path / name

    return write


def load(path, outputs=2, length=20, **options) -> LanguageModel:
    return load_language_model("--model", path, outputs=outputs, length=length, **options)


def scores(language, texts=TEXTS, size=16):
    with torch.no_grad():
        return torch.cat([language.model(**batch).logits for batch in language.batches(texts, size=size)])


def a_head(features, bias=True, k=2):
    g = torch.Generator().manual_seed(3)
    w, b = torch.randn(k, features.shape[1], generator=g), torch.randn(k, generator=g) * bias
    return Head(w, b, features @ w.T + b)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_what_the_head_gets(folder, kind):
    language = load(folder(kind))
    assert language.head_name == LAYER[kind]
    assert not language.kept
    assert f"{LAYER[kind]}.weight" in language.new
    language.model.train()  # dropout is off all the same, and the mode is as it was
    H = language.features(language.batches(TEXTS))
    assert language.model.training
    language.model.eval()
    torch.testing.assert_close(language.linear(H), scores(language))
    new = a_head(H, bias=kind not in ("gpt2", "llama"))
    language.set_head(new)
    torch.testing.assert_close(scores(language), new.predict(H))
    assert next(language.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batches_change_nothing(folder, kind):
    language = load(folder(kind, **({"padding_side": "left"} if kind in ("gpt2", "llama") else {})))
    together, alone = (language.features(language.batches(TEXTS, size=size)) for size in (4, 1))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.shape == (len(TEXTS), 16)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_bias_is_folded_where_there_is_none(folder, kind):
    language = load(folder(kind))
    H = language.features(language.batches(TEXTS))
    new = a_head(H)
    with pytest.raises(InputError, match=r"head: expected a bias of zero, since score has none, got up to 0.926; pass features="):
        language.set_head(new)
    language.set_head(new, features=H)
    torch.testing.assert_close(scores(language), new.predict(H), rtol=0, atol=2e-2 * float(new.bias.abs().max()))


def test_a_fold_is_exact_where_one_direction_is_constant(folder):
    language = load(folder("llama"))
    g = torch.Generator().manual_seed(0)
    H = torch.cat([100 * torch.ones(40, 1), torch.randn(40, 15, generator=g)], 1)
    new = a_head(H)
    language.set_head(new, features=H)
    other = torch.cat([100 * torch.ones(9, 1), torch.randn(9, 15, generator=g)], 1)
    torch.testing.assert_close(language.linear(other), new.predict(other), rtol=1e-3, atol=1e-3)


def test_a_probe_separates_two_words(folder):
    language = load(folder("distilbert"))
    texts = [f"a {word} {thing}" for word in ("good", "bad") for thing in ("film", "plot", "very film", "and plot", "fine plot")] * 2
    y = torch.tensor([text.split()[1] == "good" for text in texts]).long()
    batches = language.batches(texts)
    generator = torch.Generator().manual_seed(0)
    language.set_head(head("probe", language.features(batches), one_hot(y), generator=generator, loss="cross_entropy"))
    assert bool((scores(language, texts).argmax(1) == y).all())
    found = problem(language.model, batches, y, scope="trainable")
    assert found.kernel.shape == (20, 20)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_a_head_in_the_folder_is_kept_if_it_fits(folder, kind):
    path = folder(kind, outputs=3)
    same, other = load(path, outputs=3), load(path, outputs=2)
    assert same.kept
    assert same.new == ()
    torch.testing.assert_close(same.linear.weight, load_file(path / "model.safetensors")[f"{LAYER[kind]}.weight"])
    assert not other.kept
    assert all(name.startswith(LAYER[kind]) for name in other.new)
    assert scores(other).shape == (len(TEXTS), 2)
    assert load(folder(kind, outputs=1, name="one"), outputs=1).model.config.problem_type == "regression"


def test_new_weights_come_from_the_seed_alone(folder):
    path = folder()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = load(path, seed=1), load(path, seed=1), load(path, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(scores(one), scores(same), rtol=0, atol=0)
    assert not torch.allclose(scores(one), scores(other))


def test_loading_is_quiet_and_offline(folder, transformers, monkeypatch, capfd, recwarn):
    def refuse(*_, **__):
        raise AssertionError("a network was asked")

    path = folder("roberta")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    log = transformers.utils.logging
    log.set_verbosity_warning()
    log.enable_progress_bar()
    try:
        capfd.readouterr()
        load(path)
        assert log.get_verbosity() == logging.WARNING
        assert log.is_progress_bar_enabled()
    finally:
        log.set_verbosity_error()
    assert capfd.readouterr() == ("", "")
    assert not [warning for warning in recwarn if "transformers" in warning.filename]


def test_texts_are_cut_and_padded(folder):
    language = load(folder(), length=3)
    first, second = language.batches(TEXTS, size=4)
    assert first["input_ids"].shape == first["attention_mask"].shape == (4, 3)
    assert second["input_ids"].shape == (2, 3)
    assert first["attention_mask"].sum(1).tolist() == [3, 2, 3, 1]
    assert type(first) is dict
    (longer,) = language.batches(TEXTS, length=24)
    assert longer["input_ids"].shape == (6, 8)


@pytest.mark.parametrize(("kind", "most"), [("bert", 24), ("roberta", 22), ("gpt2", 24), ("distilbert", 24)])
def test_positions_end(folder, kind, most):
    path = folder(kind)
    language = load(path, length=most)
    language.features(language.batches(["good " * 40]))
    with pytest.raises(InputError, match=f"length: expected at most {most} tokens, as the model has positions, got {most + 1}"):
        language.batches(TEXTS, length=most + 1)
    with pytest.raises(InputError, match=f"length: expected at most {most} tokens"):
        load(path, length=128)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_starts_where_the_model_is_and_trains_adapters_and_head(folder, kind):
    pytest.importorskip("peft")
    language = load(folder(kind))
    before = torch.random.get_rng_state()
    adapted = with_lora(language, rank=3, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(scores(adapted), scores(language), rtol=0, atol=0)
    trained = {name for name, p in adapted.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or LAYER[kind].split(".")[0] in name for name in trained)
    assert any("lora_A" in name for name in trained)
    assert any(name.endswith(f"{adapted.head_name}.weight") for name in trained)
    assert all(p.requires_grad for p in language.model.parameters())
    assert not any("lora_" in name for name, _ in language.model.named_parameters())
    H = adapted.features(adapted.batches(TEXTS))
    new = a_head(H, bias=kind not in ("gpt2", "llama"))
    adapted.set_head(new)
    torch.testing.assert_close(scores(adapted), new.predict(H))


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_an_adapter_folder_comes_back(folder, tmp_path, kind):
    pytest.importorskip("peft")
    base = folder(kind)
    adapted = with_lora(load(base), seed=1)
    with torch.no_grad():
        for name, p in adapted.model.named_parameters():
            if "lora_B" in name:
                p.add_(1.0)
    adapted.model.save_pretrained(tmp_path / "adapter")
    again, other = load(tmp_path / "adapter", seed=9), load(tmp_path / "adapter", outputs=3)
    assert again.kept
    assert again.new == () or kind == "bert"  # its pooler is in neither file
    torch.testing.assert_close(scores(again), scores(adapted))
    assert any("lora_A" in name and p.requires_grad for name, p in again.model.named_parameters())
    assert not other.kept
    assert scores(other).shape == (len(TEXTS), 3)
    shutil.move(base, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"--model: expected an adapter whose base is a folder on this machine.*download the base"):
        load(tmp_path / "adapter")


def remove(*names):
    def edit(path):
        for name in names:
            (path / name).unlink(missing_ok=True)

    return edit


def pickled(path):
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def pickled_beside_others(path):
    pickled(path)
    save_file({"x": torch.zeros(1)}, path / "other.safetensors")


def torn(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


def without_body(path):
    tensors = load_file(path / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "word_embeddings" not in name}, path / "model.safetensors", {"format": "pt"})


def configured(**entries):
    def edit(path):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | entries))

    return edit


@pytest.mark.parametrize(("edit", "text"), [
    (remove("config.json"), "expected a folder with config.json of transformers or adapter_config.json of peft, got neither"),
    (remove("model.safetensors"), "expected weights in model.safetensors, got none in .*; download them too"),
    (remove("tokenizer.json", "tokenizer_config.json"), r"expected a tokenizer beside the weights, got none of tokenizer.json.*save it"),
    (pickled, r"expected weights in model.safetensors, got pickled weights.*use_safetensors=False"),
    (pickled_beside_others, "expected a whole model of a kind that can classify texts, got damage or another kind.*safetensors"),
    (torn, "expected a whole model of a kind that can classify texts, got damage or another kind"),
    (without_body, "expected all weights of BertForSequenceClassification, got none or others for bert.embeddings.word_embeddings.weight"),
    (configured(hidden_size=8), "expected all weights of BertForSequenceClassification, got none or others for bert.embeddings"),
    (configured(model_type="vit", architectures=None), "expected a whole model of a kind that can classify texts"),
    (configured(model_type="nonesuch", auto_map={"AutoConfig": "code.Config"}), "expected a whole model of a kind that can classify texts"),
    (lambda path: (path / "config.json").write_text("{"), "expected a whole model of a kind that can classify texts"),
    (lambda path: (path / "tokenizer.json").write_text("{"), "expected a whole model of a kind that can classify texts"),
])  # fmt: skip
def test_bad_folders(folder, edit, text):
    path = folder()
    edit(path)
    with pytest.raises(InputError, match=f"--model: {text}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_bad_paths(tmp_path):
    with pytest.raises(InputError, match=r"--model: expected a folder or a .gguf file on this machine, got bert-base-uncased, which does "
                                         "not exist; download the model first"):  # fmt: skip
        load("bert-base-uncased")
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected a folder or a .gguf file, got .*a.bin"):
        load(tmp_path / "a.bin")
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="expected a whole model of a kind that can classify texts, got damage"):
        load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"whose base is a folder on this machine, got the base none"):
        load(tmp_path)


def test_an_adapter_with_pickled_weights_is_refused(folder, tmp_path):
    base = folder()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected weights in adapter_model.safetensors, got none"):
        load(tmp_path / "adapter")


def test_bad_calls(folder):
    language = load(folder())
    for texts, text in (([], r"got \[\]"), ("good", "got 'good'"), (["good", " "], "with at least one token, got none in text 1")):
        with pytest.raises(InputError, match=f"texts: .*{text}"):
            language.batches(texts)
    with pytest.raises(InputError, match=r"size: expected a whole number >= 1"):
        language.batches(TEXTS, size=0)
    with pytest.raises(InputError, match=r"head: expected weights of shape \(2, 16\), got \(3, 16\)"):
        language.set_head(a_head(torch.zeros(2, 16), k=3))
    with pytest.raises(InputError, match="outputs: expected a whole number >= 1"):
        load(folder(name="again"), outputs=0)
    many = load(folder(name="many", words=WORDS + [f"w{i}" for i in range(9)]))
    with pytest.raises(InputError, match="tokenizer: expected tokens below 16, as the model has, got token 20"):
        many.batches(["good w8"])
    with pytest.raises(InputError, match="expected a tokenizer with a padding or an end token, got neither"):
        load(folder(name="bare", pad_token=None, unk_token=None))


def test_adapters_are_not_stacked(folder):
    pytest.importorskip("peft")
    with pytest.raises(InputError, match="model: expected a model without adapters"):
        with_lora(with_lora(load(folder())))


@pytest.mark.parametrize(("module", "call"), [("transformers", load), ("peft", lambda path: with_lora(load(path)))])
def test_without_a_package_the_error_says_what_to_install(folder, monkeypatch, module, call):
    path = folder()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{module}: expected the package {module}, got none installed; pip install 'driftway\[fine"):
        call(path)


def test_without_gguf_the_error_says_what_to_install(tmp_path, monkeypatch, transformers):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="gguf: expected the package gguf, got none installed; pip install gguf"):
        load(tmp_path / "a.gguf")


def test_a_damaged_gguf_file(tmp_path, transformers):
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(InputError, match="expected a whole model of a kind that can classify texts, got damage"):
        load(tmp_path / "a.gguf")


def write_gguf(gguf, path):
    """A decoder of one layer, width 8 and 12 tokens, as llama.cpp stores it."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(24)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<end>", "g", "o", "d", "b", "a", "f", "i", "l", "m", "\u0120", "go"])
    writer.add_token_types([3] + [1] * 11)
    writer.add_token_merges(["g o"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    g = torch.Generator().manual_seed(0)
    shapes = {"token_embd": (12, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,), "blk.0.attn_q": (8, 8),
              "blk.0.attn_k": (4, 8), "blk.0.attn_v": (4, 8), "blk.0.attn_output": (8, 8), "blk.0.ffn_gate": (16, 8),
              "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)}  # fmt: skip
    tensors = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_and_an_adapter_on_it(transformers, tmp_path):
    pytest.importorskip("peft")
    tensors = write_gguf(pytest.importorskip("gguf"), tmp_path / "a.gguf")
    language = load(tmp_path / "a.gguf")
    assert language.head_name == "score"
    assert language.new == ("score.weight",)
    weights = dict(language.model.named_parameters())
    torch.testing.assert_close(weights["model.layers.0.mlp.up_proj.weight"].detach(), tensors["blk.0.ffn_up"])
    assert not getattr(language.model, "is_quantized", False)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in weights.values())
    texts = ["good film", "bad"]
    together, alone = (language.features(language.batches(texts, size=size)) for size in (2, 1))
    torch.testing.assert_close(together, alone)
    adapted = with_lora(language)
    adapted.model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(scores(load(tmp_path / "adapter"), texts), scores(adapted, texts))
