"""Certificates of an authority that lives as long as a test."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)
HERE = ("127.0.0.1", "::1", "localhost")
_PLAIN = serialization.NoEncryption()


class Files(NamedTuple):
    """Of one certificate, as PEM."""

    cert: str
    key: str


class Authority:
    """``ca`` is the file that says whom to trust."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._name = _called(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        made = (
            _builder(self._name, self._name, self._key, 0)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = str(folder / f"{name}.pem")
        Path(self.ca).write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def issue(
        self, name: str = "host", hosts: tuple[str, ...] = HERE, *, days_ago: int = 0, password: bytes = b""
    ) -> Files:
        """A certificate for ``hosts``, made for one day either side of ``days_ago``."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = (
            _builder(_called(name), self._name, key, days_ago)
            .add_extension(x509.SubjectAlternativeName([_host(one) for one in hosts]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        files = Files(str(self._folder / f"{name}.crt"), str(self._folder / f"{name}.key"))
        Path(files.cert).write_bytes(made.public_bytes(serialization.Encoding.PEM))
        lock = serialization.BestAvailableEncryption(password) if password else _PLAIN
        form = serialization.PrivateFormat.PKCS8
        Path(files.key).write_bytes(key.private_bytes(serialization.Encoding.PEM, form, lock))
        return files


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days_ago: int
) -> x509.CertificateBuilder:
    then = datetime.datetime.now(datetime.UTC) - days_ago * DAY
    return x509.CertificateBuilder(
        issuer, subject, key.public_key(), x509.random_serial_number(), then - DAY, then + DAY
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
