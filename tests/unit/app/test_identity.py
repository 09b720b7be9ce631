"""lib.identity: who a token belongs to, with real signatures by a real key, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lib.access import Role
from lib.identity import BadToken, Identity, OpenIdConnect, TokenFile

ROOT = Path(__file__).resolve().parents[3]
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """What a provider publishes: where its keys are, and the keys."""

    class Provider(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers: dict[str, object] = {
                "/realms/clinic/.well-known/openid-configuration": {"issuer": url, "jwks_uri": f"{url}/certs"},
                "/realms/clinic/certs": {"keys": [_public("one", KEY)]},
            }
            body = json.dumps(answers.get(self.path)).encode()
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        url = f"http://127.0.0.1:{server.server_port}/realms/clinic"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield url
        server.shutdown()


def _public(name: str, key: rsa.RSAPrivateKey) -> dict[str, object]:
    facts = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    return {**facts, "kid": name, "use": "sig", "alg": "RS256"}


def _claims(issuer: str, **changes: object) -> dict[str, object]:
    """An access token's content as Keycloak makes it."""
    return {
        "iss": issuer,
        "sub": "f3a1",
        "exp": time.time() + 60,
        "aud": "account",
        "azp": "monailabel-app",
        "preferred_username": "ann",
        "realm_access": {"roles": ["offline_access", "monailabel-annotator"]},
        **changes,
    }


def _signed(claims: dict[str, object], key: rsa.RSAPrivateKey = KEY, kid: str = "one") -> str:
    return jwt.encode(claims, key, "RS256", headers={"kid": kid})


def test_a_valid_token_is_accepted(issuer: str) -> None:
    """Breaks if every valid token is refused, which is what MONAI Label's own check does."""
    provider = OpenIdConnect(issuer, "monailabel-app")
    assert provider.identify(_signed(_claims(issuer))) == Identity("ann", Role.ANNOTATOR)
    roles = {"roles": ["monailabel-reviewer", "monailabel-admin"]}
    assert provider.identify(_signed(_claims(issuer, realm_access=roles))).role == Role.ADMIN
    assert provider.identify(_signed(_claims(issuer, realm_access={}))).role == Role.PUBLIC


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": time.time() - 1},
        {"exp": None},
        {"iss": "http://127.0.0.1/realms/other"},
        {"azp": "another-app", "aud": "account"},
        {"nbf": time.time() + 86_400},  # made when the tests are collected, which may be a while ago
    ],
    ids=["expired", "endless", "other issuer", "other application", "not yet"],
)
def test_claims_that_do_not_hold(issuer: str, changed: dict[str, object]) -> None:
    """Breaks if a token that has ended, or was made for somebody else, is accepted."""
    claims = {key: value for key, value in _claims(issuer, **changed).items() if value is not None}
    with pytest.raises(BadToken):
        OpenIdConnect(issuer, "monailabel-app").identify(_signed(claims))


def _hmac_with_public_key(issuer: str) -> str:
    """The old confusion: the published key as the secret of a symmetric signature."""
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    encode = jwt.utils.base64url_encode
    head = encode(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "one"}).encode())
    signed = head + b"." + encode(json.dumps(_claims(issuer)).encode())
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return (signed + b"." + encode(signature.sign(signed, public))).decode()


@pytest.mark.parametrize(
    "forge",
    [
        lambda issuer: _signed(_claims(issuer), OTHER_KEY),
        lambda issuer: _signed(_claims(issuer), OTHER_KEY, kid="unknown"),
        lambda issuer: jwt.encode(_claims(issuer), None, "none", headers={"kid": "one"}),
        _hmac_with_public_key,
        lambda issuer: _signed(_claims(issuer))[:-4] + "AAAA",
        lambda issuer: "not.a.token",
        lambda issuer: "",
    ],
    ids=["other key", "unknown key", "no signature", "symmetric", "altered", "garbage", "empty"],
)
def test_forged_tokens(issuer: str, forge: Callable[[str], str]) -> None:
    """Breaks if a signature is not checked, or the token may choose how."""
    with pytest.raises(BadToken):
        OpenIdConnect(issuer, "monailabel-app").identify(forge(issuer))


def test_a_provider_that_is_down_lets_nobody_in() -> None:
    """Breaks if an outage opens the server or becomes a 500."""
    with pytest.raises(BadToken, match="does not answer"):
        OpenIdConnect("http://127.0.0.1:9/realms/x", "monailabel-app").identify(_signed(_claims("x")))


def _make(file: Path, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "make_token.py"), "--file", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def test_tokens_are_made_known_end_and_are_revoked(tmp_path: Path) -> None:
    """Breaks if the script's tokens do not open, the file holds one in clear, or an ended one still opens."""
    file = tmp_path / "tokens"
    ann = _make(file, "--user", "ann")
    bob = _make(file, "--user", "bob", "--role", "admin", "--days", "1")
    old = _make(file, "--user", "old", "--days", "-1")
    tokens = TokenFile(file)
    assert tokens.identify(ann) == Identity("ann", Role.ANNOTATOR)
    assert tokens.identify(bob) == Identity("bob", Role.ADMIN)
    with pytest.raises(BadToken, match="expired"):
        tokens.identify(old)
    for wrong in ("", "x", ann[:-1], hashlib.sha256(ann.encode()).hexdigest()):
        with pytest.raises(BadToken, match="unknown"):
            tokens.identify(wrong)
    assert ann not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    file.write_text("".join(line for line in file.read_text().splitlines(True) if '"ann"' not in line))
    with pytest.raises(BadToken):
        tokens.identify(ann)
    assert tokens.identify(bob).name == "bob"


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"user": "a", "role": "king", "sha256": "00"}', '{"user": 1}'])
def test_a_damaged_tokens_file_names_the_line(tmp_path: Path, line: str) -> None:
    """Breaks if a typing mistake silently locks somebody out, or lets anybody in."""
    file = tmp_path / "tokens"
    file.write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match="line 2: expected JSON with user, role and sha256"):
        TokenFile(file)
