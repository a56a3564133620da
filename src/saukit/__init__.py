"""saukit: long-tailed image recognition with synthetic data."""

__version__ = "0.1.0"
