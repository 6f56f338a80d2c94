"""paperlib: fifteen papers on depth, super-resolution, masked autoencoders, video prediction and rendering, each a notebook and a module."""

__version__ = "0.1.0"

__all__ = ["load", "paper", "papers", "reproduce"]


def __getattr__(name: str):
    """Import the registry only when one of its entries is used, so that ``import paperlib`` costs nothing."""
    if name in __all__:
        from paperlib.core import paper as registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
