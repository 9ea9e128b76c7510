"""Freed memory stays with the process, unless the user has said otherwise."""

import os
import subprocess
import sys

import pytest

from allspark.runtime import host_memory

# How many pages the kernel has to map for a buffer of 48 MB that was freed before.
SCRIPT = """
import resource, sys
from allspark.runtime.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()

size = 48 * 2**20

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def faults(keep, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT, "keep" if keep else "plain"]
    return int(subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="glibc alone does so")
def test_a_freed_buffer_is_used_again():
    assert faults(keep=True) < 100
    assert faults(keep=False) > 8000
    assert faults(keep=True, GLIBC_TUNABLES="glibc.malloc.tcache_count=0") < 100
    assert faults(keep=True, GLIBC_TUNABLES="glibc.malloc.trim_threshold=0:glibc.malloc.mmap_threshold=100000") > 8000
    assert faults(keep=True, MALLOC_TRIM_THRESHOLD_="0", MALLOC_MMAP_THRESHOLD_="100000") > 8000


AGAIN = """
import os, sys
from allspark.runtime.host_memory import restart_without_caches
print(os.getpid(), sys.argv[1:], flush=True)
restart_without_caches()
print(os.environ["GLIBC_TUNABLES"])
"""


@pytest.mark.skipif(sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="glibc alone does so")
@pytest.mark.parametrize("before", [None, "glibc.rtld.nns=3"])
def test_a_program_starts_again_once_as_it_was(before):
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment = clean | ({} if before is None else {"GLIBC_TUNABLES": before})
    command = [sys.executable, "-c", AGAIN, "train", "--out", "a b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second, tunables = done.stdout.splitlines()
    assert first == second and "['train', '--out', 'a b']" in first
    assert tunables == ("" if before is None else before + ":") + "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
    for users in ("glibc.malloc.tcache_count=3", "glibc.malloc.mxfast=64"):
        environment["GLIBC_TUNABLES"] = users
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[1:] == [users]


def test_a_container_limits_the_memory(tmp_path, monkeypatch):
    limits = tmp_path / "memory.max", tmp_path / "none"
    monkeypatch.setattr(host_memory, "_LIMITS", limits)
    limits[0].write_text("max\n")
    whole = host_memory.host_memory()
    assert whole is None or whole > 2**28
    limits[0].write_text("1000000\n")
    assert host_memory.host_memory() == 10**6
