"""Passwords and access tokens. Knows no user and no database."""

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

ALGORITHM = "HS256"

# One hash takes 64 MiB and a tenth of a second of several cores. More at a time would only wait for each other, and
# with the 40 threads that are the default a burst of logins would take 2.5 GiB.
CONCURRENT_HASHES = 2
# Whoever came after so many would have given up by their turn, and the work would still be done. The last of them waits
# for ten seconds where each worker has a CPU to itself, and for 25 where five share two, as by default.
WAITING_HASHES = 50

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


class TooManyHashes(Exception):
    """So many wait for a hash that one more would wait in vain."""


class Passwords:
    """Hashes and verifies passwords by Argon2id (RFC 9106), in threads: the event loop goes on meanwhile."""

    def __init__(self, *, memory_kib: int, time_cost: int, parallelism: int) -> None:
        self._hasher = PasswordHash(
            [Argon2Hasher(memory_cost=memory_kib, time_cost=time_cost, parallelism=parallelism)]
        )
        self._limiter = CapacityLimiter(CONCURRENT_HASHES)
        self._in_hand = 0
        salt, digest = (b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32))
        self._nobodys_hash = f"$argon2id$v=19$m={memory_kib},t={time_cost},p={parallelism}${salt}${digest}"

    async def hash(self, password: str) -> str:
        """Hashes a password with a salt of its own.

        Raises:
            TooManyHashes: it would have to wait for too long.
        """
        return await self._in_turn(self._hasher.hash, password)

    async def verify(self, password: str, password_hash: str | None) -> tuple[bool, str | None]:
        """Compares a password with a hash, or for None with a hash that nothing matches, in the same time.

        Returns:
            Whether they match and, where they do and the hash was made with other parameters than today's, a new hash
            to store.

        Raises:
            TooManyHashes: it would have to wait for too long.
        """
        return await self._in_turn(self._hasher.verify_and_update, password, password_hash or self._nobodys_hash)

    async def _in_turn(self, work: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
        if self._in_hand >= CONCURRENT_HASHES + WAITING_HASHES:
            raise TooManyHashes
        self._in_hand += 1
        try:
            return await to_thread.run_sync(work, *arguments, limiter=self._limiter)
        finally:
            self._in_hand -= 1


class InvalidTokenError(Exception):
    """An access token that is forged, expired, or none at all."""


class Tokens:
    """Issues and reads access tokens (JWT, RFC 7519), and knows how long a refresh token lasts."""

    def __init__(self, *, secret_key: str, access_lifetime: timedelta, refresh_lifetime: timedelta) -> None:
        self.access_lifetime = access_lifetime
        self.refresh_lifetime = refresh_lifetime
        self._key = secret_key
        self._jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})

    def issue(self, user_id: int) -> str:
        """Makes the access token of a user."""
        now = datetime.now(UTC)
        claims = {
            "sub": str(user_id),
            "iss": NAME,
            "aud": NAME,
            "iat": now,
            "exp": now + self.access_lifetime,
        }
        return self._jwt.encode(claims, self._key, ALGORITHM)

    def read(self, token: str) -> int:
        """Returns the id of the user whom an access token stands for.

        Raises:
            InvalidTokenError: where it is not one of ours, or no longer valid.
        """
        try:
            claims = self._jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                audience=NAME,
                issuer=NAME,
                # A machine whose clock is a little ahead issues tokens that are not from the future.
                options={"require": ["sub", "iss", "aud", "iat", "exp"], "verify_iat": False},
            )
            return int(claims["sub"])
        except (jwt.InvalidTokenError, ValueError) as error:
            raise InvalidTokenError from error
