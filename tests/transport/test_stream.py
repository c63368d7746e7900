"""Batches from every kind of data: every row in turn, restored exactly from a few integers, and no trace in the global stream."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from driftway.checks import InputError
from driftway.data import moons
from driftway.transport.intake import normal_stream, open_stream
from driftway.transport.stream import Batch, Loader, Rows, generator, split_rows
from tests.transport.recipes import draw

N = 50
TABLE = torch.arange(N, dtype=torch.float32)[:, None] * torch.tensor([1.0, -0.5])


class Jittered(Dataset):
    """A data set that adds noise from the global stream to each row it is asked for, as augmentation does."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return TABLE[i] + 0.1 * torch.rand(2)


def named(*, shuffle=True, batch_size=7, own=False, data=None, **options):
    """A DataLoader, made afresh."""
    start = torch.Generator().manual_seed(99) if own else None
    return DataLoader(TensorDataset(TABLE, torch.arange(N)) if data is None else data, batch_size=batch_size, shuffle=shuffle,
                      generator=start, **options)  # fmt: skip


class Law:
    """A sampler that is an object."""

    def __call__(self, n, generator):
        return torch.rand(n, 2, generator=generator)


KINDS = {
    "array": lambda: TABLE.numpy().astype(np.float64),
    "tensor": lambda: TABLE,
    "sampler": lambda: lambda n, own: torch.randn(n, 2, generator=own),
    "sampler-global": lambda: lambda n: torch.randn(n, 2),
    "sampler-object": Law,
    "loader-tuples": named,
    "loader-in-order": lambda: named(shuffle=False),
    "loader-own-generator": lambda: named(own=True),
    "loader-rows": lambda: named(data=TABLE),
    "loader-large-batches": lambda: named(batch_size=32),
    "loader-whole": lambda: named(batch_size=N),
    "loader-last-dropped": lambda: named(batch_size=8, drop_last=True),
    "loader-random-rows": lambda: named(data=Jittered()),
    "loader-explicit-workers": lambda: named(num_workers=0),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def opened(kind, seed=0):
    return open_stream("target", KINDS[kind](), seed=seed)


@every_kind
@pytest.mark.parametrize("n", [5, 16, 50, 80])
def test_a_stream_continues_from_its_state(kind, n):
    """At every position of three epochs, in a fresh stream: what follows is the same to the bit."""
    stream = opened(kind)
    states, batches = [stream.state()], []
    for _ in range(3 * N // min(n, N) + 2):
        batches.append(stream.draw(n).x)
        states.append(stream.state())
    for k in range(0, len(batches), max(1, len(batches) // 6)):
        again = opened(kind)
        again.draw(9)
        assert all(isinstance(part, int) for part in states[k])
        again.restore(states[k])
        for batch, state in zip(batches[k : k + 4], states[k + 1 : k + 5], strict=True):
            assert torch.equal(again.draw(n).x, batch)
            assert again.state() == state
            if len(batches) - k < 4:
                break


@every_kind
def test_streams_differ_by_seed_and_by_name_alone(kind):
    first, again, other = opened(kind), opened(kind), opened(kind, seed=1)
    batch = first.draw(20).x
    assert torch.equal(again.draw(20).x, batch)
    if kind != "loader-in-order":
        assert not torch.equal(other.draw(20).x, batch)
        assert not torch.equal(open_stream("source", KINDS[kind](), seed=0).draw(20).x, batch)


@every_kind
def test_the_global_stream_is_left_alone(kind):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stream = opened(kind)
    for _ in range(12):
        stream.draw(16)
        torch.rand(3)
    torch.set_rng_state(before)
    stream.probe()
    stream.digest()
    stream.restore(stream.state())
    stream.draw(5)
    assert torch.equal(torch.get_rng_state(), before)


@every_kind
def test_batches_do_not_depend_on_the_global_stream(kind):
    first, second = opened(kind), opened(kind)
    for i in range(8):
        torch.manual_seed(i)
        a = first.draw(16).x
        torch.manual_seed(1000 + i)
        assert torch.equal(a, second.draw(16).x)


@every_kind
def test_a_probe_and_a_digest_move_nothing_and_stay_the_same(kind):
    stream, undisturbed = opened(kind), opened(kind)
    probe, digest = stream.probe().x, stream.digest()
    for _ in range(6):
        assert torch.equal(stream.draw(16).x, undisturbed.draw(16).x)
        assert torch.equal(stream.probe().x, probe)
        assert stream.digest() == digest


def values(batches):
    """First column of all rows, as whole numbers."""
    return torch.cat(batches)[:, 0].round().int().tolist()


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("n", [5, 10, 25, 50, 99])
def test_epochs_of_an_array_cover_every_row_once(kind, n):
    stream, orders = opened(kind), []
    for _ in range(3):
        rows = values([stream.draw(n).x for _ in range(max(1, N // n))])
        assert sorted(rows) == list(range(N))
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2], "each epoch in its own order"


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_what_is_left_of_an_array_is_skipped(kind):
    """No row twice in an epoch, and over the epochs every row is met."""
    stream, met = opened(kind), set()
    for _ in range(12):
        rows = values([stream.draw(16).x for _ in range(3)])
        assert len(set(rows)) == 48
        met |= set(rows)
    assert met == set(range(N))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("loader") and "random" not in kind])
@pytest.mark.parametrize("n", [3, 7, 16, 50])
def test_epochs_of_a_loader_hold_no_row_twice(kind, n):
    """Whatever its own batches are: they are cut to the size asked for, and the incomplete last one is skipped."""
    stream, met = opened(kind), set()
    length = 48 if kind == "loader-last-dropped" else N
    for epoch in range(3):
        rows = values([stream.draw(n).x for _ in range(max(1, length // n))])
        assert stream.state()[0] == epoch
        assert len(rows) == len(set(rows)) == (length // n * n or length)
        met |= set(rows)
    if length % n == 0 and length == N:
        assert met == set(range(N))


def test_a_loader_smaller_than_the_batch_gives_all_it_has():
    stream = opened("loader-tuples")
    for _ in range(3):
        assert sorted(values([stream.draw(80).x])) == list(range(N))


@pytest.mark.parametrize("kind", ["loader-tuples", "loader-own-generator", "loader-rows"])
def test_a_loader_keeps_its_shuffle(kind):
    stream = opened(kind)
    first, second = (values([stream.draw(N).x]) for _ in range(2))
    assert first != sorted(first)
    assert first != second


def test_a_loader_without_shuffle_keeps_its_order():
    stream = opened("loader-in-order")
    assert values([stream.draw(16).x for _ in range(3)]) == list(range(48))


@pytest.mark.slow
def test_a_loader_with_workers_gives_the_same_batches():
    alone, helped = opened("loader-tuples"), open_stream("target", named(num_workers=1), seed=0)
    for _ in range(5):
        assert torch.equal(alone.draw(16).x, helped.draw(16).x)


def test_the_generator_of_a_loader_is_not_written_to():
    loader = named(own=True)
    before = loader.generator.get_state()
    Loader("target", loader, 0).draw(16)
    assert torch.equal(loader.generator.get_state(), before)


def test_two_streams_may_share_a_loader():
    """As when one data set is moved to itself: neither disturbs the other."""
    loader = named(own=True)
    source, target = open_stream("source", loader, seed=0), open_stream("target", loader, seed=0)
    first = [(source.draw(16).x, target.draw(16).x) for _ in range(8)]
    state = source.state(), target.state()
    follow = [(source.draw(16).x, target.draw(16).x) for _ in range(4)]
    assert not torch.equal(*first[0])
    source, target = open_stream("source", named(own=True), seed=0), open_stream("target", named(own=True), seed=0)
    source.restore(state[0])
    target.restore(state[1])
    for a, b in follow:
        assert torch.equal(source.draw(16).x, a)
        assert torch.equal(target.draw(16).x, b)


# --- samplers -----------------------------------------------------------------------------------------------------------


def test_samplers_of_one_and_of_two_parameters_draw_alike():
    """The global stream that one uses is seeded as the generator that the other gets."""
    two = open_stream("target", lambda n, own: torch.randn(n, 3, generator=own), seed=4)
    one = open_stream("target", lambda n: torch.randn(n, 3), seed=4)
    for _ in range(3):
        assert torch.equal(one.draw(10).x, two.draw(10).x)


def test_batches_of_a_sampler_are_independent():
    stream = opened("sampler")
    a, b = stream.draw(4000).x, stream.draw(4000).x
    assert abs(float((a * b).mean())) * 8000**0.5 < 5


def test_a_law_of_this_library_is_a_sampler():
    """Its generator is a keyword."""
    stream = open_stream("target", moons.sample, seed=0)
    batch = stream.draw(20).x
    assert batch.shape == (20, 2)
    assert torch.equal(open_stream("target", moons.sample, seed=0).draw(20).x, batch)


def test_an_option_of_a_sampler_is_not_taken_for_its_generator():
    stream = open_stream("target", lambda n, scale=2.0: scale * torch.ones(n, 2), seed=0)
    assert torch.equal(stream.draw(3).x, torch.full((3, 2), 2.0))


def test_a_sampler_of_whole_numbers_and_of_arrays():
    stream = open_stream("target", lambda n: np.arange(2 * n).reshape(n, 2), seed=0)
    assert torch.equal(stream.draw(2).x, torch.tensor([[0.0, 1.0], [2.0, 3.0]]))


# --- the standard normal, generators and held-out rows ------------------------------------------------------------------


def test_the_standard_normal_takes_the_type_of_the_data():
    """And of one seed the same numbers, rounded."""
    single, double = (normal_stream(3, torch.zeros((), dtype=kind), seed=1) for kind in (torch.float32, torch.float64))
    a, b = single.draw(1000).x, double.draw(1000).x
    assert (a.dtype, b.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-6)
    assert abs(float(a.mean())) < 5 / 3000**0.5
    assert float(a.std()) == pytest.approx(1, abs=5 / 6000**0.5)


def test_a_generator_is_a_function_of_its_whole_key():
    keys = [(0,), (1,), (0, "a"), (0, "b"), ("0", "a", 1), (0, "a", 2)]
    firsts = [float(torch.rand(1, generator=generator(*key))) for key in keys]
    assert len(set(firsts)) == len(keys)
    assert firsts == [float(torch.rand(1, generator=generator(*key))) for key in keys]


@pytest.mark.parametrize(("n", "fraction", "held"), [(100, 0.1, 10), (50, 0.3, 15), (30_000, 0.5, 1000)])
def test_held_out_rows_are_set_apart(n, fraction, held):
    rows = torch.arange(n)[:, None].float()
    train, test = split_rows(rows, fraction, seed=3)
    assert len(test) == held
    assert sorted([*train[:, 0].tolist(), *test[:, 0].tolist()]) == list(range(n))
    assert train[:, 0].tolist() == sorted(train[:, 0].tolist()), "the training rows stay in order"
    assert torch.equal(split_rows(rows, fraction, seed=3)[1], test)
    assert not torch.equal(split_rows(rows, fraction, seed=4)[1], test)


@pytest.mark.parametrize(("n", "fraction"), [(100, 0.0), (15, 0.1), (2, 0.5)])
def test_too_few_to_set_apart_are_used_twice(n, fraction):
    rows = draw(n, 2)
    train, test = split_rows(rows, fraction, seed=0)
    assert torch.equal(train, rows)
    assert torch.equal(test, rows)


def test_other_data_has_another_fingerprint():
    digests = {open_stream("target", data, seed=0).digest() for data in (
        TABLE, TABLE + 1e-3, TABLE.flip(0), TABLE[:-1], TABLE.double(), TABLE.reshape(N // 2, 4),
        lambda n, own: torch.randn(n, 2, generator=own), lambda n, own: torch.rand(n, 2, generator=own),
        named(), named(data=TensorDataset(TABLE + 1e-3)))}  # fmt: skip
    assert len(digests) == 10


def test_the_fingerprint_of_a_loader_sees_beyond_its_first_batch():
    """A later row that differs is other data."""
    changed = TABLE.clone()
    changed[-1] += 1
    assert open_stream("target", named(shuffle=False, data=changed), seed=0).digest() != opened("loader-in-order").digest()


# --- faults -------------------------------------------------------------------------------------------------------------


def fault(data):
    with pytest.raises(InputError) as caught:
        open_stream("target", data, seed=0).draw(5)
    assert caught.value.argument == "target"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_batches_that_are_dictionaries():
    text = fault(DataLoader([{"x": row, "label": 0} for row in TABLE], batch_size=7))
    assert "target: expected an array or tensor of numbers, got dict" in text


def test_loaders_without_usable_rows():
    assert "at least 2 rows" in fault(DataLoader(TABLE[:1], batch_size=7))
    assert "at least 2 rows" in fault(named(batch_size=N + 1, drop_last=True))
    assert "got nan" in fault(DataLoader(torch.full((5, 2), torch.nan), batch_size=2))
    assert "got shape (5,)" in fault(DataLoader(torch.arange(10.0), batch_size=5))


def test_samplers_that_do_not_fit():
    assert "got a callable with 0 parameters" in fault(lambda: TABLE)
    assert "got a callable with 3 parameters" in fault(lambda n, own, device: TABLE)
    assert "expected 5 rows from the sampler, got 50" in fault(lambda n: TABLE)
    assert "got NoneType" in fault(lambda n: None)
    assert "got inf at row 4, column 1 (1 such entries)" in fault(lambda n: torch.tensor([[0.0, 1]] * (n - 1) + [[0, torch.inf]]))


def test_data_that_is_none_of_these():
    assert "got list" in fault(TABLE.tolist())
    assert "got str" in fault("rows.csv")


def test_rows_are_shuffled_not_changed():
    stream = Rows("target", Batch(TABLE), 0)
    stream.draw(20).x.zero_()
    assert float(TABLE.abs().sum()) > 0
