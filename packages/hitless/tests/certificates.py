"""TLS certificates for tests, signed by a certificate authority that exists only for the test run."""

import ssl
from pathlib import Path
from typing import NamedTuple

import trustme


class TLS(NamedTuple):
    """A certificate, its private key, and a client SSL context that trusts the certificate."""

    certfile: Path
    keyfile: Path
    client: ssl.SSLContext


def make_certificate(folder: Path) -> TLS:
    """Create a certificate for localhost with a private key, and write both to the directory."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for part in certificate.cert_chain_pems:
        part.write_to_path(folder / "cert.pem", append=True)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return TLS(folder / "cert.pem", folder / "key.pem", client)
