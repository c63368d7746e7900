"""What tests of several rooms need."""

import warnings

import pytest


@pytest.fixture(scope="session")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("transformers", reason="not installed; driftway does not need it")
        module.logging.set_verbosity_error()
        return module
