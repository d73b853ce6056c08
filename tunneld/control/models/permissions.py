"""Who may visit a tunnel, by e-mail address."""

from __future__ import annotations

from typing import Literal, NotRequired

from tunneld.control.models.typed import TypedDict, strict

__all__ = ["NewPermissions", "PermissionInfo", "Permissions"]


class PermissionInfo(TypedDict):
    """That somebody may visit a tunnel; times are ISO 8601 UTC, null: never, or not yet."""

    id: int
    server_id: int | str
    allowed_email: str
    user_id: str | None
    status: Literal["pending", "active", "revoked", "expired"]
    access_level: Literal["read_only", "read_write", "admin"]
    granted_at: str | None
    granted_by_ip: str | None
    activated_at: str | None
    revoked_at: str | None
    expires_at: str | None
    notes: str | None


class Permissions(TypedDict):
    """Some of a tunnel's."""

    permissions: list[PermissionInfo]


class NewPermissions(TypedDict):
    """Whom to let visit a tunnel: e-mail addresses, a level (read_write unless said), for how many seconds."""

    emails: list[str]
    access_level: NotRequired[Literal["read_only", "read_write", "admin"]]
    expires_s: NotRequired[float]
    notes: NotRequired[str]


strict(NewPermissions)
