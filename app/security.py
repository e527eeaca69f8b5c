"""Passwords and access tokens."""

import secrets
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar, TypeVarTuple

import jwt
from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from app import NAME
from app.settings import Settings

ALGORITHM = "HS256"

# A hash takes 64 MiB and a tenth of a second on several cores. With more at a time, each would only take longer, and
# with anyio's default of 40 threads a burst of logins would take 2.5 GiB.
CONCURRENT_HASHES = 2
# Beyond this queue length, clients time out before their turn and the hash is computed for nobody. The last in the
# queue waits 10 seconds if each worker has a CPU, and 25 if five workers share two, as by default.
WAITING_HASHES = 50

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


class TooManyHashes(Exception):
    """The queue of passwords to hash is full."""


class Passwords:
    """Hashes and verifies passwords with Argon2id (RFC 9106), in threads, so that the event loop is not blocked."""

    def __init__(self, settings: Settings) -> None:
        memory, time, lanes = settings.argon2_memory_kib, settings.argon2_time_cost, settings.argon2_parallelism
        self._hasher = PasswordHash([Argon2Hasher(memory_cost=memory, time_cost=time, parallelism=lanes)])
        self._limiter = CapacityLimiter(CONCURRENT_HASHES)
        self._pending = 0
        salt, digest = (b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32))
        self._dummy_hash = f"$argon2id$v=19$m={memory},t={time},p={lanes}${salt}${digest}"

    async def hash(self, password: str) -> str:
        """Hash a password with a random salt.

        Raises:
            TooManyHashes: The queue is full.
        """
        return await self._run_in_thread(self._hasher.hash, password)

    async def verify(self, password: str, password_hash: str | None) -> tuple[bool, str | None]:
        """Compare a password with its hash, or with a dummy hash if it is None, which takes the same time.

        Returns:
            Whether they match. If they do and the hash was made with other parameters than today's, also a new hash to
            store.

        Raises:
            TooManyHashes: The queue is full.
        """
        return await self._run_in_thread(self._hasher.verify_and_update, password, password_hash or self._dummy_hash)

    async def _run_in_thread(self, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
        if self._pending >= CONCURRENT_HASHES + WAITING_HASHES:
            raise TooManyHashes
        self._pending += 1
        try:
            return await to_thread.run_sync(function, *arguments, limiter=self._limiter)
        finally:
            self._pending -= 1


class InvalidTokenError(Exception):
    """An access token that is forged, expired or malformed."""


class Tokens:
    """Issues and verifies access tokens (JWT, RFC 7519)."""

    def __init__(self, settings: Settings) -> None:
        self.access_lifetime = timedelta(minutes=settings.access_token_minutes)
        self.refresh_lifetime = timedelta(days=settings.refresh_token_days)
        self._key = settings.secret_key.get_secret_value()
        self._jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})

    def issue(self, user_id: int) -> str:
        """Issue an access token for a user."""
        now = datetime.now(UTC)
        claims = {
            "sub": str(user_id),
            "iss": NAME,
            "aud": NAME,
            "iat": now,
            "exp": now + self.access_lifetime,
        }
        return self._jwt.encode(claims, self._key, ALGORITHM)

    def verify(self, token: str) -> int:
        """Return the user id in an access token.

        Raises:
            InvalidTokenError: The token was not issued here, or has expired.
        """
        try:
            claims = self._jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                audience=NAME,
                issuer=NAME,
                # Tokens from a machine whose clock is slightly ahead are valid.
                options={"require": ["sub", "iss", "aud", "iat", "exp"], "verify_iat": False},
            )
            return int(claims["sub"])
        except (jwt.InvalidTokenError, ValueError) as error:
            raise InvalidTokenError from error
