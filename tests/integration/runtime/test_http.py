"""HTTP requests over real sockets."""

from __future__ import annotations

import pytest

from forecastd.runtime.http import TransientHttpError, fetch_url


def test_http_unreachable_host_hides_credentials() -> None:
    with pytest.raises(TransientHttpError) as error:
        fetch_url("http://user:p4ss@127.0.0.1:9/", {}, {})
    assert "p4ss" not in str(error.value)
