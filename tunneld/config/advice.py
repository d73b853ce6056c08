"""What can be said of a configuration that is valid: limits that may not fit, files that are not there."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import sys
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tunneld.config.agent import AgentConfig
from tunneld.config.alerts import EmailTarget, Target, WebhookTarget
from tunneld.config.common import TelemetryConfig
from tunneld.config.secrets import refuse_open_secret
from tunneld.errors import ConfigError

if TYPE_CHECKING:
    from tunneld.config.server import CertificateConfig, ServerConfig

__all__ = [
    "certificates",
    "descriptor_limit",
    "descriptors_needed",
    "otlp_missing",
    "secret_faults",
    "warnings",
]

#: Descriptors that a process needs besides those of streams and tunnels.
_PACKAGED = Path("/usr/lib/tunneld")
"""Where the Debian package has its environment."""
_OWN_DESCRIPTORS = 64


def otlp_missing(telemetry: TelemetryConfig) -> str | None:
    """What `telemetry.otlp` lacks to work, and how to get it; None: nothing, or it is off."""
    if telemetry.otlp is None:
        return None
    try:
        if find_spec("opentelemetry.exporter.otlp.proto.http") and find_spec("opentelemetry.sdk"):
            return None
    except ModuleNotFoundError:  # a package above them
        pass
    return f"there are no traces: the packages of the extra `otlp` are not installed. {_how_to_add('otlp')}"


def _how_to_add(extra: str) -> str:
    """How this installation gets an extra's packages: it has pip, is pipx's, or was packed and takes none."""
    here = Path(sys.prefix)
    if (here / "pipx_metadata.json").exists():
        return f"Get them with `pipx inject tunneld 'tunneld[{extra}]'`"
    if here == _PACKAGED:  # which others' tools must not write to, be they on the PATH or not
        return _from_the_package(here, extra)
    if find_spec("pip") is not None:
        return f"Get them with `{shlex.quote(sys.executable)} -m pip install 'tunneld[{extra}]'`"
    if shutil.which("uv") is not None:
        return f"Get them with `uv pip install --python {shlex.quote(sys.executable)} 'tunneld[{extra}]'`"
    return _from_the_package(here, extra)


def _from_the_package(here: Path, extra: str) -> str:
    return (
        f"{here} has no pip: the Debian package and the images of this version bring them, so install that anew "
        "(`apt install --reinstall ./tunneld_*.deb`), or make an environment of your own with "
        f"`pipx install 'tunneld[{extra}]'`"
    )


def descriptors_needed(config: AgentConfig | ServerConfig) -> int:
    """Descriptors that the limits may ask for.

    A server: one for each tunnel, and the visitors of one that is full. An agent: one for each tunnel, and for each
    stream its connection to the service and one that waits for more work. Both: some of their own.
    """
    if not isinstance(config, AgentConfig):
        return _OWN_DESCRIPTORS + config.limits.max_tunnels + config.limits.max_streams
    return _OWN_DESCRIPTORS + sum(1 + 2 * tunnel.limits.max_streams for tunnel in config.tunnels)


def descriptor_limit() -> int | None:
    """Descriptors that this process may open once its soft limit is raised to the hard one; None: no limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def certificates(config: ServerConfig) -> list[tuple[str, CertificateConfig]]:
    """(key above it, pair) of every certificate."""
    sections = [("tls", config.tls), *((f"listen[{i}].tls", one.tls) for i, one in enumerate(config.listen))]
    if config.admin is not None:
        sections.append(("admin.listen.tls", config.admin.listen.tls))
    found: list[tuple[str, CertificateConfig]] = []
    for where, tls in sections:
        if tls is not None:
            found += [(where, tls), *((f"{where}.sni[{i}]", pair) for i, pair in enumerate(tls.sni))]
    return found


def _targets(config: AgentConfig | ServerConfig) -> list[tuple[str, Target]]:
    """(key, receiver) of every one that alerts are told to."""
    return [
        (f"alerts[{i}].to[{j}]", target) for i, rule in enumerate(config.alerts) for j, target in enumerate(rule.to)
    ]


def _secret_files(config: AgentConfig | ServerConfig) -> list[tuple[str, str]]:
    """(key, path) of every file that holds a secret."""
    if isinstance(config, AgentConfig):
        found: list[tuple[str, str | None]] = [
            ("server.token_file", config.server.token_file),
            ("server.client_key", config.server.client_key),
            ("metrics.token_file", config.metrics.token_file),
        ]
    else:
        found = []
        if config.admin is not None:
            found.append(("admin.token_file", config.admin.token_file))
        if config.login is not None:
            found.append(("login.client_secret_file", config.login.client_secret_file))
        found += [(f"{where}.key", pair.key) for where, pair in certificates(config)]
    for where, target in _targets(config):
        if isinstance(target, WebhookTarget):
            found.append((f"{where}.secret_file", target.secret_file))
        elif isinstance(target, EmailTarget):
            found.append((f"{where}.password_file", target.password_file))
    return [(key, path) for key, path in found if path is not None]


def _public_files(config: AgentConfig | ServerConfig) -> list[tuple[str, str]]:
    """(key, path) of every other file that the daemon reads."""
    if isinstance(config, AgentConfig):
        found = [("server.ca_file", config.server.ca_file), ("server.client_cert", config.server.client_cert)]
    else:
        found = [(f"{where}.cert", pair.cert) for where, pair in certificates(config)]
        cas = [("tls", config.tls), *((f"listen[{i}].tls", one.tls) for i, one in enumerate(config.listen))]
        found += [(f"{where}.client_ca", tls.client_ca) for where, tls in cas if tls is not None]
    found += [
        (f"{where}.ca_file", target.ca_file)
        for where, target in _targets(config)
        if isinstance(target, WebhookTarget | EmailTarget)
    ]
    return [(key, path) for key, path in found if path is not None]


def secret_faults(config: AgentConfig | ServerConfig) -> list[str]:
    """Secrets' files that are there and that others can read, one line each."""
    faults: list[str] = []
    for key, path in _secret_files(config):
        try:
            if os.access(path, os.F_OK):
                refuse_open_secret(path)
        except ConfigError as error:
            faults += [f"{key}: {fault}" for fault in error.faults]
    return faults


def warnings(config: AgentConfig | ServerConfig) -> list[str]:
    """What is valid and yet may not be what was meant, one line each."""
    found: list[str] = []
    if (missing := otlp_missing(config.telemetry)) is not None:
        found.append(f"telemetry.otlp: {missing}")
    files = _secret_files(config) + _public_files(config)
    found += [f"{key}: {path}: no such file yet" for key, path in files if not os.access(path, os.F_OK)]
    limit, needed = descriptor_limit(), descriptors_needed(config)
    if limit is not None and needed > limit:
        found.append(f"limits: full use would need {needed} descriptors; this system allows a process {limit}")
    if not isinstance(config, AgentConfig) and config.login is not None:
        if config.public_url is None:
            found.append("login: without public_url the address to register at the issuer is the first listener's own")
        if config.domain is None:
            found.append("login: without domain visitors can sign in only while all tunnels are one owner's")
    if isinstance(config, AgentConfig):
        if not config.tunnels:
            found.append("tunnels: there is none, so nothing is served")
        for tunnel in config.tunnels:
            access = tunnel.access
            if access.mode == "login" and not (access.emails or access.domains):
                words = "no emails and no domains: only addresses with a permission at the server may come"
                found.append(f"tunnels[{tunnel.name}].access: {words}")
        if config.server.url.startswith("ws://") and not _loopback(urlsplit(config.server.url).hostname or ""):
            found.append("server.url: ws:// is not encrypted, the token neither; use wss:// beyond this machine")
    return found


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
