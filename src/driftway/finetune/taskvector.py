"""Task vectors: what fine-tuning added to the weights, as a vector that can be added, scaled, negated and stored.

    tau = theta_T - theta_0        theta_0 + sum_k c_k tau_k: several tasks in one model        theta_0 - tau: a task unlearned

(Ilharco et al., 2023, section 2). Differences of half-precision weights are taken and kept in single precision; what they are added
to keeps its dtype.

Equation (F30): docs/derivations/finetune.md.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from driftway.checks import InputError, kind, real, require
from driftway.kernels.tangent.scope import Scope, select
from driftway.params import Params, aligned, combine, contained, dot, parameters, place
from driftway.store import read_folder, write_file, write_folder

KIND = "task vector"
BESIDE = (".json", ".txt", ".model", ".jinja")  # what stands beside the weights of a model: configurations and tokenizers
Weights = nn.Module | Params


@dataclass(frozen=True, eq=False)
class TaskVector:
    """A change of parameters. Nothing but `applied` writes into a model.

    Attributes:
        tensors: tau, by the names of the parameters, tied ones once.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def between(cls, base: Weights, tuned: Weights, *, scope: Scope = "all") -> "TaskVector":
        """theta_T - theta_0.

        Modules give their parameters; two state dicts give all floating tensors, running means of norms among them.

        Args:
            base: theta_0, a module or a state dict.
            tuned: theta_T, likewise.
            scope: "all"; or parts or globs as of `tangent_features`, for two state dicts globs alone.

        Raises:
            InputError: if both are the same object, their names or shapes differ, or nothing is in scope.
        """
        require(base is not tuned, "tuned", expected="other weights than base", got="the same object",
                cure="keep a copy before training: copy.deepcopy(model)")  # fmt: skip
        a, b = parameters(base, "base"), parameters(tuned, "tuned")
        if isinstance(base, nn.Module) != isinstance(tuned, nn.Module):  # the state dict has buffers and tied names besides
            module = base if isinstance(base, nn.Module) else tuned
            own, beside = parameters(module), module.state_dict() if isinstance(module, nn.Module) else {}
            a, b = ({name: t for name, t in side.items() if name in own or name not in beside} for side in (a, b))
        require(bool(a), "base", expected="at least one floating tensor", got="none", cure="pass weights")
        aligned("base", a, "tuned", b)
        names = _in_scope(base, tuned, a, scope)
        return cls({name: _wide(b[name]).to(a[name].device) - _wide(a[name]) for name in names})

    def __add__(self, other: "TaskVector") -> "TaskVector":
        return combined([self, other])

    def __sub__(self, other: "TaskVector") -> "TaskVector":
        return combined([self, other], [1.0, -1.0])

    def __mul__(self, c: float | int) -> "TaskVector":
        return combined([self], [c])

    __rmul__ = __mul__

    def __neg__(self) -> "TaskVector":
        return self * -1.0

    def dot(self, other: "TaskVector") -> float:
        """<tau, tau'>, in float64.

        Raises:
            InputError: if names or shapes differ.
        """
        kind("other", other, TaskVector, "a task vector")
        return dot(self.tensors, other.tensors)

    def norm(self) -> float:
        """|tau|."""
        return self.dot(self) ** 0.5

    def cosine(self, other: "TaskVector") -> float:
        """<tau, tau'> / |tau| |tau'|.

        Raises:
            InputError: if names or shapes differ, or a vector is zero.
        """
        kind("other", other, TaskVector, "a task vector")
        size = self.norm() * other.norm()
        require(size > 0, "other", expected="two vectors other than zero", got="zero", cure="check that the model was trained at all")
        return self.dot(other) / size

    def applied_to(self, state: Params, scale: float | int = 1.0) -> dict[str, Tensor]:
        """A state dict plus scale tau, in its dtypes; what is tied stays tied, and what tau lacks is shared with the old one.

        Raises:
            InputError: if the state dict lacks a tensor of tau, or has it in another shape.
        """
        scale = real("scale", scale)
        contained("state", state, "the task vector", self.tensors)
        changed = {place(state[name]): _plus(state[name].detach(), scale, tau) for name, tau in self.tensors.items()}
        return {name: changed.get(place(tensor), tensor) for name, tensor in state.items()}

    def apply(self, model: nn.Module, scale: float | int = 1.0) -> nn.Module:
        """A copy of the model, at theta + scale tau.

        Raises:
            InputError: if the model lacks a parameter of tau, or has it in another shape.
        """
        copied = deepcopy(model)
        _write(copied, self, real("scale", scale))
        return copied

    @contextmanager
    def applied(self, model: nn.Module, scale: float | int = 1.0) -> Iterator[nn.Module]:
        """The model itself at theta + scale tau, for a while; afterwards its parameters have their old bits.

        Raises:
            InputError: if the model lacks a parameter of tau, or has it in another shape.
        """
        before = _write(model, self, real("scale", scale))
        try:
            yield model
        finally:
            _copy(before)

    def save(self, folder: str | Path) -> None:
        """Write tau to a folder of its own: config.json and model.safetensors."""
        write_folder(Path(folder), self.tensors, {"kind": KIND})

    @classmethod
    def load(cls, folder: str | Path) -> "TaskVector":
        """Read what `save` wrote, on the CPU.

        Raises:
            InputError: if the folder is missing, damaged, or something else.
        """
        config, tensors = read_folder("folder", Path(folder))
        require(config.get("kind") == KIND, "folder", expected="a task vector", got=f"a {config.get('kind', 'model')}",
                cure="name a folder that TaskVector.save wrote")  # fmt: skip
        odd = [name for name, tau in tensors.items() if not (tau.is_floating_point() and bool(tau.isfinite().all()))]
        require(len(tensors) > 0 and not odd, "folder", expected="finite floating tensors", got=", ".join(odd[:3]) or "no tensors",
                cure="the folder was changed or is damaged: save the vector again")  # fmt: skip
        return cls(tensors)

    def export(self, base: str | Path, folder: str | Path, scale: float | int = 1.0) -> None:
        """Write the whole model theta_0 + scale tau to a folder in the layout of its base, for transformers and mergekit.

        mergekit's `task_arithmetic` takes the difference to its `base_model` itself, tensor by tensor, by the names in the base's
        safetensors files and in the base's dtype. So names, shards, dtypes, configuration and tokenizer are the base's. For a model
        in memory there is `tau.apply(model).save_pretrained(folder)`.

        Args:
            base: the folder of theta_0, with model.safetensors or shards of it.
            folder: where to write; another one.
            scale: of tau.

        Raises:
            InputError: if the base has no safetensors files, or they lack a tensor of tau or have it in another shape.
        """
        base, folder, scale = Path(base), Path(folder), real("scale", scale)
        require(base.resolve() != folder.resolve(), "folder", expected="another folder than base", got=folder, cure="name a new folder")
        shards = sorted(base.glob("model*.safetensors"))
        require(bool(shards), "base", expected="a folder with model.safetensors", got=f"none in {base}",
                cure="write the base with model.save_pretrained(folder)")  # fmt: skip
        found: dict[str, Tensor] = {}
        for shard in shards:  # shapes first, so that an error leaves nothing half-written
            with safe_open(shard, framework="pt") as file:
                found |= {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118 (no dictionary)
        contained("base", found, "the task vector", self.tensors)
        for shard in shards:
            with safe_open(shard, framework="pt") as file:
                metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
            own = TaskVector({name: tau for name, tau in self.tensors.items() if name in tensors})
            write_file(folder / shard.name, save(own.applied_to(tensors, scale), metadata={"format": "pt"} | (metadata or {})))
        for path in base.iterdir():
            if path.suffix in BESIDE and not path.name.endswith(".bin.index.json"):
                shutil.copyfile(path, folder / path.name)


def combined(vectors: Sequence[TaskVector], coefficients: Sequence[float | int] | None = None) -> TaskVector:
    """sum_k c_k tau_k.

    Args:
        vectors: of one model and scope.
        coefficients: c_k; ones by default.

    Raises:
        InputError: if names or shapes differ, there is no vector, or not one finite coefficient for each.
    """
    require(len(vectors) > 0, "vectors", expected="at least one task vector", got="none", cure="pass some")
    for vector in vectors:
        kind("vectors", vector, TaskVector, "a task vector")
    c = [1.0] * len(vectors) if coefficients is None else [real("coefficients", entry) for entry in coefficients]
    require(len(c) == len(vectors), "coefficients", expected=f"{len(vectors)}, one for each vector", got=len(c), cure="pass as many")
    return TaskVector(combine(c, [vector.tensors for vector in vectors]))


def _in_scope(base: Weights, tuned: Weights, named: Params, scope: Scope) -> list[str]:
    module = base if isinstance(base, nn.Module) else tuned
    if isinstance(module, nn.Module):
        return [name for name in select(module, scope) if name in named]
    require(isinstance(scope, str | list | tuple) and all(isinstance(entry, str) for entry in scope) and len(scope) > 0, "scope",
            expected="a glob or a list of globs", got=repr(scope)[:80], cure='pass scope="all"')  # fmt: skip
    globs = ["*" if entry == "all" else entry for entry in ([scope] if isinstance(scope, str) else scope)]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in named):
            raise InputError("scope", expected="globs over names, for two state dicts", got=f"{glob!r}, which matches none",
                             cure=f"pass one of the two as a module, or a glob for names such as {', '.join(list(named)[:3])}")  # fmt: skip
    return [name for name in named if any(fnmatchcase(name, glob) for glob in globs)]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _plus(theta: Tensor, scale: float, tau: Tensor) -> Tensor:
    return (_wide(theta) + scale * tau.to(theta.device)).to(theta.dtype)


def _write(model: nn.Module, vector: TaskVector, scale: float) -> Sequence[tuple[Tensor, Tensor]]:
    """Write theta + scale tau into a model; the parameters, with copies of what they were."""
    kind("model", model, nn.Module, "a module")
    own = dict(model.named_parameters(remove_duplicate=False))
    contained("model", own, "the task vector", vector.tensors)
    before = [(own[name], own[name].detach().clone()) for name in vector.tensors]
    _copy([(p, _plus(p.detach(), scale, tau)) for (p, _), tau in zip(before, vector.tensors.values(), strict=True)])
    return before


@torch.no_grad()
def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for into, values in pairs:
        into.copy_(values)
