"""``python -m serve.certificates``: an authority of your own, and a certificate for each service of the fleet.

Two authorities, because they vouch for different things: that of the *door* is what callers trust (put a public
certificate in its place where the public calls); that of the *inside* says who may speak to the servers behind it, so
nobody but the services gets one of its certificates. The authorities' own keys lie apart: keep them off the servers.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serve.server import ServeError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

INSTALL = "pip install -e '.[fleet]' -c constraints.txt"
SERVICES = ("envoy", "triton", "gateway")
"""Each has a certificate of the inside's authority, under its own name."""
DAYS = 90
AUTHORITY_DAYS = 3650
SLACK = datetime.timedelta(minutes=5)
"""Clocks differ: a certificate is valid from a little earlier on."""


@dataclass(frozen=True)
class Authority:
    """Signs certificates."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        names: Sequence[str],
        *,
        days: float = DAYS,
        start: datetime.datetime | None = None,
    ) -> tuple[bytes, bytes]:
        """A certificate, for a server as well as for a client, and its key, both as PEM.

        :param names: DNS names and addresses; the first one is its subject.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        begin = start or datetime.datetime.now(datetime.timezone.utc) - SLACK
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(names[0]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, _sha256())
        )
        return certificate.public_bytes(Encoding.PEM), private(key)


def authority(name: str, days: float = AUTHORITY_DAYS) -> Authority:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    begin = datetime.datetime.now(datetime.timezone.utc) - SLACK
    usage = dict.fromkeys(
        (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("encipher_only", "decipher_only"),
        ),
        False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _sha256())
    )
    return Authority(certificate, key)


def read_authority(folder: Path) -> Authority:
    """:raises OSError: :raises ValueError: when it cannot be read."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key((folder / "key.pem").read_bytes(), None)
    return Authority(x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()), key)  # type: ignore[arg-type]


def private(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _sha256() -> hashes.SHA256:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


def _name(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def write(file: Path, content: bytes, mode: int = 0o644) -> None:
    """A reader sees the former content or this, whole."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
    os.replace(scratch, file)


def make(folder: Path, names: Sequence[str], days: float = DAYS) -> list[str]:
    """Everything that the fleet needs, below ``folder``; authorities and keys that are there stay.

    Nobody but its owner gets into ``folder``. A container is given one folder of it, all of which its user can
    read, whoever that is.

    ::

        authority/door, authority/inside     ca.pem, key.pem    keep the keys off the servers
        envoy                                door.pem, door.key: what callers see; cert.pem, key.pem, ca.pem: the inside
        triton, gateway                      cert.pem, key.pem, ca.pem: the inside
        triton, gateway                      control.key: without it, nobody changes models
        callers                              ca.pem: what callers are to trust
        keys                                 keys.txt: callers' keys, with one to begin with; keys.yaml: for Envoy

    :param names: by which callers know the door. :returns: what was done, a line each.
    :raises OSError: :raises ValueError: when something cannot be read or written.
    """
    from serve import envoy

    said = []
    authorities = {}
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for kind in ("door", "inside"):
        place = folder / "authority" / kind
        if (place / "key.pem").exists():
            authorities[kind] = read_authority(place)
            continue
        place.mkdir(parents=True, mode=0o700, exist_ok=True)
        made = authorities[kind] = authority(f"Tritox {kind}")
        write(place / "key.pem", private(made.key), 0o600)
        write(place / "ca.pem", made.pem)
        said.append(f"made the authority {place}")
    for service in SERVICES:
        place = folder / service
        place.mkdir(parents=True, exist_ok=True)
        certificate, key = authorities["inside"].issue([service, "localhost", "127.0.0.1"], days=days)
        # one after the other: who reads in between gets a pair that does not fit, and tries again
        write(place / "key.pem", key)
        write(place / "cert.pem", certificate)
        write(place / "ca.pem", authorities["inside"].pem)
        said.append(f"{place}: a certificate for {service}, for {days:g} days")
    certificate, key = authorities["door"].issue(names, days=days)
    write(folder / "envoy/door.key", key)
    write(folder / "envoy/door.pem", certificate)
    said.append(f"{folder / 'envoy'}: a certificate for {', '.join(names)}, for {days:g} days")
    (folder / "callers").mkdir(exist_ok=True)
    write(folder / "callers/ca.pem", authorities["door"].pem)
    control = folder / "triton/control.key"
    if not control.exists():
        write(control, f"{secrets.token_hex(16)}\n".encode())
        said.append(f"{control}: the key without which nobody changes models")
    write(folder / "gateway/control.key", control.read_bytes())
    keys = folder / "keys/keys.txt"
    if not keys.exists():
        keys.parent.mkdir(exist_ok=True)
        write(keys, f"{secrets.token_hex(16)} name=first\n".encode())
        said.append(f"{keys}: a caller's key")
    envoy.write_keys(envoy.read_keys(keys.read_text(encoding="utf-8")), keys.with_suffix(".yaml"))
    return said


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m serve.certificates",
        description="Make the certificates and the keys that docker/compose.yaml mounts. Run it again, before "
        "they expire, for new certificates of the same authorities: Envoy takes them at once, the others when they are "
        "started anew.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--out", type=Path, default=Path("docker/secrets"), help="folder to write to")
    p.add_argument("--name", action="append", help="host name or address by which callers know the door; repeatable")
    p.add_argument("--days", type=float, default=DAYS, help="that the certificates are valid")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if not 0 < arguments.days <= AUTHORITY_DAYS:
        sys.stderr.write(f"error: --days is {arguments.days:g}, must be more than 0 and at most {AUTHORITY_DAYS}\n")
        return 2
    try:
        said = make(arguments.out, arguments.name or ["localhost", "127.0.0.1"], arguments.days)
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: certificates need the package {error.name}: {INSTALL}\n")
        return 1
    except (OSError, ValueError, ServeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write("\n".join(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
