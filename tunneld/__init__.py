"""tunneld: the tunnel that knows what is connected."""

__version__ = "0.1.0"
