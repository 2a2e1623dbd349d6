"""The version of the distribution; the formats have versions of their own (docs/FORMAT.md)."""

__version__ = "0.1.0"
