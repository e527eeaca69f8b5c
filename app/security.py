"""Passwords, access tokens and the secrets in refresh tokens."""

import hmac
import secrets
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import blake2b
from typing import Any, TypeVar, TypeVarTuple
from uuid import UUID

import jwt
from anyio import CapacityLimiter, to_thread
from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import HashingError, InvalidHashError, VerificationError, VerifyMismatchError

from app import NAME
from app.settings import Settings

ALGORITHM = "HS256"
# Tolerated clock skew between machines in seconds.
LEEWAY = 5

# Maximum number of concurrent hashes per worker, unless ARGON2_CONCURRENCY is set. By default, there are about two
# workers per CPU, so two hashes per worker keep every CPU busy even if some workers have none to compute. More hashes
# would only slow each other down and take more memory.
MAX_CONCURRENT_HASHES = 2
# Maximum number of requests queued for password hashing. The last request in a full queue waits for a few seconds.
# With a longer queue, clients would time out before their password is hashed.
MAX_QUEUED_HASHES = 50

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


class HashingUnavailable(Exception):
    """A password cannot be hashed at the moment: the queue is full, or the system is out of memory or threads."""


class Passwords:
    """Hashes and verifies passwords with Argon2id (RFC 9106), in threads, so that the event loop is not blocked."""

    def __init__(self, settings: Settings) -> None:
        self._hasher = PasswordHasher(
            memory_cost=settings.argon2_memory_kib,
            time_cost=settings.argon2_time_cost,
            parallelism=settings.argon2_parallelism,
        )
        self._concurrent = settings.argon2_concurrency or MAX_CONCURRENT_HASHES
        self._limiter = CapacityLimiter(self._concurrent)
        self._pending = 0
        self._dummy_hash = self._make_dummy_hash()

    async def hash(self, password: str) -> str:
        """Hash a password with a random salt.

        Raises:
            HashingUnavailable: The queue is full, or the system is out of memory or threads.
        """
        return await self._run_in_thread(self._hasher.hash, password)

    async def verify(self, password: str, password_hash: str | None) -> tuple[bool, str | None]:
        """Verify a password against a hash. Without a hash, use a dummy hash, so that the call takes equally long.

        Returns:
            A pair `(matches, new_hash)`. If the password matches and the old hash has outdated parameters, `new_hash`
            is a new hash to store. Otherwise, `new_hash` is None.

        Raises:
            HashingUnavailable: The queue is full, or the system is out of memory or threads.
        """
        return await self._run_in_thread(self._verify, password, password_hash or self._dummy_hash)

    def _verify(self, password: str, password_hash: str) -> tuple[bool, str | None]:
        try:
            is_outdated = self._hasher.check_needs_rehash(password_hash)
        except InvalidHashError:  # made by another algorithm
            password_hash, is_outdated = self._dummy_hash, False
        try:
            self._hasher.verify(password_hash, password)
        except VerifyMismatchError:
            if is_outdated:
                self._equalize_timing(password, password_hash)
            return False, None
        return True, self._hasher.hash(password) if is_outdated else None

    def _equalize_timing(self, password: str, password_hash: str) -> None:
        """Hash the password once more if the stored hash was made with cheaper parameters than the current ones.

        Without this, verifying the cheaper hash would be faster than rejecting an unknown account. The response time of
        a failed login would then reveal that the account exists.
        """
        old = extract_parameters(password_hash)
        passes = self._hasher.time_cost - round(old.time_cost * old.memory_cost / self._hasher.memory_cost)
        if passes > 0:
            memory, lanes = self._hasher.memory_cost, self._hasher.parallelism
            PasswordHasher(time_cost=passes, memory_cost=memory, parallelism=lanes).hash(password)

    def _make_dummy_hash(self) -> str:
        salt, digest = (b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32))
        parameters = f"m={self._hasher.memory_cost},t={self._hasher.time_cost},p={self._hasher.parallelism}"
        return f"$argon2id$v=19${parameters}${salt}${digest}"

    async def _run_in_thread(self, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
        if self._pending >= self._concurrent + MAX_QUEUED_HASHES:
            raise HashingUnavailable("the queue is full")
        self._pending += 1
        try:
            return await to_thread.run_sync(function, *arguments, limiter=self._limiter)
        except (HashingError, VerificationError, MemoryError) as error:
            raise HashingUnavailable(str(error)) from error
        except RuntimeError as error:
            if "can't start new thread" not in str(error):
                raise
            raise HashingUnavailable(str(error)) from error
        finally:
            self._pending -= 1


class InvalidAccessToken(Exception):
    """The access token is forged, expired or malformed. The message is for the log, not for the client."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The contents of an access token.

    Attributes:
        user_id: The user.
        security_stamp: The user's security stamp when the token was issued. If the user's stamp has changed since, the
            token is invalid. It is not in the `repr`: with a leaked key and the stamp, anybody could forge a token.
        login_id: The login that the token belongs to.
    """

    user_id: int
    security_stamp: UUID = field(repr=False)
    login_id: UUID


class Tokens:
    """Issues and verifies access tokens (JWT, RFC 7519) and the secrets in refresh tokens.

    The secret in a login's first refresh token is random. Each later secret is derived from the previous one.

    Tokens signed with the previous key are also accepted, so that users stay logged in when the key is changed.
    """

    def __init__(self, settings: Settings) -> None:
        self.access_seconds = settings.access_token_minutes * 60
        self.refresh_lifetime = timedelta(days=settings.refresh_token_days)
        self.refresh_overlap = timedelta(seconds=settings.refresh_overlap_seconds)
        self._keys = [
            key.get_secret_value() for key in (settings.secret_key, settings.secret_key_previous) if key is not None
        ]
        self._refresh_keys = [blake2b(key.encode(), person=b"refresh tokens").digest() for key in self._keys]
        self._jwt = jwt.PyJWT(
            options={"enforce_minimum_key_length": True, "require": ["sub", "iss", "aud", "iat", "exp"]}
        )

    def issue(self, token: AccessToken) -> str:
        """Issue an access token."""
        now = int(time.time())
        return self._jwt.encode(_claims(token, now, now + self.access_seconds), self._keys[0], ALGORITHM)

    def verify(self, encoded: str) -> AccessToken:
        """Verify an access token and return its contents.

        Raises:
            InvalidAccessToken: The token was not issued by this service, or has expired.
        """
        claims = self._decode(encoded)
        try:
            token = AccessToken(int(claims["sub"]), UUID(claims["stamp"]), UUID(claims["sid"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidAccessToken("malformed token") from error
        # Accept only the exact claims that `issue` writes, so that each token has only one valid form.
        is_canonical = claims == _claims(token, claims["iat"], claims["exp"]) and token.user_id < 2**63
        if not is_canonical or type(claims["iat"]) is not int or type(claims["exp"]) is not int:
            raise InvalidAccessToken("malformed token")
        return token

    def _decode(self, encoded: str) -> dict[str, Any]:
        reason: str  # not the exception, because it would form a reference cycle with the frame in its traceback
        for key in self._keys:
            try:
                return self._jwt.decode(encoded, key, algorithms=[ALGORITHM], audience=NAME, issuer=NAME, leeway=LEEWAY)
            except jwt.InvalidTokenError as error:
                reason = _REASONS.get(type(error), "malformed token")
                if not isinstance(error, jwt.InvalidSignatureError):
                    break
        raise InvalidAccessToken(reason)

    def create_refresh_secret(self, login_id: UUID) -> bytes:
        """Create a login's first refresh secret: 16 random bytes, then a signature over them and the login's id."""
        return _sign(self._refresh_keys[0], login_id, secrets.token_bytes(16))

    def derive_next_secrets(self, login_id: UUID, secret: bytes) -> list[bytes]:
        """Derive the next refresh token's secret, once with each key: the current one and, if set, the previous one."""
        return [_sign(key, login_id, hmac.digest(key, secret, "sha256")[:16]) for key in self._refresh_keys]

    def is_signed(self, login_id: UUID, secret: bytes) -> bool:
        """Return whether a refresh token's secret was signed for this login with one of the configured keys."""
        return any(hmac.compare_digest(secret, _sign(key, login_id, secret[:16])) for key in self._refresh_keys)


def _sign(key: bytes, login_id: UUID, data: bytes) -> bytes:
    return data + hmac.digest(key, b"signature" + login_id.bytes + data, "sha256")[:16]


_REASONS: dict[type[jwt.InvalidTokenError], str] = {
    jwt.ExpiredSignatureError: "expired token",
    jwt.ImmatureSignatureError: "token from the future",
    jwt.InvalidAudienceError: "token for another audience",
    jwt.InvalidIssuerError: "token from another issuer",
    jwt.InvalidSignatureError: "invalid signature",
}


def _claims(token: AccessToken, issued_at: int, expires_at: int) -> dict[str, Any]:
    return {
        "sub": str(token.user_id),
        "sid": token.login_id.hex,
        "stamp": token.security_stamp.hex,
        "iss": NAME,
        "aud": NAME,
        "iat": issued_at,
        "exp": expires_at,
    }
