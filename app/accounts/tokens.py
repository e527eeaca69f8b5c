"""Tokens in emails. A token consists of a random id and an HMAC. The HMAC proves that this service issued the token."""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Literal
from uuid import UUID

from app.accounts.errors import InvalidMailToken
from app.settings import Settings

Purpose = Literal["password_reset", "email_verification"]

_ID_BYTES = 16


class MailTokens:
    """Derives tokens from ids by signing the ids with a secret key.

    The database stores only the ids, so tokens cannot be read from the database or its backups.

    Tokens signed with the previous key are also accepted, so that links in emails stay valid when the key is changed.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = [
            blake2b(key.get_secret_value().encode(), person=b"mail tokens").digest()
            for key in (settings.secret_key, settings.secret_key_previous)
            if key is not None
        ]

    def issue(self, purpose: Purpose, token_id: UUID) -> str:
        """Return the token for an id. The same key, purpose and id always produce the same token."""
        return urlsafe_b64encode(token_id.bytes + _sign(self._keys[0], purpose, token_id)).decode()

    def verify(self, purpose: Purpose, token: str) -> UUID:
        """Check the signature of a token, and return the id that it was issued for.

        The database knows whether the token has expired or was used.

        Raises:
            InvalidMailToken: The token was not issued by this service, or was issued for another purpose.
        """
        try:
            data = urlsafe_b64decode(token)
        except ValueError as error:
            raise InvalidMailToken(reason="malformed token") from error
        if len(data) <= _ID_BYTES:
            raise InvalidMailToken(reason="malformed token")
        token_id = UUID(bytes=data[:_ID_BYTES])
        if not any(hmac.compare_digest(data[_ID_BYTES:], _sign(key, purpose, token_id)) for key in self._keys):
            raise InvalidMailToken(reason="invalid signature")
        return token_id


def _sign(key: bytes, purpose: Purpose, token_id: UUID) -> bytes:
    return hmac.digest(key, purpose.encode() + b"|" + token_id.bytes, "sha256")
