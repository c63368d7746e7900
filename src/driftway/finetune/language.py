"""A pretrained language model as a classifier or regressor of texts, read from files on this machine and never from a network.

    scores(x) = w h(x) + b        h: what the last linear layer gets, for decoders at the last token that is not padding

Decoders often have no b. A head with one is folded into their w by the direction u in which all features are alike,

    u = argmin (1/n) |H u - 1|^2 + lam |u|^2,    w' = w + b u^T,    w' h(x) = w h(x) + b u.h(x)        lam = 1e-3 tr(H H^T) / n^2

Equation (F22): docs/derivations/finetune.md.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driftway.checks import InputError, count, require
from driftway.finetune.heads import Head
from driftway.finetune.pretrained import last_linear, package, quiet, read_model
from driftway.finetune.probe import evaluating

ATTENTION = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "query_proj", "value_proj", "c_attn", "query_key_value", "qkv_proj",
             "Wqkv", "q", "v")  # fmt: skip


@dataclass(frozen=True)
class LanguageModel:
    """A model that maps texts to scores, with its tokenizer.

    Attributes:
        model: of transformers, for sequence classification, in evaluation mode.
        tokenizer: of transformers.
        outputs: scores for each text.
        length: tokens of a text, above which it is cut.
        head_name: name of the last linear layer in the model.
        kept: whether this layer has weights from the file; else they are random.
        new: names of parameters that the file lacks, which are random.
    """

    model: nn.Module
    tokenizer: Any
    outputs: int
    length: int
    head_name: str
    kept: bool
    new: tuple[str, ...] = ()

    @property
    def linear(self) -> nn.Linear:
        """The last linear layer."""
        layer = self.model.get_submodule(self.head_name)
        if not isinstance(layer, nn.Linear):
            raise InputError("model", expected=f"a linear layer {self.head_name}", got=type(layer).__name__, cure="load the model again")
        return layer

    def batches(self, texts: Sequence[str], *, size: int = 16, length: int | None = None) -> list[dict[str, Tensor]]:
        """Inputs of the model for texts in their order, padded to the longest of a batch.

        Args:
            texts: at least one.
            size: texts of a batch.
            length: tokens of a text, above which it is cut; as loaded if None.

        Raises:
            InputError: if there is no text, one has no token, the model has not so many positions or not all tokens, or a number is
                out of range.
        """
        size, length = count("size", size), _length(self.model, self.length if length is None else length)
        require(len(texts) > 0 and not isinstance(texts, str), "texts", expected="a list of texts", got=repr(texts)[:40],
                cure="pass [text]")  # fmt: skip
        model: Any = self.model
        known = model.get_input_embeddings().num_embeddings
        found = []
        for start in range(0, len(texts), size):
            part = self.tokenizer(list(texts[start : start + size]), padding=True, truncation=True, max_length=length, return_tensors="pt")
            short = part["attention_mask"].sum(1) == 0
            require(not bool(short.any()), "texts", expected="texts with at least one token",
                    got=f"none in text {start + int(short.int().argmax())}", cure="drop empty texts")  # fmt: skip
            largest = int(part["input_ids"].max())
            require(largest < known, "tokenizer", expected=f"tokens below {known}, as the model has", got=f"token {largest}",
                    cure="use the tokenizer that belongs to the model")  # fmt: skip
            found.append(dict(part))
        return found

    @torch.no_grad()
    def features(self, batches: Sequence[Mapping[str, Tensor]]) -> Float[Tensor, "n p"]:
        """h of all rows, with dropout off."""
        parts, layer = [], self.linear
        with evaluating(self.model):
            for batch in batches:
                batch = {name: entry.to(layer.weight.device) for name, entry in batch.items()}
                parts.append(_inputs(self.model, layer, batch))
        return torch.cat(parts)

    @torch.no_grad()
    def set_head(self, head: Head, *, features: Tensor | None = None) -> None:
        """Install weights into the last linear layer, in place.

        Args:
            head: with as many outputs.
            features: (n, p) of training rows, where the layer has no bias and the head has one; it is then folded into the weights.

        Raises:
            InputError: if shapes differ, or a bias has no place.
        """
        layer, b = self.linear, head.bias
        require(head.weight.shape == layer.weight.shape, "head", expected=f"weights of shape {tuple(layer.weight.shape)}",
                got=f"{tuple(head.weight.shape)}", cure="make it from features of this model, with one target for each output")  # fmt: skip
        if layer.bias is not None:
            layer.weight.copy_(head.weight)
            layer.bias.copy_(b)
            return
        w = head.weight
        if bool(b.any()):
            if features is None:
                raise InputError("head", expected=f"a bias of zero, since {self.head_name} has none",
                                 got=f"up to {float(b.abs().max()):.3g}",
                                 cure="pass features=model.features(batches) of training rows, to fold it into the weights")  # fmt: skip
            w = w + b[:, None] * _alike(features).to(w)
        layer.weight.copy_(w)


def load_language_model(argument: str, path: str | Path, *, outputs: int, length: int = 128, seed: int = 0) -> LanguageModel:
    """A classifier or regressor of texts from a folder or a file, in float32.

    A model with a head for so many outputs keeps it; any other gets a new one, with random weights. No code from the folder is run.

    Args:
        argument: what an error calls the path, e.g. the option that named it.
        path: a folder that `save_pretrained` of transformers has written (config.json, safetensors, tokenizer), one of peft
            (adapter_config.json) whose base is such a folder, or a .gguf file.
        outputs: number of classes; 1 for numbers.
        length: tokens of a text, above which it is cut.
        seed: of new weights.

    Raises:
        InputError: if transformers (or peft, or gguf) is not installed, the path is no such folder or file, weights are pickled, damaged
            or of another model, there is no tokenizer, or the model cannot classify or has not so many positions.
    """
    count("outputs", outputs)
    count("length", length, least=2)
    path = Path(path)
    if not path.exists():
        raise InputError(argument, expected="a folder or a .gguf file on this machine", got=f"{path}, which does not exist",
                         cure="download the model first, e.g. hf download NAME --local-dir FOLDER, and name that folder")  # fmt: skip
    with quiet(seed):
        model, tokenizer, new = read_model(argument, path, outputs)
    name = last_linear(argument, model, outputs)
    if tokenizer.pad_token is None:
        spare = tokenizer.eos_token or tokenizer.unk_token
        if spare is None:
            raise InputError(argument, expected="a tokenizer with a padding or an end token", got="neither",
                             cure="set tokenizer.pad_token, and save it")  # fmt: skip
        tokenizer.pad_token = spare
    model.config.pad_token_id = tokenizer.pad_token_id
    if name.split(".")[-1] == "score" or ".score." in name:
        tokenizer.padding_side = "right"  # else positions of tokens depend on the batch
    plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
    kept = f"{plain}.weight" not in new
    return LanguageModel(model.eval(), tokenizer, outputs, _length(model, length), name, kept, tuple(sorted(new)))


def with_lora(language: LanguageModel, *, rank: int = 8, alpha: float | int | None = None, seed: int = 0) -> LanguageModel:
    """A copy whose attention projections have trainable updates of low rank (Hu et al., 2022), and whose head is trainable.

    Args:
        language: a model without adapters.
        rank: of an update.
        alpha: an update is multiplied by alpha / rank; 2 rank if None.
        seed: of the updates.

    Raises:
        InputError: if peft is not installed, or the model has adapters or no attention projections of a known name.
    """
    peft = package("peft")
    count("rank", rank)
    found = {name.rpartition(".")[2] for name, module in language.model.named_modules() if hasattr(module, "weight")}
    targets = [name for name in ATTENTION if name in found]
    require(not isinstance(language.model, peft.PeftModel), "model", expected="a model without adapters", got="one with",
            cure="load its base")  # fmt: skip
    require(len(targets) > 0, "model", expected=f"attention projections, named {', '.join(ATTENTION)}", got="none",
            cure="wrap the model by peft, with target_modules of your choice")  # fmt: skip
    config = peft.LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=targets,
                             modules_to_save=[language.head_name.split(".")[0]], fan_in_fan_out="c_attn" in targets)  # fmt: skip
    with quiet(seed):
        model = peft.get_peft_model(deepcopy(language.model), config).eval()
    return replace(language, model=model, head_name=last_linear("model", model, language.outputs))


def _length(model: nn.Module, length: int) -> int:
    """A number of tokens that the model has positions for."""
    count("length", length, least=2)
    most = getattr(model.config, "max_position_embeddings", None)
    if isinstance(most, int):
        for name, module in model.named_modules():
            padding = getattr(module, "padding_idx", None)
            most -= padding + 1 if name.endswith("position_embeddings") and isinstance(padding, int) else 0  # RoBERTa counts from there
        require(length <= most, "length", expected=f"at most {most} tokens, as the model has positions", got=length,
                cure=f"pass length={most} or less")  # fmt: skip
    return length


def _inputs(model: nn.Module, layer: nn.Linear, batch: Mapping[str, Tensor]) -> Float[Tensor, "n p"]:
    """What a layer gets for each text. Where it gets all tokens, it answers with their positions once, and the model picks one."""
    held: list[Tensor] = []

    def answer(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        held.append(inputs[0])
        if inputs[0].ndim == 2:
            return None
        return torch.arange(output.shape[1], device=output.device).to(output)[None, :, None].expand_as(output)

    hook = layer.register_forward_hook(answer)
    try:
        logits = model(**batch).logits
    finally:
        hook.remove()
    h = held[-1]
    return h if h.ndim == 2 else h[torch.arange(len(h), device=h.device), logits[:, 0].round().long()]


def _alike(features: Tensor) -> Float[Tensor, " p"]:
    """u."""
    H = features.double()
    n = len(H)
    K = H @ H.T
    return H.T @ torch.linalg.solve(K + 1e-3 * K.trace() / n * torch.eye(n, dtype=K.dtype, device=K.device), K.new_ones(n))
