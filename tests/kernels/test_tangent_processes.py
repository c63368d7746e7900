"""Two processes share out the batches and the work, and find what one does."""

import importlib.util
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

from driftway.kernels.tangent import tangent_features, tangent_gram
from driftway.store import read_tensors
from tests.kernels.jacobian import draw, shaken

pytestmark = pytest.mark.skipif(importlib.util.find_spec("accelerate") is None,
                                reason="several processes need Accelerate: pip install 'driftway[accelerate]'")  # fmt: skip
torch.set_num_threads(1)


class Text(nn.Module):
    """A table that is also the head, wide layers on few positions, and an attention layer that has no rule."""

    def __init__(self):
        super().__init__()
        self.words, self.wide, self.mix, self.head = nn.Embedding(9, 14), nn.Linear(14, 14), nn.Bilinear(14, 14, 3), nn.Linear(14, 9)
        self.head.weight = self.words.weight

    def forward(self, ids):
        h = (self.wide(self.words(ids)) * (ids > 0)[..., None]).tanh().sum(1)
        return self.head(h)[:, :3] + self.mix(h, h)


def model():
    return shaken(Text())


def ids(n, T=3, seed=0):
    return torch.randint(9, (n, T), generator=torch.Generator().manual_seed(seed))


DATA = {"many": ids(9), "one-batch": ids(2), "lengths": [ids(3, 2), ids(2, 4, 1), ids(1, 3, 2)]}
ASKED = [{}, {"outputs": "full"}, {"outputs": (0, 1), "sign": "both"}, {"sign": "left"}, {"memory": 1e-9}, {"scope": "embedding"}]


def answers(folder, processes):
    """All that is asked, by name."""
    net, found = model(), {}
    for name, x in DATA.items():
        for number, options in enumerate(ASKED):
            found[f"{name} {number}"] = tangent_gram(net, x, batch_size=2, **options)
            found[f"{name} {number} cross"] = tangent_gram(net, x, ids(3, seed=5), batch_size=2, **options)
        f = tangent_features(net, x, batch_size=2)
        found[f"{name} scores"], found[f"{name} diagonal"], found[f"{name} dense"] = f.scores, f.diagonal(), f.dense()
        found[f"{name} product"] = f.operator() @ draw(f.size, 2)
        found[f"{name} sketch"] = f.project(5, generator=torch.Generator().manual_seed(2)).features
    for run in ("first", "again"):  # with files, which the second run finds
        found[f"cache {run}"] = tangent_gram(net, DATA["many"], batch_size=2, cache=folder / f"cache-{processes}")
    return found


SCRIPT = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from driftway.kernels.tangent import features
from driftway.store import write_tensors
from tests.kernels import test_tangent_processes as here
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
found = here.answers(folder, 2)
write_tensors(folder / f"rank{rank}.safetensors", found, {})

class Boom(RuntimeError):
    pass

def stopping(*args, inner=features.add_inner, done=[], **options):  # the second process saves a later state than the first
    inner(*args, **options)
    done.append(1)
    if len(done) == 3:
        raise Boom

features.add_inner, plain = stopping, features.add_inner
features.PAUSE = -1.0 if rank == "1" else 100.0
half = folder / "half"
try:
    here.tangent_gram(here.model(), here.DATA["many"], batch_size=2, cache=half)
except Boom:
    features.add_inner = plain
else:
    raise SystemExit("did not stop")
torch.distributed.barrier()
resumed = here.tangent_gram(here.model(), here.DATA["many"], batch_size=2, cache=half)
write_tensors(folder / f"resumed{rank}.safetensors", {"K": resumed}, {})
"""


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("group")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    everywhere = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1",
                  "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}  # fmt: skip
    processes = [subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env={**everywhere, "RANK": rank, "LOCAL_RANK": rank},
                                  text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in "01"]  # fmt: skip
    try:
        said = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(error[-3000:] for _, error in said)
    return folder


def test_two_processes_find_what_one_does(group, tmp_path):
    known = answers(tmp_path, 1)
    for rank in "01":
        found = read_tensors("group", group / f"rank{rank}.safetensors")[1]
        assert found.keys() == known.keys()
        for name, tensor in known.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_both_processes_end_with_the_same_bits(group):
    first, second = (read_tensors("group", group / f"rank{rank}.safetensors")[1] for rank in "01")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_stopped_matrix_goes_on_though_the_processes_saved_different_states(group):
    known = tangent_gram(model(), DATA["many"], batch_size=2)
    for rank in "01":
        found = read_tensors("group", group / f"resumed{rank}.safetensors")[1]["K"]
        torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-10)

