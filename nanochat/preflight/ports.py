"""Ports: of this machine for its own processes, and the one where several nodes meet."""

import os
import socket

from nanochat.preflight.check import GREEN, RED, Finding
from nanochat.preflight.settings import PreflightSettings

ANSWER_S = 5.0
DEFAULT_PORT = "29500"


def check(settings: PreflightSettings) -> list[Finding]:
    """Whether processes of this machine reach each other; on the first of several nodes, whether their port is free."""
    findings = [_loopback()]
    port = os.environ.get("MASTER_PORT", DEFAULT_PORT)
    if "WORLD_SIZE" in os.environ:
        findings.append(Finding("master port", GREEN, f"the nodes have met at {os.environ.get('MASTER_ADDR')}:{port}"))
    elif settings.nodes > 1 and os.environ.get("NODE_RANK", "0") == "0":
        findings.append(_master_port(port))
    return findings


def _loopback() -> Finding:
    try:
        with socket.create_server(("localhost", 0)) as server:
            server.settimeout(ANSWER_S)
            with socket.create_connection(server.getsockname(), ANSWER_S) as ours, server.accept()[0] as theirs:
                ours.sendall(b"x")
                theirs.recv(1)
    except OSError as error:
        value = f"processes do not reach each other at localhost ({error.strerror or error})"
        return Finding("ports", RED, value, "see /etc/hosts, the interface lo (ip link set lo up) and the firewall")
    return Finding("ports", GREEN, "processes of this machine reach each other")


def _master_port(port: str) -> Finding:
    try:
        socket.create_server(("", int(port))).close()
    except (OSError, ValueError, OverflowError) as error:
        value = f"MASTER_PORT {port} cannot be had ({getattr(error, 'strerror', None) or error})"
        return Finding("master port", RED, value, "end what listens there (ss -ltnp), or set MASTER_PORT to another on every node")
    return Finding("master port", GREEN, f"{port} is free")
