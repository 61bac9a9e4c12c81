"""A company's own certificate authority: a CA, a server's certificate and a client's, as files."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey


class Authority:
    """Makes certificates in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("a company's CA")
        self.ca = self._write("ca", self._certificate(self._name, self._key, is_ca=True))
        self.client, self.client_key = self._pair("client", "a worker")

    def server(self, name: str | None = None, *, asks_for_client: bool = False) -> ssl.SSLContext:
        """How a server on 127.0.0.1 speaks TLS, by that address or another name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._pair(name or "loopback", name))
        if asks_for_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context

    def _pair(self, file: str, name: str | None) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        key_file = self._folder / f"{file}.key"
        key_file.write_bytes(text)
        return self._write(file, self._certificate(_name(name or "127.0.0.1"), key, host=name)), key_file

    def _certificate(self, name: x509.Name, key: Key, *, host: str | None = None, is_ca: bool = False) -> bytes:
        now = datetime.now(UTC)
        names = x509.DNSName(host.replace(" ", "-")) if host else x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([names]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if is_ca:
            signs = dict.fromkeys(("digital_signature", "key_cert_sign", "crl_sign"), True)
            others = (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            )
            builder = builder.add_extension(x509.KeyUsage(**signs, **dict.fromkeys(others, False)), critical=True)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _write(self, file: str, certificate: bytes) -> Path:
        path = self._folder / f"{file}.pem"
        path.write_bytes(certificate)
        return path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
