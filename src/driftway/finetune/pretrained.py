"""Models of transformers for the classification of texts, from files on this machine: no network, no pickle, no code of theirs is run."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from driftway.checks import InputError, require

VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


def package(name: str, install: str = "'driftway[finetune]'") -> Any:
    """A package that driftway does not need for everything.

    Raises:
        InputError: if it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise InputError(name, expected=f"the package {name}", got="none installed", cure=f"pip install {install}") from None


@contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Loading without log, warnings and progress bars, with random weights of a seed."""
    log = package("transformers").utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]), redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def read_model(argument: str, path: Path, outputs: int) -> tuple[Any, Any, set[str]]:
    """Model in float32, tokenizer, and names of the parameters that the files lack, which are random.

    Args:
        argument: what an error calls the path.
        path: a folder of transformers or peft, or a .gguf file.
        outputs: of the head.

    Raises:
        InputError: see `load_language_model`.
    """
    try:
        return (_adapter if (path / "adapter_config.json").is_file() else _whole)(argument, path, outputs)
    except InputError:
        raise
    except Exception as error:  # transformers, peft and gguf raise whatever their parsers meet
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(argument, expected="a whole model of a kind that can classify texts",
                         got=f"damage or another kind ({said}) in {path}",
                         cure="save or download it again, or use another model") from error  # fmt: skip


def last_linear(argument: str, model: nn.Module, outputs: int) -> str:
    """The name of the last linear layer, that of the head.

    Raises:
        InputError: if none has so many outputs.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == outputs]
    require(len(names) > 0, argument, expected=f"a model with a linear head of {outputs} outputs", got=type(model).__name__,
            cure="use an encoder or a decoder of transformers")  # fmt: skip
    return names[-1]


def _whole(argument: str, path: Path, outputs: int) -> tuple[Any, Any, set[str]]:
    """From a folder of transformers or a .gguf file."""
    transformers = package("transformers")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    weights: dict[str, Any] = {"use_safetensors": True}
    folder = path
    if path.is_file():
        require(path.suffix.lower() == ".gguf", argument, expected="a folder or a .gguf file", got=str(path),
                cure="name the folder of the model")  # fmt: skip
        package("gguf", "gguf")
        packed = getattr(transformers, "GgufConfig", None)  # where there is one, weights stay packed without it, and cannot be trained
        weights = {"quantization_config": packed(gguf_file=path.name, dequantize=True)} if packed else {}
        folder, options["gguf_file"] = path.parent, path.name
    else:
        _safe(argument, path)
    kind = "regression" if outputs == 1 else "single_label_classification"
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=outputs, problem_type=kind, ignore_mismatched_sizes=True, output_loading_info=True, **weights,
        **options)  # fmt: skip
    new = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    body = sorted(name for name in new if name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name)
    require(not body, argument, expected=f"all weights of {type(model).__name__}",
            got=f"none or others for {', '.join(body[:3])} in {path}",
            cure="check that config.json and the weights are of one model")  # fmt: skip
    model.name_or_path = str(path.resolve())  # which adapters record as their base
    return model.float(), transformers.AutoTokenizer.from_pretrained(folder, **options), new


def _safe(argument: str, path: Path) -> None:
    """An error unless a folder has configuration, weights and tokenizer in safe formats."""
    require((path / "config.json").is_file(), argument, expected="a folder with config.json of transformers or adapter_config.json of peft",
            got=f"neither in {path}", cure="name the folder that save_pretrained has written")  # fmt: skip
    if not any(path.glob("*.safetensors")):
        pickled = any(path.glob("pytorch_model*.bin"))
        cure = "where you trust them, convert them: AutoModel.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(FOLDER)"
        raise InputError(argument, expected="weights in model.safetensors", got=f"{'pickled weights' if pickled else 'none'} in {path}",
                         cure=cure if pickled else "download them too")  # fmt: skip
    require(any(any(path.glob(pattern)) for pattern in VOCABULARY), argument, expected="a tokenizer beside the weights",
            got=f"none of {', '.join(VOCABULARY)} in {path}", cure="save it there: tokenizer.save_pretrained(FOLDER)")  # fmt: skip


def _adapter(argument: str, path: Path, outputs: int) -> tuple[Any, Any, set[str]]:
    """From a folder of peft, whose base is one of transformers or a .gguf file."""
    peft = package("peft")
    base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path") or "none"
    require(Path(base).exists(), argument, expected="an adapter whose base is a folder on this machine", got=f"the base {base} in {path}",
            cure="download the base, and set base_model_name_or_path in adapter_config.json to its folder")  # fmt: skip
    file = path / "adapter_model.safetensors"
    require(file.is_file(), argument, expected="weights in adapter_model.safetensors", got=f"none in {path}",
            cure="save the adapter again, by save_pretrained of peft")  # fmt: skip
    model, tokenizer, new = _whole(argument, Path(base), outputs)
    held = {name.removeprefix("base_model.model."): tensor.shape for name, tensor in load_file(file).items()}
    name = f"{last_linear(argument, model, outputs)}.weight"
    if held.get(name) == model.get_parameter(name).shape:
        new = {other for other in new if other not in held}
    config = peft.PeftConfig.from_pretrained(str(path))
    config.task_type, config.inference_mode = "SEQ_CLS", False
    model = peft.PeftModel.from_pretrained(model, str(path), config=config, is_trainable=True, ignore_mismatched_sizes=True)
    return model.float(), tokenizer, new
