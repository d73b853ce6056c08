"""A small certificate authority by openssl: certificates of any names and times, for servers and clients."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

from tests.support.sockets import Certificate

__all__ = ["Authority"]

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Authority:
    """Makes its own root in `folder`, or, `by` another, an authority below that.

    Attributes:
        cert: its certificate; the root's is a `ca_file`.
    """

    def __init__(self, folder: Path, name: str = "Test root", *, by: Authority | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.cert, self._key = folder / "ca.pem", folder / "ca.key"
        marks = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        if by is None:
            root = ["-x509", "-days", "2", "-subj", f"/CN={name}", *marks]
            _openssl("req", *root, *_KEY, "-keyout", str(self._key), "-out", str(self.cert))
        else:
            by._sign(self.cert, self._key, name, marks)
        (folder / "index.txt").touch()
        (folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca=own\n[own]\n"
            f"database={folder}/index.txt\nnew_certs_dir={folder}\nrand_serial=yes\nunique_subject=no\n"
            "default_md=sha256\npolicy=any\ncopy_extensions=copy\n[any]\ncommonName=supplied\n"
        )

    def issue(
        self, stem: str, *names: str, start: str = "20200101000000Z", end: str = "20991231235959Z"
    ) -> Certificate:
        """A certificate for these names (``DNS:…`` or ``IP:…``), valid between two times (UTC)."""
        made = Certificate(self.folder / f"{stem}.pem", self.folder / f"{stem}.key")
        alt = ["-addext", f"subjectAltName={','.join(names)}"] if names else []
        self._sign(made.cert, made.key, stem, alt, start, end)
        return made

    def context(self, stem: str, *names: str) -> ssl.SSLContext:
        """What a server shows that has such a certificate."""
        made = self.issue(stem, *names)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(made.cert, made.key)
        return context

    def _sign(
        self,
        cert: Path,
        key: Path,
        name: str,
        extensions: list[str],
        start: str = "20200101000000Z",
        end: str = "20991231235959Z",
    ) -> None:
        request = cert.with_suffix(".csr")
        _openssl("req", *_KEY, "-subj", f"/CN={name}", *extensions, "-keyout", str(key), "-out", str(request))
        signing = ["-config", str(self.folder / "ca.cnf"), "-cert", str(self.cert), "-keyfile", str(self._key)]
        times = ["-startdate", start, "-enddate", end]
        _openssl("ca", "-batch", "-notext", *signing, *times, "-in", str(request), "-out", str(cert))
        key.chmod(0o600)
