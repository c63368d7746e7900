"""Value-driven transport: the gradient of a learned value function moves samples of one law to samples of another."""

__version__ = "0.1.0"
