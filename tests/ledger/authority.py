"""A time-stamping authority: OpenSSL's, with certificates of our own making, also over HTTP."""

from __future__ import annotations

import contextlib
import datetime as dt
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Authority:
    """A time-stamping authority: OpenSSL's, with certificates of our own making."""

    def __init__(self, folder, *, purpose=True, valid=(-1, 1)):
        self.folder = folder
        folder.mkdir()
        self.root_key, key = (
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP256R1()),
        )
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
        self.root = self._certificate(name, name, self.root_key.public_key(), True, (-1, 1))
        leaf = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "clock")])
        made = self._certificate(leaf, name, key.public_key(), False, valid, purpose=purpose)
        pem = serialization.Encoding.PEM
        (folder / "tsa.pem").write_bytes(made.public_bytes(pem))
        (folder / "tsa.key").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        (folder / "serial").write_text("01\n")
        (folder / "tsa.cnf").write_text(
            f"[t]\ndir={folder}\nserial=$dir/serial\nsigner_cert=$dir/tsa.pem\n"
            "signer_key=$dir/tsa.key\nsigner_digest=sha256\ndefault_policy=1.2.3.4\n"
            "digests=sha256,sha512\naccuracy=secs:1,millisecs:500\ness_cert_id_alg=sha256\n"
        )

    def _certificate(self, subject, issuer, public, authority, valid, *, purpose=False):
        now = dt.datetime.now(dt.timezone.utc)
        days = [dt.timedelta(days=item) for item in valid]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0])
            .not_valid_after(now + days[1])
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if purpose:
            usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.TIME_STAMPING])
            builder = builder.add_extension(usage, critical=True)
        return builder.sign(self.root_key, hashes.SHA256())

    @property
    def pem(self):
        return self.root.public_bytes(serialization.Encoding.PEM)

    def ask(self, request):
        (self.folder / "q.tsq").write_bytes(request)
        subprocess.run(
            [
                "openssl",
                "ts",
                "-reply",
                "-config",
                "tsa.cnf",
                "-section",
                "t",
                "-queryfile",
                "q.tsq",
                "-out",
                "r.tsr",
            ],
            cwd=self.folder,
            check=True,
            capture_output=True,
        )
        return (self.folder / "r.tsr").read_bytes()

    @contextlib.contextmanager
    def serving(self):
        """Answer over HTTP on loopback; gives the address."""
        ask = self.ask

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                answer = ask(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Type", "application/timestamp-reply")
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
