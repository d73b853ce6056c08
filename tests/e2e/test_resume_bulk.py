"""Large bodies over ten cuts by curl, checked by their hash: 128 MiB, and 1 GiB where time is no matter (`slow`)."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import need
from tests.e2e.resumed import Cuttable
from tests.support.services import PATTERN, SampleService

MIB = 1024 * 1024
CUTS = 10
SIZES = [
    pytest.param(128 * MIB, id="128MiB"),
    pytest.param(1024 * MIB, id="1GiB", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
]


@pytest.fixture(scope="module")
def cuttable(module_folder: Path, service: SampleService) -> Iterator[Cuttable]:
    need("curl", "apt-get install curl")
    made = Cuttable(module_folder, {"app": service.url})
    yield made
    made.close()


def expected(size: int) -> str:
    digest = hashlib.sha256()
    for _ in range(size // len(PATTERN)):
        digest.update(PATTERN)
    return digest.hexdigest()


@pytest.mark.parametrize("size", SIZES)
def test_a_download_over_ten_cuts(cuttable: Cuttable, size: int) -> None:
    argv = ["curl", "-sS", "-f", cuttable.url("app", f"/bytes?n={size}")]
    digest, got, cuts = hashlib.sha256(), 0, 0
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        while piece := curl.stdout.read(MIB):
            digest.update(piece)
            got += len(piece)
            if cuts < CUTS and got > size * (cuts + 1) / (CUTS + 2):
                cuts += 1
                cuttable.cut(reset=bool(cuts % 2))
    assert (curl.returncode, got, cuts) == (0, size, CUTS)
    assert digest.hexdigest() == expected(size)


@pytest.mark.parametrize("size", SIZES)
def test_an_upload_over_ten_cuts(cuttable: Cuttable, size: int) -> None:
    argv = ["curl", "-sS", "-f", "-T", "-", "-H", "Expect:", cuttable.url("app", "/upload")]
    cuts, piece = 0, PATTERN * 16
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as curl:
        assert curl.stdin is not None
        assert curl.stdout is not None
        for sent in range(0, size, len(piece)):
            curl.stdin.write(piece)
            if cuts < CUTS and sent > size * (cuts + 1) / (CUTS + 2):
                cuts += 1
                cuttable.cut(reset=bool(cuts % 2))
        curl.stdin.close()
        told = json.loads(curl.stdout.read())
    assert curl.returncode == 0
    assert cuts == CUTS
    assert told == {"bytes": size, "sha256": expected(size)}
