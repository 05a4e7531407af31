"""In processes of their own: pytest's has imported all of it already."""

import hashlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).parents[2]


def outcome(text: str) -> list[str]:
    code = f"from agent import lean\nlean.begin()\nimport sys\n{text}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_both_sides_do_without_a_second_openssl() -> None:
    text = """
import agent.worker.worker, agent.cli.logs, agent.node.supervisor
print(*[name for name, module in sys.modules.items() if type(module) is type(sys)], sep="\\n")
"""
    held = outcome(text)
    assert "agent.node.supervisor" in held
    left = {"_ssl", "_hashlib", "idna.core", "asyncio", "rich", "yaml", "importlib.metadata", "pyroute2.ndb"}
    left |= {"email._parseaddr", "_pickle", "lzma", "msgspec.inspect"}
    assert left.isdisjoint(held)


def test_who_needs_a_module_after_all_gets_it() -> None:
    text = """
import trio, ssl
from ssl import SSLContext
assert "_ssl" in sys.modules
assert trio._highlevel_ssl_helpers.ssl.SSLContext is ssl.SSLContext is SSLContext
print(trio._socket._idna.encode("b\\u00fccher.example", uts46=True).decode())
"""
    assert outcome(text) == ["xn--bcher-kva.example"]


def test_what_nobody_was_to_use_fails_loudly() -> None:
    text = """
import trio, cryptography.x509
from cryptography.hazmat.primitives import serialization
for use in (lambda: trio.DTLSEndpoint(None), lambda: cryptography.x509.RFC822Name("a@b.example"),
            lambda: serialization.load_ssh_public_key(b"")):
    try:
        use()
    except NotImplementedError as error:
        print(error)
"""
    assert outcome(text) == [
        f"{name} was not imported; see agent/lean.py"
        for name in (
            "trio._dtls.DTLSEndpoint",
            "email.utils.parseaddr",
            "cryptography.hazmat.primitives.serialization.ssh.load_ssh_public_key",
        )
    ]


def test_certificates_with_addresses_of_people_can_still_be_read(tmp_path: Path) -> None:
    """A stranger may send one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(1))
    names = x509.SubjectAlternativeName([x509.RFC822Name("somebody@b.example"), x509.DNSName("b.example")])
    certificate = made.add_extension(names, critical=False).sign(key, hashes.SHA256())
    path = tmp_path / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    text = f"""
from pathlib import Path
from cryptography import x509
certificate = x509.load_pem_x509_certificate(Path({str(path)!r}).read_bytes())
print(*[each.value for each in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value])
"""
    assert outcome(text) == ["somebody@b.example b.example"]


def test_structlog_has_asyncio_when_it_is_touched() -> None:
    text = """
from agent.cli import logs
import structlog.stdlib
assert "asyncio" not in sys.modules
print(structlog.stdlib.asyncio.sleep.__name__, "asyncio" in sys.modules)
"""
    assert outcome(text) == ["sleep True"]


def test_hashes_are_the_same() -> None:
    text = """
import hashlib, hmac
print(hashlib.sha256(b"text").hexdigest(), hashlib.blake2b(b"text", digest_size=8).hexdigest())
print(hmac.compare_digest(b"a", b"a"), hmac.compare_digest(b"a", b"b"))
"""
    sums = f"{hashlib.sha256(b'text').hexdigest()} {hashlib.blake2b(b'text', digest_size=8).hexdigest()}"
    assert outcome(text) == [sums, "True False"]


def test_sockets_of_pyroute2_are_whole_for_those_who_import_them() -> None:
    text = """
import redirect.encode
assert "asyncio" not in sys.modules
from pyroute2.iproute import IPRoute
with IPRoute() as ip:
    print(ip.link_lookup(ifname="lo"))
"""
    assert outcome(text) == ["[1]"]
