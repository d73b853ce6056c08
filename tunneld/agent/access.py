"""What an agent tells the server of who may visit."""

from __future__ import annotations

from tunneld.config.access import AccessConfig, LoadedAccess
from tunneld.protocol.messages import AccessKey, AccessSettings

__all__ = ["access_wish", "enforces"]


def access_wish(config: AccessConfig, links: bytes) -> AccessSettings:
    """The tunnel's section as it is sent: hashes alone.

    Args:
        links: what shared addresses are signed with.
    """
    users = config.users if isinstance(config, LoadedAccess) else {}
    return AccessSettings(
        mode=config.mode,
        keys=[AccessKey(key.name, key.hash, key.expires, key.level) for key in config.keys if key.hash is not None],
        users=users,
        allow=list(config.allow),
        deny=list(config.deny),
        level=config.level,
        links="" if config.mode == "open" else links.hex(),
        emails=list(config.emails),
        domains=list(config.domains),
    )


def enforces(said: str | None, config: AccessConfig) -> bool:
    """Whether a server that `said` this mode in `connected` (None: it knows of none) protects the tunnel."""
    wanted = AccessSettings(config.mode, allow=list(config.allow), deny=list(config.deny), level=config.level)
    return wanted == AccessSettings() or said == config.mode
