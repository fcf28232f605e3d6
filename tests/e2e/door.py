"""A TCP port that leads to another one for as long as this process lives: what a test kills to cut a line.

Run as `python door.py PORT HOST TARGET_PORT`.
"""

import asyncio
import sys
from contextlib import suppress


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass everything on, until one side closes."""
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve(port: int, host: str, target_port: int) -> None:
    """Pass every connection on, both ways."""

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(host, target_port)
        await asyncio.gather(pour(reader, to_writer), pour(to_reader, writer))

    server = await asyncio.start_server(link, "127.0.0.1", port)
    sys.stdout.write("open\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
