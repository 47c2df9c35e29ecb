"""Signatures over an evidence file, so that whoever holds the public key sees who vouches for it."""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import BaseModel, Field

from tasks.errors import EvidenceBroken, WrongInput

PASSWORD = (
    "REDOUBT_SIGNING_PASSWORD"  # the environment variable, for a key that is encrypted  # pragma: allowlist secret
)
KINDS = "Use an Ed25519 key, or an EC key on P-256 (openssl genpkey -algorithm ed25519)."

Algorithm = Literal["ed25519", "ecdsa-p256-sha256"]
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey


class Signature(BaseModel, frozen=True, extra="forbid"):
    """What stands in a signature's file."""

    algorithm: Algorithm
    key: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the public key's DER (SubjectPublicKeyInfo)")
    signature: str = Field(description="over the file's bytes as they are, in base64")

    def to_bytes(self) -> bytes:
        """The signature's file."""
        return f"{json.dumps(self.model_dump(), sort_keys=True, separators=(',', ':'))}\n".encode()

    def made(self) -> bytes:
        """What the key made of the file's bytes. Raises ValueError for what is no base64."""
        return base64.b64decode(self.signature, validate=True)


def sign(raw: bytes, key_file: Path) -> bytes:
    """The signature's file: JSON with algorithm, key and signature, made with the private key of a PEM file.

    A key that is encrypted is opened with the password in REDOUBT_SIGNING_PASSWORD. Raises WrongInput for a file
    that is absent or holds no such key, and for a password that is missing or wrong.
    """
    key = _private_key(key_file)
    made = key.sign(raw) if isinstance(key, Ed25519PrivateKey) else key.sign(raw, ECDSA(SHA256()))
    public = key.public_key()
    text = base64.b64encode(made).decode()
    return Signature(algorithm=_algorithm(public), key=_key_id(public), signature=text).to_bytes()


def secret_of(key_file: Path) -> bytes:
    """32 bytes that follow from the private key and do not give it away. Raises WrongInput as sign() does."""
    key = _private_key(key_file)
    raw = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return hashlib.sha256(b"redoubt: mark of stored results\n" + raw).digest()


def verified(raw: bytes, signature: bytes, public_key_file: Path) -> None:
    """Return if the signature's file is of these bytes, by the key of the PEM file.

    Raises EvidenceBroken, with the reason, if it is not; WrongInput for a file that is absent or no public key.
    """
    key = _public_key(public_key_file)
    try:
        given = Signature.model_validate_json(signature)
        made = given.made()
    except ValueError as error:
        raise EvidenceBroken("this is no signature file: it does not hold what sign() writes.") from error
    if given.to_bytes() != signature or base64.b64encode(made).decode() != given.signature:
        raise EvidenceBroken("this signature file was written anew: it is not in the form that sign() gives it.")
    if given.key != _key_id(key):
        raise EvidenceBroken(
            f"the evidence was signed by another key: the signature names {given.key}, {public_key_file} is "
            f"{_key_id(key)}."
        )
    if given.algorithm != _algorithm(key):
        raise EvidenceBroken(f"the signature says {given.algorithm}, but its key is for {_algorithm(key)}.")
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(made, raw)
        else:
            key.verify(made, raw, ECDSA(SHA256()))
    except InvalidSignature:
        raise EvidenceBroken(
            f"the signature of key {given.key} does not fit the evidence: one of the two was changed after signing."
        ) from None


def _private_key(path: Path) -> PrivateKey:
    """The key of a PEM file. What the library says is not handed on: no message may hold a part of key or password."""
    pem, password = _read(path), os.environ.get(PASSWORD, "")
    try:
        key = load_pem_private_key(pem, None)
    except TypeError:  # it is encrypted
        if not password:
            raise WrongInput(f"the key in {path} is encrypted. Put its password into {PASSWORD}.") from None
        try:
            key = load_pem_private_key(pem, os.fsencode(password))
        except (ValueError, UnsupportedAlgorithm):
            raise WrongInput(f"the password in {PASSWORD} does not open the key in {path}. Correct it.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise WrongInput(f"{path} holds no private key in PEM form. {KINDS}") from None
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
    ):
        return key
    raise WrongInput(f"the key in {path} is of a kind that does not sign here. {KINDS}")


def _public_key(path: Path) -> PublicKey:
    pem = _read(path)
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise WrongInput(
            f"{path} holds no public key in PEM form. Make it from the private key: "
            "openssl pkey -in private.pem -pubout -out public.pem."
        ) from None
    if isinstance(key, Ed25519PublicKey) or (
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    ):
        return key
    raise WrongInput(f"the key in {path} is of a kind that does not sign here. {KINDS}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WrongInput(f"the key file {path} cannot be read: {error.strerror}. Name a PEM file.") from error


def _algorithm(key: PublicKey) -> Algorithm:
    return "ed25519" if isinstance(key, Ed25519PublicKey) else "ecdsa-p256-sha256"


def _key_id(key: PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
