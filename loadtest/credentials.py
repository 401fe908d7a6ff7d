"""Who asks a fleet: a caller at its door, a service behind it; from the folder that ``serve.certificates`` wrote."""

from __future__ import annotations

from pathlib import Path

from client import Credentials


def of_caller(secrets: Path, key: str) -> Credentials:
    return Credentials(ca=secrets / "callers/ca.pem", token=key)


def of_service(secrets: Path) -> Credentials:
    """Of the gateway, for a replica."""
    place = secrets / "gateway"
    return Credentials(ca=place / "ca.pem", certificate=place / "cert.pem", key=place / "key.pem", server_name="triton")
