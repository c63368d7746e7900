"""Transport as an input to adaptation: sources are mapped onto the target's inputs before a regressor is fitted."""

from driftway.align.estimator import TransportedRegressor
from driftway.align.maps import InputMap, Moments, equal_laws, input_map

__all__ = ["InputMap", "Moments", "TransportedRegressor", "equal_laws", "input_map"]
