"""Bearer tokens -> who it is and what they may: a file of hashed tokens, or an OpenID Connect provider."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import jwt
import requests
from monailabel.config import settings

from lib.access import Role

_TIMEOUT_S = 5


class BadToken(Exception):
    """Unknown, expired, forged, or meant for somebody else. The text never holds any of the token."""


@dataclass(frozen=True)
class Identity:
    name: str
    role: Role


class Credentials(Protocol):
    def identify(self, token: str) -> Identity:
        """Whose token it is.

        Raises:
            BadToken: nobody's.
        """


class TokenFile:
    """A line of JSON for each token: ``user``, ``role``, ``sha256`` and, if it ends, ``expires`` in Unix seconds.

    Tokens are 32 random bytes, so that one SHA-256 is as good as a slow hash. The file is read again when it changed:
    a line taken out is a token revoked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = (0, 0)
        self._entries: list[dict[str, object]] = []
        self._read()

    def identify(self, token: str) -> Identity:
        self._read()
        given = hashlib.sha256(token.encode()).hexdigest()
        found = None
        for entry in self._entries:  # all of them, whatever matches: time tells nothing
            if hmac.compare_digest(given, str(entry["sha256"])):
                found = entry
        if found is None:
            raise BadToken("unknown token")
        if float(found.get("expires") or "inf") < time.time():  # type: ignore[arg-type]
            raise BadToken("the token has expired")
        return Identity(str(found["user"]), Role[str(found["role"]).upper()])

    def _read(self) -> None:
        stat = self.path.stat()
        if (stat.st_mtime_ns, stat.st_size) != self._stamp:
            lines = self.path.read_text().splitlines()
            self._entries = [_entry(line, number) for number, line in enumerate(lines, 1) if line.strip()]
            self._stamp = (stat.st_mtime_ns, stat.st_size)


def _entry(line: str, number: int) -> dict[str, object]:
    try:
        entry = json.loads(line)
        is_whole = (
            len(bytes.fromhex(entry["sha256"])) == 32 and entry["user"] and entry["role"].upper() in Role.__members__
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"tokens file, line {number}: expected JSON with user, role and sha256 (scripts/make_token.py)"
        )
    return entry


class OpenIdConnect:
    """Tokens that a provider such as Keycloak signed with RS256, checked against its published keys."""

    def __init__(self, issuer: str, audience: str) -> None:
        self.issuer = issuer
        self.audience = audience

    @cached_property
    def _keys(self) -> jwt.PyJWKClient:
        answer = requests.get(f"{self.issuer}/.well-known/openid-configuration", timeout=_TIMEOUT_S)
        answer.raise_for_status()
        return jwt.PyJWKClient(answer.json()["jwks_uri"], timeout=_TIMEOUT_S)

    def identify(self, token: str) -> Identity:
        try:
            key = self._keys.get_signing_key_from_jwt(token)
            claims = jwt.decode(
                token,
                key,
                algorithms=["RS256"],  # never what the token itself asks for
                issuer=self.issuer,
                options={"require": ["exp", "iss", "sub"], "verify_aud": False},
            )
        except jwt.PyJWKClientConnectionError as error:
            raise BadToken("the identity provider does not answer") from error
        except jwt.InvalidTokenError as error:
            raise BadToken(f"token refused: {type(error).__name__}") from error
        except jwt.PyJWTError as error:
            raise BadToken("token refused: no such signing key") from error
        except requests.RequestException as error:
            raise BadToken("the identity provider does not answer") from error
        # Keycloak's access tokens name the client in azp, and in aud only if told so.
        audience = claims.get("aud") or []
        named = {claims.get("azp"), *([audience] if isinstance(audience, str) else audience)}
        if self.audience not in named:
            raise BadToken("the token is for another application")
        return Identity(str(claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME) or claims["sub"]), _role(claims))


def _role(claims: Mapping[str, object]) -> Role:
    """The highest role that the claims name, in MONAI Label's place and words for them."""
    value: object = claims
    for key in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        value = value.get(key) if isinstance(value, Mapping) else None
    names = {
        settings.MONAI_LABEL_AUTH_ROLE_ADMIN: Role.ADMIN,
        settings.MONAI_LABEL_AUTH_ROLE_REVIEWER: Role.REVIEWER,
        settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR: Role.ANNOTATOR,
        settings.MONAI_LABEL_AUTH_ROLE_USER: Role.ANNOTATOR,
    }
    given = value if isinstance(value, list) else []
    return max((names[name] for name in given if isinstance(name, str) and name in names), default=Role.PUBLIC)
