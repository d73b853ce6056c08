"""What is taken out of everything that goes into a bundle.

Three nets, one behind the other, for a bundle is sent to strangers:

- a configuration shows the values of the keys that are known to hold no secret (`_SHOWN`), numbers and durations; every
  other value is hidden, that of a key that is new, or mistyped, too;
- a text loses what looks like a credential: headers of credentials, tokens, keys in PEM, queries of addresses;
- the secrets of this machine that could be read are looked for by what they are, in the forms that they travel in.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from tunnelctl.doctor.findings import without_secrets

__all__ = ["HIDDEN", "Mask", "masked", "shown_address"]

HIDDEN = "…"

_SHOWN = {
    *("name", "when", "level", "mode", "shape", "format", "group", "serve", "v2", "tunnels", "over"),
    *("host", "listen", "domain", "allow", "deny", "trusted_proxies", "expires"),
}
"""Keys whose text is shown as it stands."""
_PATHS = {
    *("socket", "readonly_socket", "unix", "audit", "cert", "key", "ca_file", "client_ca", "client_cert"),
    *("client_key", "token_file", "key_file", "users_file", "secret_file", "password_file", "client_secret_file"),
}
"""Keys that name a file or a path: shown where what stands there is one."""
_ADDRESSES = {"url", "public_url", "service", "proxy", "otlp", "smtp", "issuer", "store"}
"""Keys that hold an address: shown without user, password, path and query."""
_PERSONAL = {"domains", "client_id", "scopes", "audience"}
"""Keys that are hidden, but whose values may stand elsewhere: they are no secret."""
_MAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@(?!\S{0,255}\.(?:service|socket)\b)[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]+)+"
)
_PATH = re.compile(r"[/~.][!-~]{0,255}")
_QUANTITY = re.compile(r"[0-9]{1,5}(\.[0-9]{1,6})?|[0-9]{1,9}(\.[0-9]{1,6})?\s*(ms|s|m|h|d|w|%|B|[KMG]i?B?)")
_LARGE = 100_000
"""Numbers from here on are hidden: nobody writes a size so, but somebody may a code."""
_SECRET_FILES = re.compile(r"(token|key|secret|password|users)_file$|^(client_)?key$")
_SECRET_KEY = re.compile(r"token|passw|secret|cookie|credential|signature|headers|pin$|key$", re.IGNORECASE)

# A name is tried once, where it begins, and taken whole or not at all (`++`): a text of many dashes takes a time that
# grows with its length, not with the square of it.
_NAME = r"[A-Za-z0-9_-]"
_SECRET_NAME = (
    rf"(?<!{_NAME})(?={_NAME}*?(?:(?:token|passw(?:or)?d|secret|api[_-]?key|credential|signature|session)"
    rf"(?!s?_?(?:file|s_))|pass(?:phrase)?(?!{_NAME})))({_NAME}++)"
)
_HEADER_NAME = r"(?<![a-z-])(?=[a-z-]*?x-)(?=[a-z-]*?(?:key|token|secret|auth))[a-z-]++"
_CREDENTIALS = [
    # A header of credentials or an address of a visitor's browser, up to the end of the line or of its quotes.
    (
        re.compile(
            rf"(?i)((?:proxy-)?authorization|(?:set-)?cookie2?|{_HEADER_NAME}|api-?key)"
            r"(\\?[\"']?\s*[:=,]\s*)(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\r\n\"']+)"
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer|basic|digest|negotiate)(\s+)[A-Za-z0-9._~+/=-]{4,}"), rf"\1\2{HIDDEN}"),
    (
        re.compile(
            rf"(?i){_SECRET_NAME}(\\?[\"']?\s*[=:]\s*)"
            r"(?:\"(?:[^\"\\\r\n]|\\.)+\"|'[^'\r\n]+'|\\?[\"']?[^\s\"',;&\\]{6,})"
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
    (re.compile(r"\btnl_[0-9A-Za-z_-]+"), HIDDEN),
    (re.compile(r"(?i)(?<=v2/)[^/?#\s\"']+|(?<=v2%2F)[^/?#\s\"'%]+"), HIDDEN),
    (
        # No `*+` around a group: before Python 3.11.5 that loses what the group took.
        re.compile(rf"(?<!{_NAME})((?:(?!\beyJ{_NAME}{{8}}){_NAME})*)\beyJ{_NAME}{{8}}{_NAME}*+(?:\.{_NAME}++){{1,4}}"),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53}|sha256:[0-9a-fA-F]{64}"), HIDDEN),
]
_LEAST = 6
"""Characters of a secret from which on it is looked for; a shorter one would stand in any text."""
_MOST = 1 << 20
"""Bytes of a file with a secret that are read."""


def masked(value: Any, key: str = "") -> Any:
    """A configuration without what may be secret."""
    if isinstance(value, dict):
        if key == "headers":
            return {_credentials(str(name)): HIDDEN for name in value}
        return {_credentials(str(name)): masked(one, str(name)) for name, one in value.items()}
    if isinstance(value, list):
        if key == "command" and value:  # an argument may be a secret
            return [masked(value[0], "socket"), *[HIDDEN] * (len(value) - 1)]
        return [masked(one, key) for one in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return HIDDEN if _SECRET_KEY.search(key) or abs(value) >= _LARGE else value
    return _shown(str(value), key)


def _shown(text: str, key: str) -> str:
    if key in _SHOWN:
        return _credentials(without_secrets(text))
    if key == "path":  # of a service's address: plain words alone
        return text if re.fullmatch(r"(/[a-z_-]{0,20}){1,5}", text) else HIDDEN
    if key in _PATHS and _PATH.fullmatch(text):
        return _credentials(without_secrets(text))
    if key in _ADDRESSES:
        return shown_address(text)
    return text if _QUANTITY.fullmatch(text.strip()) and not _SECRET_KEY.search(key) else HIDDEN


def shown_address(text: str) -> str:
    """``scheme://host:port`` of an address, and no more of it; of a file's the path."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return HIDDEN
    if parts.scheme in ("unix", "sqlite", "memory") and not host:
        return _credentials(text.partition("?")[0])
    if not parts.scheme or not host:
        return HIDDEN
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{f'/{HIDDEN}' if parts.path.strip('/') else ''}"


def _credentials(text: str) -> str:
    for pattern, instead in _CREDENTIALS:
        text = pattern.sub(instead, text)
    return text


class _Known:
    """Words that are looked for in texts: a file of users may hold thousands, which as one pattern would take minutes.

    Args:
        words: each of at least `_LEAST` characters.
    """

    def __init__(self, words: set[str]) -> None:
        self._words = words
        lengths: dict[str, set[int]] = {}
        for word in words:
            lengths.setdefault(word[:_LEAST], set()).add(len(word))
        self._lengths = {begin: sorted(found, reverse=True) for begin, found in lengths.items()}

    def hidden(self, text: str) -> str:
        """The text without them; of two that begin at one place the longer goes."""
        lengths, words = self._lengths, self._words
        pieces: list[str] = []
        at = done = 0
        while at < len(text):
            for length in lengths.get(text[at : at + _LEAST], ()):
                if text[at : at + length] in words:
                    pieces += (text[done:at], HIDDEN)
                    at = done = at + length
                    break
            else:
                at += 1
        return "".join([*pieces, text[done:]])


class Mask:
    """Hides secrets in texts, those of this machine by what they are.

    Args:
        configs: files as they were read.
        environ: of this process.
        files: that hold secrets, whether they are there or not.
    """

    def __init__(self, configs: list[dict[str, Any]], environ: Mapping[str, str], files: Iterable[str] = ()) -> None:
        known: set[str] = set()
        for config in configs:
            for key, text in _hidden(config):
                known |= _lines_of(text) if _SECRET_FILES.search(key) else _parts(text, key)
        for name, text in environ.items():
            if _SECRET_KEY.search(name) or name.lower().endswith("_proxy"):
                known |= _parts(text, "secret")
        for path in files:
            known |= _lines_of(path)
        forms = {form for one in known if len(one) >= _LEAST for form in _forms(one)}
        self._known = _Known(forms) if forms else None

    def text(self, text: str) -> str:
        """A text without secrets, the queries of addresses, and whom mail goes to."""
        text = _MAIL.sub(f"{HIDDEN}@{HIDDEN}", _credentials(without_secrets(text)))
        return self._known.hidden(text) if self._known is not None else text

    def value(self, value: Any) -> Any:
        """The same of everything in a value that becomes JSON."""
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.value(one) for one in value]
        return self.text(value) if isinstance(value, str) else value


def _hidden(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Key and text of what may be secret, and of what names a file of secrets; below `headers` the key is that."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _hidden(one, key if key == "headers" else str(name))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _hidden(one, "argument" if key == "command" and index else key)
    elif value is not None and not isinstance(value, bool) and key not in _PERSONAL:
        text = str(value)
        if key in _ADDRESSES or _SECRET_FILES.search(key) or masked(value, key) == HIDDEN:
            yield key, text


def _parts(text: str, key: str) -> set[str]:
    """What of a hidden value is looked for: of an address user, password, what its path and its query say."""
    if "://" in text:
        try:
            parts = urlsplit(text)
            user, password = parts.username or "", parts.password or ""
        except ValueError:
            return {text}
        if not parts.netloc:
            return set()
        said = [pair.partition("=")[2] for pair in parts.query.split("&")]
        said += [one for one in parts.path.split("/") if len(one) >= 8 and _looks_random(one)]
        found = [user if not password else "", password, *said]
        if password:
            found.append(f"{unquote(user)}:{unquote(password)}")
        return {form for one in found for form in (one, unquote(one))}
    if _PATH.fullmatch(text) or not (_SECRET_KEY.search(key) or _looks_random(text)):
        return set()
    words = [word for word in re.split(r"[\s,;]+", unquote(text)) if _looks_random(word)]
    return {text, *words, *(word.partition("=")[2] for word in words if "=" in word)}


def _looks_random(word: str) -> bool:
    """Not a word of a language, which may stand in any text."""
    return len(word) >= 16 or not word.isalpha() or not (word.islower() or word.istitle() or word.isupper())


def _lines_of(path: str) -> set[str]:
    """The lines of a file with a secret, where we may read it."""
    try:
        with Path(path).expanduser().open("rb") as file:
            lines = file.read(_MOST).decode(errors="replace").splitlines()
    except (OSError, ValueError, RuntimeError):  # the last of a user whom nobody knows: ~nobody/token
        return set()
    whole = {line.strip() for line in lines if not line.startswith(("-----", "#"))}
    return whole | {line.partition(":")[2] for line in whole if ":" in line}


def _forms(secret: str) -> Iterator[str]:
    """A secret as it stands, percent-encoded, escaped, in hexadecimal, and in base64 wherever it begins in there."""
    try:
        data = secret.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a character, which no text that is sent can hold
        data = secret.encode(errors="replace")
    yield secret
    yield from (quote(secret, safe="", errors="replace"), quote_plus(secret, errors="replace"))
    yield from (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
    yield from (data.hex(), data.hex().upper())
    for before in range(3):
        # Characters of base64 that this secret alone decides: none that it shares with what stands before or behind.
        first, last = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            core = encode(bytes(before) + data).decode()[first:last]
            if len(core) >= _LEAST:
                yield core
