import pytest

from tests.support.control_agent import stream_info
from tunneld.control.models.streams import Filter, matches


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({"all": True}, True),
        ({"tunnel": "demo"}, True),
        ({"tunnel": "dem"}, False),
        ({"kind": "sse", "tunnel": "demo"}, True),
        ({"kind": "http", "tunnel": "demo"}, False),
        ({"path": "/sse"}, True),
        ({"path": "/sse?user=1"}, True),
        ({"path": "/s*1"}, True),
        ({"path": "/SSE"}, False),
        ({"path": "sse"}, False),
        ({"older_than_s": 12.5}, True),
        ({"older_than_s": 12.6}, False),
        ({"idle_s": 0.5, "older_than_s": 1}, True),
        ({"idle_s": 1, "older_than_s": 1}, False),
        ({"all": True, "kind": "http"}, False),
    ],
)
def test_all_keys_of_a_filter_must_hold(wanted: Filter, fits: bool) -> None:
    assert matches(stream_info("a"), wanted) is fits
