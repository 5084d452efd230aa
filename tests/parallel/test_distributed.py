import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.parallel import distributed
from unclip_jax.parallel.distributed import ClusterSpec, how_to_join

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
BY_HAND = {"coordinator": "10.0.0.2:8476", "num_processes": 4, "process_id": 3}
JOINED_BY_HAND = {
    "coordinator_address": "10.0.0.2:8476",
    "num_processes": 4,
    "process_id": 3,
    "cluster_detection_method": "deactivate",
}


@pytest.mark.parametrize(
    ("env", "has_tpu", "expected"),
    [
        ({}, False, None),
        (SLURM, False, {}),
        (SLURM | {"SLURM_NTASKS": "1"}, False, None),
        # In a job, but not started by srun.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, False, {}),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, True, None),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, True, {}),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_COORDINATOR_ADDRESS": "a:8080"}, True, {}),
        ({}, True, {}),
        ({"JAX_PLATFORMS": "cpu"}, True, None),
        ({"JAX_PLATFORMS": "tpu,cpu"}, True, {}),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        (
            {"JAX_COORDINATOR_ADDRESS": "10.0.0.2:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
            False,
            JOINED_BY_HAND,
        ),
        # JAX reads the address itself where a cluster says the rest.
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "10.0.0.2:8476"}, False, {}),
    ],
)
def test_what_the_environment_says(env, has_tpu, expected):
    assert how_to_join(ClusterSpec(), env, has_tpu) == expected


def test_what_is_given_comes_first():
    assert how_to_join(ClusterSpec(**BY_HAND), SLURM, True) == JOINED_BY_HAND
    assert how_to_join(ClusterSpec(num_processes=1), SLURM, True) is None


def test_a_plain_machine_joins_nobody(monkeypatch):
    def never(**_):
        raise AssertionError("looked for others")

    monkeypatch.setattr("jax.distributed.initialize", never)
    monkeypatch.setattr(distributed, "_has_tpu", lambda: False)
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    distributed.start(ClusterSpec())


def test_a_cluster_that_does_not_answer(monkeypatch):
    def fail(**_):
        raise ValueError("coordinator_address should be defined.\nmore")

    monkeypatch.setattr("jax.distributed.initialize", fail)
    monkeypatch.setattr(distributed, "_at_abort", lambda *_: None)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^cannot join .*\(ValueError: coordinator_address should be defined.\); give"):
        distributed.start(ClusterSpec())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (BY_HAND | {"coordinator": "10.0.0.2"}, "the coordinator is 10.0.0.2; give host:port"),
        (BY_HAND | {"process_id": 4}, "process_id is 4 of 4 processes; they are numbered from 0"),
        (BY_HAND | {"process_id": -1}, "process_id is -1"),
        (BY_HAND | {"num_processes": 0}, "num_processes is 0"),
        ({"coordinator": "a:1"}, "num_processes=None, process_id=None; give all three"),
        ({"num_processes": 2}, "coordinator='', num_processes=2, process_id=None; give all three"),
        ({"start_timeout": 0}, "start_timeout is 0; it must be 1 or more"),
        ({"heartbeat_timeout": 0}, "heartbeat_timeout is 0"),
    ],
)
def test_settings_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message):
        ClusterSpec(**fields)


@pytest.mark.parametrize("variable", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_an_environment_that_makes_no_sense(variable):
    env = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    with pytest.raises(UserError, match=f"{variable} is 'two' in the environment"):
        how_to_join(ClusterSpec(), env | {variable: "two"}, False)
