"""The version of the icll-zoo distribution."""

__version__ = "0.1.0"
