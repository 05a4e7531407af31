"""HOST:PORT as people write it; an IPv6 address stands in brackets."""


def split(text: str, default_port: int | None = None) -> tuple[str, int]:
    """(host, port); ValueError says what would be right. Port 0 is allowed: the kernel chooses."""
    host, colon, port = text.rpartition(":")
    if default_port is not None and (not colon or text.endswith("]") or (":" in host and not host.startswith("["))):
        host, port = text, str(default_port)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, as in [fd00::1]:15012")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is no HOST:PORT, as in 10.0.0.1:15012")
    return host, int(port)


def join(host: str, port: int) -> str:
    """The text for a host and a port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
