"""The gateway's own certificate: where its files are, and whether they can be used."""

from __future__ import annotations

import ssl
from pathlib import Path

from wsgigate.config.model import Config

__all__ = ["certificate_files", "check_certificate"]


def certificate_files(config: Config, path: str) -> tuple[str, str] | None:
    """Return the files of the certificate and of its key, None when the gateway speaks no TLS.

    :param path: The file that *config* was read from, in whose folder relative names start.
    """
    tls = config.gateway.tls
    if tls is None:
        return None
    folder = Path(path).absolute().parent if path else Path.cwd()
    return str(folder / tls.cert), str(folder / (tls.key or tls.cert))


def check_certificate(config: Config, path: str) -> None:
    """See that the certificate and its key can be read, and belong together.

    :raises ValueError: They can not, or do not; begins with the name of the key in question.
    """
    files = certificate_files(config, path)
    if files is None:
        return
    for name, file in zip(("cert", "key"), files, strict=True):
        if not Path(file).is_file():
            raise ValueError(f"{name}: there is no {file}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(*files, password=lambda: b"")  # rather than ask a terminal
    except OSError as error:
        why = getattr(error, "reason", None) or error.strerror or str(error)
        raise ValueError(
            f"{files[0]} and its key can not be used: {why}; PEM without a password is needed"
        ) from None
