import base64
import hashlib
import json
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import EvidenceBroken, WrongInput
from tasks.posture.signing import sign, verified

RAW = b'{"format":"redoubt-evidence/1"}\n'
SECRET = "correct horse battery"  # pragma: allowlist secret
KINDS = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ecdsa-p256-sha256": lambda: ec.generate_private_key(ec.SECP256R1()),
}


def written(folder: Path, key, password: str | None = None) -> tuple[Path, Path]:
    """The private and the public key as PEM files."""
    how = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    private, public = folder / "private.pem", folder / "public.pem"
    folder.mkdir(exist_ok=True)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(params=list(KINDS))
def kind(request) -> str:
    return request.param


@pytest.fixture
def pair(kind, tmp_path) -> tuple[Path, Path]:
    return written(tmp_path / "mine", KINDS[kind]())


def test_what_was_signed_is_verified_by_its_public_key(kind, pair):
    private, public = pair
    assert verified(RAW, sign(RAW, private), public) is None
    assert json.loads(sign(RAW, private))["algorithm"] == kind


def test_the_signature_is_the_standard_one_over_the_bytes_as_they_are(kind, tmp_path):
    key = KINDS[kind]()
    private, _ = written(tmp_path / "mine", key)
    made = json.loads(sign(RAW, private))
    public, raw = key.public_key(), base64.b64decode(made["signature"])
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert made["key"] == hashlib.sha256(der).hexdigest()
    if kind == "ed25519":
        assert raw == key.sign(RAW)  # which is deterministic
    else:
        assert all(decode_dss_signature(raw))
        public.verify(raw, RAW, ec.ECDSA(SHA256()))


def test_every_flipped_byte_of_the_evidence_is_seen(pair):
    private, public = pair
    signature = sign(RAW, private)
    for place in range(len(RAW)):
        changed = RAW[:place] + bytes([RAW[place] ^ 1]) + RAW[place + 1 :]
        with pytest.raises(EvidenceBroken, match="does not fit the evidence"):
            verified(changed, signature, public)


def test_every_flipped_byte_of_the_signature_is_seen(pair):
    private, public = pair
    signature = sign(RAW, private)
    for place in range(len(signature)):
        for bit in (1, 2, 32):
            changed = signature[:place] + bytes([signature[place] ^ bit]) + signature[place + 1 :]
            with pytest.raises(EvidenceBroken):
                verified(RAW, changed, public)


def test_a_signature_written_in_another_way_is_refused_although_it_holds(tmp_path):
    private, public = written(tmp_path / "mine", KINDS["ed25519"]())
    values = json.loads(sign(RAW, private))
    text = values["signature"]  # 64 bytes: four bits of the last letter mean nothing
    alike = next(c for c in "BRhx" if base64.b64decode(f"{text[:-3]}{c}==") == base64.b64decode(text))
    anew = values | {"signature": f"{text[:-3]}{alike}=="}
    for other in (json.dumps(values), json.dumps(anew, sort_keys=True, separators=(",", ":")) + "\n"):
        with pytest.raises(EvidenceBroken, match="written anew"):
            verified(RAW, other.encode(), public)


@pytest.mark.parametrize("other", list(KINDS))
def test_another_key_is_named_as_the_reason(pair, other, tmp_path):
    private, _ = pair
    _, stranger = written(tmp_path / "theirs", KINDS[other]())
    with pytest.raises(EvidenceBroken, match="signed by another key"):
        verified(RAW, sign(RAW, private), stranger)


def test_a_signature_that_claims_a_key_it_was_not_made_with_is_refused(pair, kind, tmp_path):
    _, public = pair
    theirs, _ = written(tmp_path / "theirs", KINDS[kind]())
    mine, forged = json.loads(sign(RAW, pair[0])), json.loads(sign(RAW, theirs))
    text = json.dumps(forged | {"key": mine["key"]}, sort_keys=True, separators=(",", ":")) + "\n"
    with pytest.raises(EvidenceBroken, match="does not fit the evidence"):
        verified(RAW, text.encode(), public)


def test_a_signature_that_names_the_other_algorithm_is_refused(pair, kind):
    private, public = pair
    other = next(name for name in KINDS if name != kind)
    changed = sign(RAW, private).replace(kind.encode(), other.encode())
    with pytest.raises(EvidenceBroken, match=f"says {other}"):
        verified(RAW, changed, public)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.one_of(st.binary(max_size=80), st.text(max_size=40).map(str.encode), st.just(b"{}"), st.just(b"")))
def test_what_is_no_signature_is_evidence_broken_and_nothing_else(pair, junk):
    with pytest.raises(EvidenceBroken):
        verified(RAW, junk, pair[1])


def test_an_encrypted_key_opens_with_the_password_in_the_environment_only(kind, tmp_path, monkeypatch):
    private, public = written(tmp_path / "mine", KINDS[kind](), SECRET)
    monkeypatch.delenv("REDOUBT_SIGNING_PASSWORD", raising=False)
    with pytest.raises(WrongInput, match=r"is encrypted\. Put its password into REDOUBT_SIGNING_PASSWORD"):
        sign(RAW, private)
    monkeypatch.setenv("REDOUBT_SIGNING_PASSWORD", "")
    with pytest.raises(WrongInput, match="is encrypted"):
        sign(RAW, private)
    monkeypatch.setenv("REDOUBT_SIGNING_PASSWORD", SECRET)
    verified(RAW, sign(RAW, private), public)


def test_a_password_does_no_harm_to_a_key_that_needs_none(pair, monkeypatch):
    monkeypatch.setenv("REDOUBT_SIGNING_PASSWORD", SECRET)
    verified(RAW, sign(RAW, pair[0]), pair[1])


def test_no_message_holds_a_part_of_password_or_key(tmp_path, monkeypatch):
    private, _ = written(tmp_path / "mine", KINDS["ed25519"](), SECRET)
    body = private.read_text().splitlines()[1]
    (tmp_path / "cut.pem").write_text(private.read_text()[:90])
    monkeypatch.setenv("REDOUBT_SIGNING_PASSWORD", "a wrong phrase entirely")
    for path in (private, tmp_path / "cut.pem"):
        with pytest.raises(WrongInput) as caught:
            sign(RAW, path)
        told = "".join(traceback.format_exception(caught.value))
        assert "wrong phrase" not in told
        assert SECRET not in told
        assert body[:12] not in told


def test_files_that_are_no_such_key_say_so(tmp_path):
    mine, public = written(tmp_path / "mine", KINDS["ed25519"]())
    kept = sign(RAW, mine)
    (tmp_path / "text.pem").write_text("hello\n")
    with pytest.raises(WrongInput, match=r"absent\.pem cannot be read: No such file"):
        sign(RAW, tmp_path / "absent.pem")
    with pytest.raises(WrongInput, match=r"absent\.pem cannot be read"):
        verified(RAW, kept, tmp_path / "absent.pem")
    with pytest.raises(WrongInput, match="cannot be read"):
        sign(RAW, tmp_path)
    for wrong in (tmp_path / "text.pem", public):
        with pytest.raises(WrongInput, match="holds no private key"):
            sign(RAW, wrong)
    for wrong in (tmp_path / "text.pem", mine):
        with pytest.raises(WrongInput, match="holds no public key"):
            verified(RAW, kept, wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa.generate_private_key(public_exponent=65537, key_size=1024),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        ed448.Ed448PrivateKey.generate,
    ],
    ids=["rsa", "p-384", "ed448"],
)
def test_keys_of_other_kinds_are_refused_with_those_that_will_do(make, tmp_path):
    private, public = written(tmp_path / "mine", make())
    with pytest.raises(WrongInput, match="Use an Ed25519 key, or an EC key on P-256"):
        sign(RAW, private)
    with pytest.raises(WrongInput, match="Use an Ed25519 key, or an EC key on P-256"):
        verified(RAW, b"{}", public)
