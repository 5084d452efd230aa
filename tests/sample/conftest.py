import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two images: a red oblong one and a square one of soft colours."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    soft = np.random.default_rng(0).integers(0, 256, (3, 3, 3), np.uint8)
    Image.fromarray(soft).resize((16, 16), Image.Resampling.BICUBIC).save(folder / "soft.png")
    return [folder / "red.png", folder / "soft.png"]
