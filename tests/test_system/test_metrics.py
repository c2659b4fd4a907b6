"""The figures of a process, on its port or on one of their own."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.client import request
from tests.mongod import free_port
from tests.service import figure, running
from tests.test_system.conftest import Database


def test_metrics_on_their_own_port(mongod: Database, tmp_path: Path) -> None:
    """METRICS_BIND serves the metrics there alone, whatever is asked, and what is sent there is not logged."""
    port = free_port()
    with running(tmp_path, {"MONGODB_URL": mongod.url, "METRICS_BIND": f"127.0.0.1:{port}"}) as service:
        created = service.generate()
        own = request("GET", f"http://127.0.0.1:{port}/metrics?{created['secret_key']}")
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"NONSENSE {created['secret_key']}\r\n\r\n".encode())
            connection.recv(1000)

        assert figure(own.text, 'quart_ots_secrets_total{step="created"}') == 1
        assert service.client.get("/metrics").status == 404
        assert service.stop() == 0
