"""Checkpoints are whole, verified, and execute nothing."""

import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from allspark.engine.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from allspark.engine.run import open_run
from allspark.errors import CheckpointError

META = {"format": 1, "classes": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]], "note": "ü"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ein Lauf" / "last.safetensors"
    save_checkpoint(path, tensors(), META)
    return path


def tensors():
    torch.manual_seed(0)
    return {
        "model.w": torch.randn(3, 4).T,  # not contiguous
        "model.half": torch.randn(5).bfloat16(),
        "model.count": torch.tensor(7),
        "rng.cpu": torch.get_rng_state(),
        "model.empty": torch.zeros(0, 2),
    }


def test_what_is_saved_comes_back(path):
    checkpoint = load_checkpoint(path)
    assert checkpoint.meta == META
    for name, tensor in tensors().items():
        assert torch.equal(checkpoint.tensors[name], tensor) and checkpoint.tensors[name].dtype == tensor.dtype
    assert set(checkpoint.part("model.")) == {"w", "half", "count", "empty"}
    assert oct(os.stat(path).st_mode & 0o777) != oct(0o600)  # readable by others, as the umask says


def test_what_was_read_stays_when_the_file_is_written_over(path):
    found = load_checkpoint(path).tensors
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_named(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path)


def test_every_altered_byte_of_the_tensors_is_found(path):
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for position in [start, (start + len(content)) // 2, len(content) - 1]:
        altered = bytearray(content)
        altered[position] ^= 1
        path.write_bytes(altered)
        with pytest.raises(CheckpointError, match="altered"):
            load_checkpoint(path)


def test_altered_meta_data_is_found(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b'\\"a\\"', b'\\"c\\"'))
    with pytest.raises(CheckpointError, match="altered"):
        load_checkpoint(path)


def test_foreign_safetensors_and_pickles_are_refused(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        load_checkpoint(tmp_path / "foreign.safetensors")
    torch.save({"w": torch.zeros(2)}, tmp_path / "pickle.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "pickle.safetensors")


def test_another_format_is_named(tmp_path):
    save_checkpoint(tmp_path / "x.safetensors", {"w": torch.zeros(1)}, {**META, "format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="not a run"):
        open_run(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(checkpoint_path(tmp_path, "last"))


def test_a_real_write_error_leaves_the_old_checkpoint(path):
    """The kernel refuses to write more than 64 KiB: the file that stays is the old one, and no debris."""
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\nfrom allspark.engine.checkpoint import save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "try:\n    save_checkpoint(Path(sys.argv[1]), {'w': torch.zeros(1 << 20)}, {'format': 1})\n"
        "except OSError as error:\n    print('OSError', error)\n"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("OSError")
    assert load_checkpoint(path).meta == META
    assert [p.name for p in path.parent.iterdir()] == [path.name]
