"""`driftway finetune` as a person meets it: what it prints, what it writes, how it stops and goes on, and one-line errors."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from driftway.finetune.trainer import SpectralStopping
from driftway.report import load_study
from tests.cli.test_cli import run as command
from tests.finetune.test_language import tokenizer

WORDS = [f"w{i}" for i in range(30)]
SMALL = {"vocab_size": 33, "max_position_embeddings": 24, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 8, "pad_token_id": 1}  # fmt: skip
FAST = ["--length", 12, "--threads", 1, "--rows", 40]


@pytest.fixture(scope="module")
def model(transformers, tmp_path_factory):
    """A folder with a random encoder without a head."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    body = transformers.BertModel(transformers.BertConfig(**SMALL))
    with torch.no_grad():
        for p in body.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    body.save_pretrained(folder)
    tokenizer(transformers, WORDS).save_pretrained(folder)
    return folder


def write(path, n=40, *, numbers=False, seed=0, header="text,label"):
    """Rows of eight words; some of them tell the class, and a fifth of the labels is wrong."""
    g = torch.Generator().manual_seed(seed)
    lines = [header]
    for i in range(n):
        c = i % 2
        words = [int(torch.randint(10, 30, (1,), generator=g)) for _ in range(8)]
        words[:3] = [4 * c + int(torch.randint(4, (1,), generator=g)) for _ in range(3)]
        wrong = float(torch.rand(1, generator=g)) < 0.2
        label = f"{c + float(torch.randn(1, generator=g)) / 2:.4f}" if numbers else ["bad", "good"][c ^ wrong]
        lines.append(" ".join(f"w{word}" for word in words) + f",{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def finetune(monkeypatch, capsys, model):
    def call(what, data, out, *words):
        return command(monkeypatch, capsys, "finetune", what, "--model", model, "--data", data, "--out", out, *FAST, *words)

    return call


def test_the_stop_is_said_written_and_kept_to(finetune, tmp_path):
    out = tmp_path / "run"
    data, words = write(tmp_path / "train.csv"), ["--head", "random", "--optimizer", "sgd"]
    code, said, err = finetune("stop", data, out, "--lr", 1e-9, *words)
    assert code == 0, err
    known = json.loads((out / "stop.json").read_text())
    assert "Train to the end of the schedule (10 epochs, eta 3e-08)" in said
    assert known["schedule"]["steps"] == 30
    assert known["step"] is None
    eta = known["eta"]
    assert 0 < eta < float("inf")
    code, said, err = finetune("stop", data, out, "--lr", eta / 10.5, *words)  # it may be done again
    assert code == 0, err
    assert "Stop after step 10, epoch 3.33 of 10" in said
    known = json.loads((out / "stop.json").read_text())
    assert (known["rows"], known["kernel_rows"], known["step"]) == (40, 40, 10)
    assert known["eta"] == pytest.approx(eta)
    assert set(known["rules"]) == {"cross_validation", "marginal_likelihood", "rademacher", "discrepancy", "sure", "gcv"}
    assert "decay" in said
    assert "degrees of freedom" in said
    kept = load_file(out / "spectrum.safetensors")
    assert kept["values"].shape == kept["coordinates"].shape == (40,)
    page = (out / "report.html").read_text()
    assert "driftway finetune stop --model" in page
    assert known["command"].startswith("driftway finetune stop")
    code, said, err = finetune("run", data, tmp_path / "trained", "--lr", eta / 10.5, *words)
    assert code == 0, err
    made = json.loads((tmp_path / "trained" / "run.json").read_text())
    assert 0 < made["eta"] <= eta * (1 + 1e-6)
    assert made["stopped"] == (made["steps"] < 30)  # later or earlier than step 10, where the kernel shrinks or grows
    assert f"{made['steps']} steps, epoch {made['steps'] / 3:.3g}" in said


@pytest.mark.parametrize("words", [
    ["--optimizer", "adamw", "--schedule", "cosine", "--warmup", 3, "--lora", 2], ["--head", "random", "--scope", "attention,head"],
    ["--loss", "smoothed", "--rule", "gcv", "--rows", 25],
])  # fmt: skip
def test_stop_with_other_options(finetune, tmp_path, words):
    code, said, err = finetune("stop", write(tmp_path / "train.csv"), tmp_path / "run", *words)
    assert code == 0, err
    if "adamw" in words:
        assert "Adam breaks the theory" in said
    if "smoothed" in words:
        assert "Labels are smoothed by 0.1" in said
        assert "25 of 40" in said
        assert json.loads((tmp_path / "run" / "stop.json").read_text())["rule"] == "gcv"


def test_numbers(finetune, tmp_path):
    out = tmp_path / "run"
    data, test = write(tmp_path / "train.csv", numbers=True), write(tmp_path / "test.csv", 20, numbers=True, seed=1)
    code, said, err = finetune("run", data, out, "--loss", "huber", "--epochs", 1, "--lr", 1e-3, "--test", test)
    assert code == 0, err
    assert "Huber's" in said
    assert "test error (root mean square)" in said
    assert json.loads((out / "model" / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]


def test_run_trains_saves_and_reports(finetune, tmp_path, transformers, capsys):
    out, data = tmp_path / "run", write(tmp_path / "train.csv")
    code, said, err = finetune("run", data, out, "--epochs", 3, "--lr", 0.02, "--test", write(tmp_path / "test.csv", 20, seed=1))
    assert code == 0, err
    assert "test error" in said
    assert "\nTraining " in said
    made = json.loads((out / "run.json").read_text())
    assert made["finished"]
    assert 1 <= made["steps"] <= 9
    assert made["losses"]
    config = json.loads((out / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert not (out / "checkpoints").exists()
    page = (out / "report.html").read_text()
    assert "What happened" in page
    judge = transformers.pipeline("text-classification", str(out / "model"), device="cpu")
    assert judge("w1 w2 w20")[0]["label"] in ("bad", "good")
    capsys.readouterr()
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    for words in ([], ["--resume"]):
        code, _, err = finetune("run", data, out, *words)
        assert code == 2
        assert err.count("\n") == 1
        assert "name another folder" in err
    assert finetune("stop", data, out)[0] == 2
    assert before == {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}


def test_scope_is_what_is_trained(finetune, tmp_path, model):
    out = tmp_path / "run"
    code, _, err = finetune("run", write(tmp_path / "train.csv"), out, "--epochs", 1, "--lr", 0.02, "--scope", "attention")
    assert code == 0, err
    start, end = load_file(model / "model.safetensors"), load_file(out / "model" / "model.safetensors")
    changed = {name for name in start if not torch.equal(start[name], end[f"bert.{name}"])}
    assert changed
    assert all("attention" in name for name in changed)


def test_an_interrupted_run_goes_on_where_it_was(finetune, tmp_path, monkeypatch):
    data = write(tmp_path / "train.csv")
    words = ["--head", "random", "--epochs", 3, "--lr", 1e-5, "--schedule", "linear"]
    assert finetune("run", data, tmp_path / "whole", *words)[0] == 0
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(SpectralStopping, "on_step_end", _interrupt_at(4))
        code, _, err = finetune("run", data, out, *words)
    assert code == 130, err
    assert f"saved in {out}; continue with: driftway finetune run" in err
    assert err.strip().endswith("--resume")
    assert not (out / "model").exists()
    code, _, err = finetune("run", data, out, *words)
    assert code == 2
    assert "continue that run by --resume" in err
    code, _, err = finetune("run", data, out, *words[:-1], "cosine", "--resume")
    assert code == 2
    assert "schedule=linear, got schedule=cosine" in err
    code, _, err = finetune("run", data, out, *words, "--resume")
    assert code == 0, err
    whole, again = (json.loads((folder / "run.json").read_text()) for folder in (tmp_path / "whole", out))
    assert again["steps"] == whole["steps"]
    assert again["eta"] == pytest.approx(whole["eta"])
    assert [step for step, _ in again["losses"]] == [step for step, _ in whole["losses"]]
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "whole", out))
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], rtol=1e-4, atol=1e-6)
    assert load_study(out / "spectrum.safetensors").total == 9


def _interrupt_at(step):
    """As Ctrl-C does, in the middle of a step."""
    import os
    import signal

    plain = SpectralStopping.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, args, state, control, **kwargs)

    return on_step_end


@pytest.mark.parametrize(("words", "shown"), [
    (["--text", "body"], ["data", "columns among text, label", "no column 'body'"]),
    (["--rule", "oracle"], ["rule", "marginal_likelihood"]),
    (["--epochs", 0], ["epochs", "> 0"]),
    (["--scope", "decoder"], ["scope", "attention"]),
    (["--scope", "attention", "--lora", 2], ["scope", "adapters"]),
    (["--head", "keep"], ["head", "random or probe"]),
    (["--loss", "huber"], ["loss", "classes"]),
    (["--length", 900], ["length", "24"]),
    (["--budget", 1e-9], ["budget", "at least 20 rows"]),
    (["--resume"], ["resume", "run.json"]),
    (["--test", "none.csv"], ["test", "none.csv"]),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(finetune, tmp_path, words, shown):
    code, said, err = finetune("run", write(tmp_path / "train.csv"), tmp_path / "run", *words)
    assert code == 2
    assert said == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert all(word in err for word in (*shown, "expected", "got")), err
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(("lines", "shown"), [
    (["text,label", *["w1 w2,good"] * 30], "labels that differ"),
    (["text,label", "w1 w2,good", "w3,bad"], "at least 20 rows"),
])  # fmt: skip
def test_bad_data(finetune, tmp_path, lines, shown):
    path = tmp_path / "train.csv"
    path.write_text("\n".join(lines) + "\n")
    code, _, err = finetune("stop", path, tmp_path / "run")
    assert code == 2
    assert shown in err
    assert not (tmp_path / "run").exists()


def test_help_is_fast_and_needs_no_transformers():
    code = "import sys, driftway.cli; sys.exit(any(name in sys.modules for name in ('transformers', 'peft', 'accelerate')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
