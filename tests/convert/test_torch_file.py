import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests.convert.torch_save import Call, Named, Storage, tensor, torch_save, write_archive
from unclip_jax.convert.torch_file import TorchFile
from unclip_jax.core.errors import UserError


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, ml_dtypes.bfloat16])
def test_tensors_of_every_kind(tmp_path, dtype):
    arrays = {"a.weight": np.arange(6).reshape(2, 3).astype(dtype), "scalar": np.array(3).astype(dtype)}
    torch_save(tmp_path / "x.bin", arrays)
    file = TorchFile(tmp_path / "x.bin")
    assert file.shapes == {"a.weight": (2, 3), "scalar": ()}
    for name, array in arrays.items():
        read = file.read(name)
        assert read.dtype == dtype and (read == array).all()


def test_views_share_a_storage(tmp_path):
    storage = Storage("0", np.arange(12, dtype=np.float32))
    root = {"transposed": tensor(storage, 0, (4, 3), (1, 4)), "slice": tensor(storage, 5, (2,), (3,))}
    write_archive(tmp_path / "x.bin", root, [storage])
    file = TorchFile(tmp_path / "x.bin")
    assert (file.read("transposed") == np.arange(12).reshape(3, 4).T).all()
    assert (file.read("slice") == [5, 8]).all()


def test_a_state_dict_is_what_counts(tmp_path):
    arrays = {"state_dict": {"a": np.ones(2, np.float32)}, "epoch": 3, "optimizer": {"b": np.ones(1, np.float32)}}
    torch_save(tmp_path / "x.ckpt", arrays)
    assert TorchFile(tmp_path / "x.ckpt").shapes == {"a": (2,)}
    torch_save(tmp_path / "stats.th", (np.zeros(2, np.float32), np.ones(2, np.float32)))
    assert TorchFile(tmp_path / "stats.th").shapes == {"0": (2,), "1": (2,)}


def test_torchscript_modules_are_read_as_their_attributes(tmp_path):
    storage = Storage("0", np.arange(2, dtype=np.float32))
    inner = Call(Named("__torch__.multimodal", "Linear"), state={"weight": tensor(storage, 0, (2,), (1,))})
    root = Call(Named("__torch__.multimodal", "CLIP"), state={"training": False, "visual": inner})
    write_archive(tmp_path / "x.pt", root, [storage])
    file = TorchFile(tmp_path / "x.pt")
    assert file.shapes == {"visual.weight": (2,)} and (file.read("visual.weight") == [0, 1]).all()


class Sly:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    "function", [Named("os", "system"), Named("builtins", "eval"), Named("torch", "load"), Named("numpy", "load")]
)
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, capsys, function):
    write_archive(tmp_path / "x.bin", {"a": Call(function, "echo ran")}, [])
    with pytest.raises(UserError, match=rf"x.bin asks for {function.module}.{function.name}, which is no tensor"):
        TorchFile(tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "y.bin", "w") as archive:
        archive.writestr("y/data.pkl", pickle.dumps({"a": Sly()}))
    with pytest.raises(UserError, match="y.bin asks for builtins.print"):
        TorchFile(tmp_path / "y.bin")
    assert capsys.readouterr().out == ""


def test_damaged_files(tmp_path):
    path = tmp_path / "x.bin"
    with pytest.raises(UserError, match="x.bin is missing"):
        TorchFile(path)
    torch_save(path, {"a": np.arange(4096, dtype=np.float32)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="x.bin is truncated or no zip archive"):
        TorchFile(path)
    path.write_bytes(b"not a zip at all")
    with pytest.raises(UserError, match="x.bin is truncated or no zip archive"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"no pickle")
    with pytest.raises(UserError, match="x.bin holds a pickle that cannot be read"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="x.bin is no file of torch.save"):
        TorchFile(path)


def test_storages_that_are_not_what_the_pickle_says(tmp_path):
    path, storage = tmp_path / "x.bin", Storage("0", np.arange(4, dtype=np.float32))
    views = (((5,), (1,), 0), ((2,), (4,), 0), ((2,), (1,), 3), ((2,), (-1,), 1), ((1,), (1,), -1))
    for shape, strides, offset in views:
        write_archive(path, {"a": tensor(storage, offset, shape, strides)}, [storage])
        with pytest.raises(UserError, match="tensor a reaches beyond its storage"):
            TorchFile(path).read("a")
    write_archive(path, {"a": tensor(storage, 0, (4,), (1,))}, [])
    with pytest.raises(UserError, match="the numbers of tensor a are missing or cut"):
        TorchFile(path).read("a")
    write_archive(path, {"a": tensor(storage, 0, (4,), (1,))}, [storage], zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="x.bin is compressed"):
        TorchFile(path).read("a")


def test_a_pickle_that_contains_itself(tmp_path):
    loop: dict = {}
    loop["again"] = loop
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(loop))
    with pytest.raises(UserError, match="holds a pickle that cannot be read"):
        TorchFile(tmp_path / "x.bin")
