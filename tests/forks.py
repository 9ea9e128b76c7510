"""Runs in processes that are forked from one that has imported everything: many short runs without many starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from allspark.config.files import save_config
from allspark.config.schema import Config

SERVER = """
import json, os, socket, sys, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
from allspark.config.files import load_config
from allspark.engine.train import train
from allspark.runtime.agreement import leave_group

def begin(config, out, rank, processes, port, resume):
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(f"{out}.{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        if processes > 1:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(processes))
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        train(load_config(Path(config)), Path(out), resume=resume, sinks=[])
        leave_group()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)

for line in sys.stdin:
    config, out, processes, resume = json.loads(line)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    children = [begin(config, out, rank, processes, port, resume) for rank in range(processes)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""


class Forks:
    """Starts runs, one after the other, and waits for each. Close it in the end."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def train(self, config: Config, out: Path, processes: int = 1, *, resume: bool = False) -> None:
        """Train in so many processes, or go on; fails with what they said if one does."""
        file = out.with_suffix(".yaml")
        save_config(config, file)
        self._server.stdin.write(json.dumps([str(file), str(out), processes, resume]) + "\n")
        self._server.stdin.flush()
        codes = json.loads(self._server.stdout.readline())
        said = "\n".join(Path(f"{out}.{rank}.txt").read_text() for rank in range(processes))
        assert codes == [0] * processes, said

    def close(self) -> None:
        """End the process that all are forked from."""
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()
