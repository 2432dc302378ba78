"""An SSH server that runs commands and forwards ports, for a host without sshd: `ssh_server.py HOST_KEY CLIENT_KEY`.

It lets in whoever has the one key. A command gets the server's own variables.
"""

import asyncio
import os
import signal
import sys

import asyncssh


class _Server(asyncssh.SSHServer):
    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True


async def _run(process: asyncssh.SSHServerProcess[bytes]) -> None:
    child = await asyncio.create_subprocess_exec(
        "bash", "-c", process.command or "", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    said, left = asyncio.ensure_future(child.communicate()), asyncio.ensure_future(process.wait_closed())
    await asyncio.wait({said, left}, return_when=asyncio.FIRST_COMPLETED)
    if not said.done():
        os.killpg(child.pid, signal.SIGHUP)
        return
    process.stdout.write(said.result()[0])
    process.exit(child.returncode or 0)


async def _serve(host_key: str, client_keys: str) -> None:
    await asyncssh.listen(
        "", 22, server_factory=_Server, server_host_keys=[host_key], authorized_client_keys=client_keys,
        process_factory=_run, encoding=None, line_editor=False,
    )  # fmt: skip
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
