"""The agent's way to its server: where it is, and what to show it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from tunneld.config.addresses import proxy_url, server_url
from tunneld.config.common import (
    FilePath,
    Model,
)

__all__ = ["ServerLink"]


class ServerLink(Model):
    """The server that the agent dials.

    Attributes:
        url: ``ws://HOST[:PORT]`` or ``wss://…``, no path.
        token_file: file of the credential; None: see `tunneld.config.secrets.agent_token`.
        ca_file: PEM of the authorities to trust; None: the system's.
        client_cert: PEM of a client certificate; None: none.
        client_key: PEM of its key; None: in `client_cert`.
        proxy: address of the proxy to go through; None: as HTTPS_PROXY and NO_PROXY say.
    """

    url: Annotated[str, BeforeValidator(server_url)]
    token_file: FilePath | None = None
    ca_file: FilePath | None = None
    client_cert: FilePath | None = None
    client_key: FilePath | None = None
    proxy: Annotated[str, BeforeValidator(proxy_url)] | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _key_needs_cert(self) -> Self:
        if self.client_key is not None and self.client_cert is None:
            raise ValueError("client_key needs client_cert beside it")
        return self
