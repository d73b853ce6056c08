"""What the agent's control API and the server's admin API may answer."""

from __future__ import annotations

from tunneld.codes.code import table

__all__ = ["OPERATORS"]

OPERATORS = table(
    # The control API.
    (
        "tunnel_exists",
        409,
        "This agent has a tunnel of that name already.",
        "Choose another name, or close that one first: `tunnelctl close NAME`.",
    ),
    (
        "tunnel_configured",
        409,
        "The tunnel stands in the agent's configuration file.",
        "Take it out of the file, then `tunnelctl reload`.",
    ),
    (
        "not_saved",
        409,
        "The tunnel could not be saved in tunnels.d.",
        "Do what the detail says, or open it without --save: then it goes with the agent.",
    ),
    (
        "not_protected",
        409,
        "Nothing is shared of a tunnel that everybody may visit.",
        "Give its public address as it is, or set access.mode in its section.",
    ),
    (
        "bad_argument",
        422,
        "The call's body or query has a fault.",
        "The detail names it; /openapi.json on the control socket documents every call.",
    ),
    (
        "empty_filter",
        422,
        "The filter names nothing.",
        'Give at least one of tunnel, kind, path, older_than_s and idle_s, or "all": true.',
    ),
    (
        "bad_config",
        422,
        "The configuration file cannot be used; nothing has changed.",
        "Correct the faults that the detail names; `tunneld check` shows the same ones.",
    ),
    (
        "no_such_stream",
        404,
        "No stream with that id is under way.",
        "It has ended, or the id is mistyped; `tunnelctl streams` lists those under way.",
    ),
    (
        "no_such_request",
        404,
        "That request is not kept.",
        "The last ones of tunnels with `inspect: true` are listed by `tunnelctl requests`.",
    ),
    (
        "not_inspected",
        403,
        "The tunnel's streams may not be looked into.",
        "Set `inspect: true` for that tunnel, then `tunnelctl reload`; streams that begin after it can be seen.",
    ),
    (
        "not_replayable",
        409,
        "The request cannot be sent again.",
        "Its body was not kept whole (`inspection.body`), or it is a WebSocket.",
    ),
    (
        "no_such_alert",
        404,
        "No rule of that name stands in `alerts`.",
        "The rules are listed by `tunnelctl alerts --json`.",
    ),
    (
        "web_page_refused",
        403,
        "The control and admin APIs do not answer requests of web pages.",
        "Use tunnelctl, or a client that sends neither Origin nor Sec-Fetch-Site; a change carries X-Tunneld-Request.",
    ),
    (
        "misdirected",
        421,
        "The Host of a request to the control or admin API is not this machine.",
        "Send `Host: localhost`, or set admin.token_file for the admin API.",
    ),
    # The admin API.
    (
        "not_permitted",
        403,
        "The token does not allow this call.",
        "Use admin.token_file, or a token made with `tunneld server token create NAME --scope read` (or write).",
    ),
    (
        "local_only",
        403,
        "The admin API answers only this machine, and no proxy on it.",
        "Set admin.token_file to reach it from elsewhere, and send its content as a bearer token.",
    ),
    (
        "no_such_token",
        404,
        "There is no token with that id that is not revoked.",
        "Look at `tunneld server token list`.",
    ),
    (
        "no_such_owner",
        404,
        "There is no owner of that id or name.",
        "Look at `tunneld server owner list`.",
    ),
    (
        "owner_exists",
        409,
        "There is an owner of that name already, or was one.",
        "Choose another name.",
    ),
    (
        "no_such_name",
        404,
        "That name belongs to nobody.",
        "Look at `tunneld server names`.",
    ),
    (
        "too_many_subscribers",
        503,
        "As many readers follow the events, or look into streams, as may; or the agent is stopping.",
        "End a `tunnelctl events` or `tail` that runs, or raise `control.event_readers` or `inspection.readers`.",
    ),
)
