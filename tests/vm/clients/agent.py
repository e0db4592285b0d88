"""QEMU's own library (qemu.qmp of PyPI), used for the agent's port as qemu-ga-client of QEMU's tree uses it.

    python3 agent.py SOCKET COMMAND [ARGUMENT...]

Each command prints one line of JSON. Like qemu-ga-client it pings first and then syncs with a random number, and takes no answer
to a suspend or shutdown for success.
"""

import asyncio
import base64
import json
import random
import sys

from qemu.qmp import ExecInterruptedError
from qemu.qmp.legacy import QEMUMonitorProtocol

# qemu-ga-client waits 3 s; a guest without hardware's help on a busy machine is slower.
PATIENCE = 60
SILENCE = 3


class Agent(QEMUMonitorProtocol):
    """guest-get-osinfo is agent.get_osinfo()."""

    def __getattr__(self, name):
        return lambda **arguments: self.cmd("guest-" + name.replace("_", "-"), **arguments)

    def synced(self):
        self.settimeout(PATIENCE)
        self.ping()
        number = random.randint(0, (1 << 32) - 1)
        while self.sync(id=number) != number:
            pass
        return self

    def unanswered(self, name, **arguments):
        self.settimeout(SILENCE)
        try:
            return self.cmd("guest-" + name, **arguments)
        except (asyncio.TimeoutError, ExecInterruptedError):
            # Or QEMU has gone with the guest.
            return None


def cat(agent, path):
    handle = agent.file_open(path=path)
    data = b""
    while True:
        piece = agent.file_read(handle=handle, count=1024)
        data += base64.b64decode(piece["buf-b64"])
        if piece["eof"]:
            break
    agent.file_close(handle=handle)
    return data.decode()


def ifconfig(agent):
    # It indexes the hardware address of each, without asking whether there is one.
    return {each["name"]: [each["hardware-address"]] + [
        "%s/%d" % (address["ip-address"], int(address["prefix"])) for address in each.get("ip-addresses", [])
    ] for each in agent.network_get_interfaces()}


COMMANDS = {
    "ping": lambda agent: agent.ping(),
    "info": lambda agent: agent.info(),
    "cat": cat,
    "ifconfig": ifconfig,
    "fsfreeze": lambda agent, what: getattr(agent, "fsfreeze_" + what)(),
    "fstrim": lambda agent, minimum="0": agent.fstrim(minimum=int(minimum)),
    "suspend": lambda agent, mode: agent.unanswered("suspend-" + mode),
    "shutdown": lambda agent, mode="powerdown": agent.unanswered("shutdown", mode=mode),
}


def main(path, command, *arguments):
    agent = Agent(path)
    agent.connect(negotiate=False)
    try:
        print(json.dumps(COMMANDS[command](agent.synced(), *arguments)))
    finally:
        try:
            agent.close()
        except EOFError:
            pass


main(*sys.argv[1:])
