"""Whose word counts for a server's name: the certificates that MLflow's and Prefect's own clients go by."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import certifi


@dataclass(frozen=True)
class Trust:
    """The variables that one client reads."""

    files: tuple[str, ...]  # each may name a file of certificates; the first that does counts
    anybody: str  # switches the check off
    ours: str = ""  # may name a certificate that says who calls

    def context(self) -> ssl.SSLContext:
        """For a connection to the server. Raises OSError that names the variable of a file that cannot be used."""
        variable = next((name for name in self.files if os.environ.get(name)), "")
        path = Path(os.environ[variable] if variable else certifi.where())
        try:
            if path.is_dir():
                context = ssl.create_default_context(capath=path)
            else:
                context = ssl.create_default_context(cafile=path)
            if os.environ.get(self.ours):
                context.load_cert_chain(os.environ[self.ours])
        except OSError as error:
            raise OSError(f"{variable or 'certifi'} names {path}, which holds no certificates ({error})") from error
        if os.environ.get(self.anybody, "").lower() in ("1", "true"):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def mend(self, error: object) -> str:
        """What to set where the error says that the server's certificate is not trusted; empty for any other."""
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            return ""
        return f"export {self.files[0]}=<a PEM file with the certificate that signed the server's>"


MLFLOW = Trust(
    ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
)
PREFECT = Trust(("PREFECT_API_SSL_CERT_FILE", "SSL_CERT_FILE"), "PREFECT_API_TLS_INSECURE_SKIP_VERIFY")
