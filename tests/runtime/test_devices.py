"""What launchers say of processes is looked at before anything waits for them."""

import pytest

from allspark.config.schema import TrainConfig
from allspark.errors import ConfigError
from allspark.runtime.devices import start_processes


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LOCAL_RANK": "abc"}, "LOCAL_RANK is 'abc', expected a number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a number"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT are not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "WORLD_SIZE is 2, but MASTER_ADDR is not set"),
    ],
)
def test_an_environment_that_makes_no_sense_is_one_line(monkeypatch, variables, said):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        start_processes(TrainConfig(device="cpu"), 1)
