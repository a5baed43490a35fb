"""A folder of real images, if TAVQ_PACK names one; none of its content is kept."""

import os
from pathlib import Path

import pytest

from tavq_plugin.data.folders import ImageTextFolder
from tavq_plugin.data.images import load_images

FOLDER = os.environ.get("TAVQ_PACK")
pytestmark = pytest.mark.skipif(not FOLDER, reason="TAVQ_PACK does not name the folder of a real pack")


def test_a_real_folders_split_is_used_and_its_images_are_read():
    pack = ImageTextFolder.read(Path(FOLDER))
    train, held_out, test = pack.split(n_train=200, n_eval=50)
    assert (len(train), len(held_out), len(test)) == (200, 50, 1000)
    assert {record.source for record in train} == {record.source for record in held_out + test} == {"flickr8k"}
    assert not {record.id for record in train} & {record.id for record in held_out + test}
    assert all(record.text for record in held_out)
    images = load_images([record.image for record in held_out], 32, progress=False)
    assert images.shape == (50, 3, 32, 32) and images.float().std() > 20
