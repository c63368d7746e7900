"""A shift: domains from codes and from gaps, every kind of array, remarks, and the wording of every error."""

import numpy as np
import pandas as pd
import pytest
import torch

from driftway.adapt.shift import Shift
from driftway.checks import InputError

X = np.arange(12.0).reshape(6, 2)
NAN = float("nan")
Y = np.array([1.0, 2.0, 3.0, NAN, 5.0, NAN])
ALONE = "no target row has a label: predictions rest on the source alone"


def frame(*names: str) -> pd.DataFrame:
    return pd.DataFrame(np.arange(6.0 * len(names)).reshape(6, -1), columns=list(names))


def test_codes_become_domains_in_order_and_rows_stay():
    shift = Shift.from_domains(X, Y, [7, 3, 7, -4, -4, -4])
    assert shift.codes == (-4, 3, 7)
    assert shift.domain.tolist() == [2, 1, 2, 0, 0, 0]
    assert (shift.sources, shift.outputs, shift.labels, shift.flat) == (2, 1, 1, True)
    assert shift.labelled.tolist() == [True, True, True, False, True, False]
    assert shift.rows(2).tolist() == [0, 2]
    assert torch.equal(shift.X, torch.from_numpy(X))
    assert shift.names == ("x0", "x1")
    assert torch.equal(shift.weight, torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize(("y", "domain", "codes", "remarks"), [
    (Y, [1, 1, 1, 0, 1, 0], (-2, 1), [ALONE]),
    (np.arange(6), [0] * 6, (-1,), []),
])  # fmt: skip
def test_without_codes_the_gaps_are_the_target(y, domain, codes, remarks):
    shift = Shift.from_domains(X, y)
    assert (shift.domain.tolist(), shift.codes, shift.remarks()) == (domain, codes, remarks)


@pytest.mark.parametrize("convert", [
    lambda a: a, torch.from_numpy, pd.DataFrame, lambda a: a.tolist(), lambda a: a.astype(np.float32), lambda a: a.astype(int),
    lambda a: torch.from_numpy(a).bfloat16(), lambda a: pd.DataFrame(a).astype("Int64"), np.asfortranarray,
    lambda a: np.ma.masked_array(a, mask=False),
], ids=["numpy", "torch", "pandas", "list", "float32", "int", "bfloat16", "nullable", "fortran", "masked"])  # fmt: skip
def test_every_kind_of_table_gives_the_same_shift(convert):
    shift = Shift.from_domains(convert(X), Y)
    assert shift.X.dtype == torch.float64
    assert torch.equal(shift.X, torch.from_numpy(X))


@pytest.mark.parametrize("y", [
    Y, torch.from_numpy(Y), pd.Series(Y), Y.tolist(), pd.Series([1, 2, 3, None, 5, None], dtype="Int64"),
    np.ma.masked_array(np.array([1, 2, 3, 9, 5, 9]), mask=[0, 0, 0, 1, 0, 1]),
], ids=["numpy", "torch", "pandas", "list", "nullable", "masked"])  # fmt: skip
def test_every_kind_of_target_keeps_its_gaps(y):
    assert torch.equal(Shift.from_domains(X, y).y.nan_to_num(-1)[:, 0], torch.tensor([1, 2, 3, -1, 5, -1], dtype=torch.float64))


def test_a_shift_holds_copies():
    x, y, tensor = X.copy(), Y.copy(), torch.from_numpy(X.copy())
    shift, other = Shift.from_domains(x, y), Shift.from_domains(tensor, Y)
    x[:], y[:] = 0, 0
    tensor.zero_()
    assert torch.equal(shift.X, torch.from_numpy(X))
    assert torch.equal(other.X, torch.from_numpy(X))
    assert shift.y[1, 0] == 2


def test_names_are_those_of_the_frame_or_the_caller():
    assert Shift.from_domains(frame("a", "b"), Y).names == ("a", "b")
    assert Shift.from_domains(frame("a", "b"), Y, names=["u", "v"]).names == ("u", "v")
    assert Shift.from_arrays(frame("a", "b"), X[:, 0], frame("a", "b")).names == ("a", "b")


def test_arrays_are_rows_of_sources_target_and_unlabelled():
    shift = Shift.from_arrays([X, X[:2] + 1], [X, X[:2]], X[:3] + 2, X[:3] * [[1], [NAN], [NAN]], X_unlabelled=X[:1])
    assert shift.codes == (-3, 1, 2)
    assert shift.domain.tolist() == [1] * 6 + [2] * 2 + [0] * 4
    assert torch.equal(shift.X, torch.from_numpy(np.concatenate([X, X[:2] + 1, X[:3] + 2, X[:1]])))
    assert (shift.outputs, shift.flat, shift.labels) == (2, False, 1)
    assert shift.labelled.tolist() == [True] * 9 + [False] * 3
    one = Shift.from_arrays(X, X[:, 0], X)
    assert (one.codes, one.flat, one.labels, one.remarks()) == ((-2, 1), True, 0, [ALONE])


def test_rows_given_as_lists_are_one_source():
    assert Shift.from_arrays([[1, 2], [3, 4]], [1, 2], [[1, 2]]).domain.tolist() == [1, 1, 0]
    assert Shift.from_arrays([[[1, 2]], [[3, 4]]], [[1], [2]], [[1, 2]]).domain.tolist() == [1, 2, 0]


def test_a_target_without_source():
    shift = Shift.from_arrays(None, None, X, Y)
    assert (shift.sources, shift.codes, shift.labels) == (0, (-1,), 4)
    assert shift.remarks() == ["sample_domain has target rows only: there is nothing to transfer"]


def test_remarks():
    shift = Shift.from_domains(X, [3.0] * 6, [1] * 3 + [-1] * 3)
    assert shift.remarks() == ["all 6 labels equal 3: y is constant there, and says nothing about X"]
    two = np.stack([np.arange(6), np.array([1, 2, 3, 8, 8, 8])], 1)
    assert Shift.from_domains(X, two, [1] * 3 + [-1] * 3).remarks() == [
        "all 3 target labels in output 1 equal 8: y is constant there, and says nothing about X"]  # fmt: skip
    assert Shift.from_domains(X, np.arange(6), [1] * 3 + [-1] * 3).remarks() == []


def test_select_keeps_the_list_of_domains():
    shift = Shift.from_domains(X, Y, [7, 3, 7, -4, -4, -4], sample_weight=range(6))
    for some in (shift.select(torch.tensor([4, 0])), shift.select(torch.tensor([1, 0, 0, 0, 1, 0]).bool())):
        assert (some.codes, some.sources, some.names) == (shift.codes, 2, shift.names)
    some = shift.select(torch.tensor([4, 0]))
    assert (some.domain.tolist(), some.weight.tolist(), some.y[:, 0].tolist()) == ([0, 2], [4, 0], [5, 1])
    assert len(shift.select(torch.tensor([], dtype=torch.long)).X) == 0


def test_conflicts_are_rows_of_one_domain_with_different_labels():
    x = np.array([[1, 1], [1, 1], [1, 1], [2, 2], [2, 2], [1, 1], [3, 3], [3, 3]])
    y = np.array([1, 2, 1, 5, 5, 9, 7, NAN])
    shift = Shift.from_domains(x, y, [1, 1, 1, 1, 1, -1, -1, -1])
    assert shift.conflicts == 3
    assert shift.select(shift.rows(0)).conflicts == 0
    assert shift.select(torch.tensor([7])).conflicts == 0


def of_domains(x=X, y=Y, *rest):
    return lambda: Shift.from_domains(x, y, *rest)


def of_arrays(*arrays, **named):
    return lambda: Shift.from_arrays(*arrays, **named)


HOLED = frame("a", "b")
HOLED.loc[3, "b"] = NAN
MIXED = pd.DataFrame({"a": [1, 2], "s": ["u", "v"], "c": pd.Categorical([1, 2]), "t": pd.to_datetime(["2020", "2021"])})
PARTS = np.stack([Y, np.arange(6)], 1)


@pytest.mark.parametrize(("call", "argument", "words"), [
    (of_domains(X, Y, [1] * 6), "sample_domain", ["positive codes only (1)", "-1"]),
    (of_domains(X, Y, [1, 0, 1, -1, -1, -1]), "sample_domain", ["0 at row 1"]),
    (of_domains(X, Y, [1, 1.5, 1, -1, -1, -1]), "sample_domain", ["1.5 at row 1"]),
    (of_domains(X, Y, np.array([True] * 6)), "sample_domain", ["booleans"]),
    (of_domains(X, Y, [1, 1, 1, -1, -1]), "sample_domain", ["(6,)", "(5,)"]),
    (of_domains(X, Y, [1, 1, 1, -1, -2, -1]), "sample_domain", ["2 negative codes (-2, -1)", "one estimator for each"]),
    (of_domains(X, Y, [1, 1, 1, 4, 1, -1]), "y", ["NaN in 1 of them", "row 3 (domain 4)"]),
    (of_domains(X, PARTS), "y", ["output 0", "row 3 (2 such rows)"]),
    (of_domains(X, Y * NAN), "y", ["NaN in all 6 rows"]),
    (of_domains(X, Y[:5]), "y", ["6 rows", "got 5"]),
    (of_domains(X, np.zeros((6, 1, 1))), "y", ["(6, 1, 1)"]),
    (of_domains(X, np.array([1, 2, 3, 4, np.inf, 1])), "y", ["inf at row 4"]),
    (of_domains(X, ["a"] * 6), "y", ["<U1"]),
    (of_domains(X, Y + 1j), "y", ["complex128"]),
    (of_domains(X, None), "y", ["None"]),
    (of_domains(X.astype(complex)), "X", ["complex128"]),
    (of_domains(torch.from_numpy(X).to(torch.complex128)), "X", ["complex128"]),
    (of_domains(X.astype(object)), "X", ["object"]),
    (of_domains(X[:, 0]), "X", ["(6,)", "(n, 1)"]),
    (of_domains(X[:0], Y[:0]), "X", ["(0, 2)"]),
    (of_domains([[1, 2], [3]], [1, 2]), "X", ["different lengths"]),
    (of_domains(HOLED), "X", ["nan at row 3, column b"]),
    (of_domains(MIXED, [1, 2]), "X", ["s (", "c (category)", "t (datetime64", "ColumnTransformer"]),
    (of_domains(X, Y, None, [1, 1, -1, 1, 1, 1]), "sample_weight", ["-1 at row 2"]),
    (of_domains(X, Y, None, [1, NAN, 1, 1, 1, 1]), "sample_weight", ["nan at row 1"]),
    (of_domains(X, Y, None, [0] * 6), "sample_weight", ["zeros only"]),
    (of_domains(X, Y, None, [1] * 5), "sample_weight", ["(6,)", "(5,)"]),
    (of_domains(X, Y, None, None, ["a"]), "names", ["2 names", "got 1"]),
    (of_arrays(frame("a", "b"), X[:, 0], frame("a", "c")), "X_target", ["without b", "with c besides"]),
    (of_arrays(frame("a", "b"), X[:, 0], frame("b", "a")), "X_target", ["another order"]),
    (of_arrays(frame("a", "b"), X[:, 0], frame("a", "b"), X_unlabelled=frame("a")), "X_unlabelled", ["without b"]),
    (of_arrays(X, X[:, 0], X[:, :1]), "X_target", ["2 columns", "got 1"]),
    (of_arrays(X, X[:, 0], X, X), "y_target", ["(6,)", "(6, 2)"]),
    (of_arrays(X, X, X, PARTS), "y_target", ["output 0", "row 3 (2 such rows)"]),
    (of_arrays(X, None, X), "y_source", ["None"]),
    (of_arrays(X, Y, X), "y_source", ["NaN in 2 of them", "row 3"]),
    (of_arrays([X, X], X[:, 0], X), "y_source", ["list of 2 arrays", "ndarray"]),
    (of_arrays([X, X], [X[:, 0]], X), "y_source", ["list of 2 arrays", "got 1"]),
    (of_arrays([X, X[:, :1]], [Y, Y], X), "y_source[0]", ["NaN"]),
    (of_arrays(X, Y[:3], X), "y_source", ["6 rows", "got 3"]),
    (of_arrays(None, None, X), "y", ["at least one label"]),
])  # fmt: skip
def test_errors_name_the_argument_what_came_and_the_cure(call, argument, words):
    with pytest.raises(InputError) as error:
        call()
    assert error.value.argument == argument
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_sparse_tables_are_refused():
    from scipy.sparse import csr_matrix

    with pytest.raises(InputError, match="toarray"):
        Shift.from_domains(csr_matrix(X), Y)
