"""What can go wrong in the life of a secret: plain exceptions that carry facts.

RefusedError                     the caller's side: never raised itself
├── SecretNotFoundError          unknown, read, burned, locked or expired: which of them stays untold
├── ReceiptNotFoundError         no receipt is kept under this key
├── WrongPassphraseError         attempts_left
└── AlreadyEndedError            state

UnavailableError                 our side: never raised itself; retry_after
├── BusyError                    no place in the hashing pool
├── DrainingError                the service is being stopped
│   └── ClientGoneError          nobody waits for the answer any more
├── DatabaseUnavailableError     the database failed, or did not answer in time
└── EnvelopeError                key_id; no passphrase could open the envelope, so it costs no attempt
    ├── DamagedEnvelopeError     its shape is wrong
    └── UnknownKeyError          its master key is not on the ring

NotOpenedError                   a sound envelope did not open; life.read turns it into WrongPassphraseError
"""

from __future__ import annotations


class RefusedError(Exception):
    """Base of what the caller is refused for."""


class SecretNotFoundError(RefusedError):
    """No secret waits under this key."""


class ReceiptNotFoundError(RefusedError):
    """No receipt is kept under this key."""


class WrongPassphraseError(RefusedError):
    """The secret waits, but the passphrase is not its own.

    Args:
        attempts_left: 0 to 9, at the time of the answer.

    """

    def __init__(self, attempts_left: int) -> None:
        super().__init__()
        self.attempts_left = attempts_left


class AlreadyEndedError(RefusedError):
    """A secret that has ended cannot be burned.

    Args:
        state: How it ended: read, locked or expired.

    """

    def __init__(self, state: str) -> None:
        super().__init__()
        self.state = state


class UnavailableError(Exception):
    """Base of what cannot be done now, but may be possible later.

    Args:
        retry_after: Whole seconds after which another try makes sense.

    """

    def __init__(self, retry_after: int = 2) -> None:
        super().__init__()
        self.retry_after = retry_after


class BusyError(UnavailableError):
    """The hashing pool and the line before it are full."""


class DrainingError(UnavailableError):
    """The service is being stopped; another process may serve the request."""


class ClientGoneError(DrainingError):
    """The client hung up, or the server dropped its request at the end of a stop: nothing is claimed for it."""


class DatabaseUnavailableError(UnavailableError):
    """The database failed, or did not answer in time. Whether the command took effect is not known."""


class EnvelopeError(UnavailableError):
    """The envelope cannot be opened, whatever the reader knows.

    Args:
        key_id: The id of the master key as the envelope names it, 16 hex digits; "?" if it names none.

    """

    reason: str

    def __init__(self, key_id: str) -> None:
        super().__init__()
        self.key_id = key_id

    def __str__(self) -> str:
        return f"{self.reason} (key id {self.key_id})"


class DamagedEnvelopeError(EnvelopeError):
    """The bytes are not an envelope of version 1."""

    reason = "the envelope is damaged"


class UnknownKeyError(EnvelopeError):
    """The envelope was sealed under a master key that the ring lacks."""

    reason = "the key ring lacks the envelope's master key"


class NotOpenedError(Exception):
    """A sound envelope did not open: wrong passphrase, key or ciphertext; which of them cannot be told."""
