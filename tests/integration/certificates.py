"""Certificates that `baton certs` would not make: of other dates, roles and authorities."""
import datetime
import ssl
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_certs(baton, directory, *args):
    """A directory of `baton certs`."""
    subprocess.run([baton, "certs", directory, *args], check=True, capture_output=True, timeout=60)
    return Path(directory)


def issue(certs, name, dns, from_days=-1, to_days=1):
    """NAME.pem and NAME-key.pem for one DNS name, signed by the authority of a directory of `baton certs`."""
    ca = x509.load_pem_x509_certificate((certs / "ca.pem").read_bytes())
    ca_key = serialization.load_pem_private_key((certs / "ca-key.pem").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc)
    cert = (x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=from_days))
            .not_valid_after(now + datetime.timedelta(days=to_days))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns)]), critical=False)
            .sign(ca_key, hashes.SHA256()))
    (certs / f"{name}.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (certs / f"{name}-key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def client_context(certs=None, name=None, alpn=()):
    """A TLS client that judges nobody, with a certificate of certs or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if name:
        context.load_cert_chain(certs / f"{name}.pem", certs / f"{name}-key.pem")
    return context


def serial_of(path):
    return x509.load_pem_x509_certificate(Path(path).read_bytes()).serial_number
