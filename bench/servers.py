"""The workload on node B: nginx and iperf3, unmodified, on all of the node's addresses.

nginx answers / with 1 KB, /blob with a file of random bytes, and keeps what is put below /upload/: what was moved can
be compared with what was sent, in both directions.
"""

import os
from pathlib import Path

from bench.rig import BULK, HTTP, SERVER_UID, Rig

BODY = 1024
BLOB = 16 * 2**20
"""Bytes of /blob: many windows, many frames, a fraction of a second."""

_NGINX = """
daemon off; worker_processes 1; pid {d}/nginx.pid; error_log {d}/nginx.err error;
events {{ worker_connections 32768; }}
http {{
  access_log off; default_type text/plain; keepalive_timeout 600s; keepalive_requests 1000000000;
  client_body_temp_path {d}/tmp; proxy_temp_path {d}/tmp; fastcgi_temp_path {d}/tmp; uwsgi_temp_path {d}/tmp;
  scgi_temp_path {d}/tmp; client_max_body_size 64m;
  server {{
    listen {port} backlog=4096; root {d}/files;
    location = / {{ return 200 "{body}"; }}
    location /upload/ {{ dav_methods PUT DELETE; }}
    location / {{ }}
  }}
}}
"""


async def start_servers(rig: Rig) -> None:
    """Start both, and return when they listen; they end with the rig."""
    directory = _files(rig)
    nginx = rig.start("nginx", rig.server(), ["nginx", "-c", f"{directory}/nginx.conf", "-e", f"{directory}/nginx.err"])
    iperf = rig.start("iperf3", rig.server(), ["iperf3", "-s", "-p", str(BULK)])
    await nginx.listening(HTTP)
    await iperf.listening(BULK)


def _files(rig: Rig) -> Path:
    directory = rig.files
    for path in (directory, directory / "files", directory / "files/upload", directory / "tmp"):
        path.mkdir(mode=0o755, exist_ok=True)
        os.chown(path, SERVER_UID, SERVER_UID)
    (directory / "nginx.conf").write_text(_NGINX.format(d=directory, port=HTTP, body="x" * BODY))
    rig.blob.write_bytes(os.urandom(BLOB))
    return directory
