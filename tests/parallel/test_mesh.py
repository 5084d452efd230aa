import jax
import pytest
from jax.sharding import AxisType

from unclip_jax.core.errors import UserError
from unclip_jax.parallel.mesh import MeshSpec, make_mesh


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (MeshSpec(), (8, 1, 1)),
        (MeshSpec(data=2, fsdp=-1), (2, 4, 1)),
        (MeshSpec(data=2, fsdp=2, tensor=2), (2, 2, 2)),
        (MeshSpec(data=1, tensor=-1), (1, 1, 8)),
    ],
)
def test_sizes(spec, shape):
    mesh = make_mesh(spec)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_some_devices():
    mesh = make_mesh(MeshSpec(), jax.devices()[:2])
    assert mesh.devices.ravel().tolist() == jax.devices()[:2]


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": 4}, {"fsdp": 16}, {"data": -1, "tensor": 5}])
def test_does_not_fit(sizes):
    with pytest.raises(UserError, match="does not fit 8 devices"):
        make_mesh(MeshSpec(**sizes))


def test_bad_sizes():
    with pytest.raises(UserError, match="fsdp=0"):
        MeshSpec(fsdp=0)
    with pytest.raises(UserError, match="two mesh axes"):
        MeshSpec(data=-1, fsdp=-1)
