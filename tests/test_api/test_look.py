"""GET and HEAD /secrets/{secret_key}: whether a secret waits."""

from __future__ import annotations

from quart.typing import TestClientProtocol as Client

from quart_ots.vault.store import Secret
from tests.conftest import Created, read
from tests.test_api.conftest import check_problem


async def test_look_never_consumes(client: Client, created: Created) -> None:
    """GET and HEAD tell that a secret waits as often as they like, and take nothing."""
    for _ in range(20):
        assert (await client.get(f"/secrets/{created.secret_key}")).status_code == 200
        assert (await client.head(f"/secrets/{created.secret_key}")).status_code == 200

    answer = await client.get(f"/secrets/{created.secret_key}")

    assert await answer.get_json() == {"expires_at": "2100-01-31T13:00:00.000Z", "attempts_left": 10}
    assert (await read(client, created.secret_key)).status_code == 200


async def test_look_counts_down(client: Client, created: Created) -> None:
    """Whoever looks sees how many attempts are left."""
    await read(client, created.secret_key, "wrong")

    answer = await client.get(f"/secrets/{created.secret_key}")

    assert (await answer.get_json())["attempts_left"] == 9


async def test_look_at_an_envelope_alone(client: Client, created: Created) -> None:
    """An envelope whose secret is not there yet, or not any more, is nothing that waits."""
    await Secret.get_motor_collection().delete_one({})

    answer = await client.get(f"/secrets/{created.secret_key}")

    await check_problem(answer, 404, "secret-not-found")
