"""Messages between a worker and its vLLM process: JSON behind four bytes of length, over a Unix socket.

Nothing else is written to that socket: what the engine prints goes to its own log.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct(">I")
MAX_BYTES = 1 << 30


class Closed(Exception):
    """The other side is gone, or what it sent is no message."""


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one message.

    Raises:
        Closed: nobody is there to read it.
    """
    data = json.dumps(message, allow_nan=True).encode()
    try:
        connection.sendall(_LENGTH.pack(len(data)) + data)
    except OSError as error:
        raise Closed(f"the connection is closed ({error})") from error


def receive(connection: socket.socket) -> dict[str, Any]:
    """The next message.

    Raises:
        Closed: the connection ended, or what came is no message.
        TimeoutError: the socket's timeout is over.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > MAX_BYTES:
        raise Closed(f"a message of {length} bytes was announced")
    try:
        message = json.loads(_exactly(connection, length))
    except ValueError as error:
        raise Closed(f"no message of this protocol ({error})") from error
    if not isinstance(message, dict):
        raise Closed("no message of this protocol")
    return message


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        try:
            part = connection.recv(min(count, 1 << 20))
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed(f"the connection broke ({error})") from error
        if not part:
            raise Closed("the connection ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
