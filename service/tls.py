"""The certificate that the listeners show, read from files and read anew when they change.

REST gives the paths to uvicorn; gRPC takes `credentials`. Called by the gateway and by `rpc.server`.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from service.embedded import CannotStart
from service.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Paths of PEM files: the chain, its key, and the authority whose certificates workers must show."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None

    @classmethod
    def of(cls, settings: Settings) -> Certificate | None:
        """The certificate that is set, None without one. Raises CannotStart for one that can't be used."""
        cert, key, ca = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
        if cert is None or key is None:
            if cert or key or ca:
                raise CannotStart(
                    "TUNESMITH_TLS_CERT_FILE and TUNESMITH_TLS_KEY_FILE go together, and TUNESMITH_TLS_CLIENT_CA_FILE needs both"
                )
            return None
        certificate = cls(cert, key, ca)
        try:
            certificate.check()
        except OSError as error:
            raise CannotStart(f"the certificate in {cert} can't be used: {error}") from error
        return certificate

    def check(self) -> None:
        """Raises OSError, of which ssl.SSLError is one, unless key and chain belong together and the authority is one."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert_file, self.key_file)
        if self.client_ca_file is not None:
            context.load_verify_locations(self.client_ca_file)

    def credentials(self, *, ask_clients: bool = False) -> grpc.ServerCredentials:
        """For a gRPC port; with `ask_clients` only clients with a certificate of the authority get in."""
        ca = self.client_ca_file if ask_clients else None
        seen = self._stamp()

        def renewed() -> Any:
            nonlocal seen
            stamp = self._stamp()
            if stamp == seen:
                return None
            try:
                self.check()
                configuration = self._configuration(ca)
            except OSError as error:
                log.warning("certificate_not_renewed", cause=str(error))
                return None
            seen = stamp
            return configuration

        return grpc.dynamic_ssl_server_credentials(self._configuration(ca), renewed, require_client_authentication=ask_clients)

    def _configuration(self, ca: Path | None) -> Any:
        pair = (self.key_file.read_bytes(), self.cert_file.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca.read_bytes() if ca else None)

    def _stamp(self) -> tuple[float, ...]:
        """When the files were last changed; a file that is away counts as unchanged."""
        paths = [path for path in (self.cert_file, self.key_file, self.client_ca_file) if path is not None]
        return tuple(path.stat().st_mtime if path.exists() else 0.0 for path in paths)
