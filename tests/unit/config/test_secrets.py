import os
from pathlib import Path

import pytest

from tests.unit.config.conftest import Write
from tunneld.config.link import ServerLink
from tunneld.config.secrets import agent_token, read_secret, refuse_open_secret
from tunneld.errors import ConfigError


def link(path: str | None = None) -> ServerLink:
    return ServerLink.model_validate({"url": "ws://h", "token_file": path})


def test_a_secret_is_one_line_that_others_cannot_read(write: Write) -> None:
    for mode in (0o600, 0o400, 0o640, 0o440):
        assert read_secret(write("  tnl_abc\n", mode=mode)) == "tnl_abc"
    for mode in (0o644, 0o604, 0o602, 0o666):
        path = write("tnl_abc\n", mode=mode)
        with pytest.raises(ConfigError, match=f"mode 0{mode:o}.*chmod 600") as caught:
            read_secret(path)
        assert "tnl_abc" not in str(caught.value)
        with pytest.raises(ConfigError, match="others"):
            refuse_open_secret(path)


@pytest.mark.parametrize("data", [b"", b" \n", b"a b", b"a\nb", b"a\0", b"\xff\xfe", "ü".encode(), b"x" * 70_000])
def test_what_is_no_secret(data: bytes, write: Write) -> None:
    with pytest.raises(ConfigError, match="expected a secret on one line"):
        read_secret(write(data, mode=0o600))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_secret(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="is a directory"):
        read_secret(str(tmp_path))
    with pytest.raises(ConfigError, match="no such file"):
        refuse_open_secret(str(tmp_path / "none"))


def test_a_secret_from_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"tnl_abc\n")
    os.close(writer)
    try:
        assert read_secret(f"/dev/fd/{reader}") == "tnl_abc"
    finally:
        os.close(reader)


def test_the_file_comes_before_the_credential_before_the_variable(write: Write, tmp_path: Path) -> None:
    file = write("from-file", "token", 0o600)
    write("from-credential", "tunneld.token", 0o400)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "TUNNELD_TOKEN": " from-variable\n"}
    assert agent_token(link(file), environ) == "from-file"
    assert agent_token(link(), environ) == "from-credential"
    assert agent_token(link(), environ | {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}) == "from-variable"
    assert agent_token(link(), {}) is None
    assert agent_token(link(), {"TUNNELD_TOKEN": ""}) is None


def test_a_source_that_is_there_but_wrong_is_not_passed_over(write: Write, tmp_path: Path) -> None:
    environ = {"TUNNELD_TOKEN": "from-variable"}
    with pytest.raises(ConfigError, match=r"^server\.token_file: .*no such file"):
        agent_token(link(str(tmp_path / "none")), environ)
    write("open", "tunneld.token", 0o644)
    with pytest.raises(ConfigError, match="others can read"):
        agent_token(link(), environ | {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    with pytest.raises(ConfigError, match="TUNNELD_TOKEN: expected a token") as caught:
        agent_token(link(), {"TUNNELD_TOKEN": "two words"})
    assert "two words" not in str(caught.value)
