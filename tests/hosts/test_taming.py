"""What the conformance suite leaves out for taming: shared checkpoints, and an import fix that is undone."""

import subprocess
import sys

import pytest
import torch
from helpers.tiny_hosts import DDCONFIG, taming_lightning, tiny

import tavq_plugin as tavq


@pytest.mark.parametrize("kind", ["vq", "gumbel"])
def test_the_plain_vqgan_and_tamings_own_share_checkpoints(kind):
    theirs, ours = taming_lightning(kind).model, tiny(f"taming-{kind}")
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())


@pytest.mark.slow
def test_the_import_fix_is_undone():
    pytest.importorskip("taming")
    code = (
        "import sys\n"
        "from tavq_plugin.adapters.taming import enable_legacy_imports\n"
        "with enable_legacy_imports():\n"
        "    import taming.models.vqgan\n"
        "assert 'main' not in sys.modules and 'taming.main' not in sys.modules, sys.modules\n"
        "assert not hasattr(sys.modules['taming'], 'main')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_target_outside_the_allowed_packages_is_refused():
    pytest.importorskip("taming")
    from tavq_plugin.adapters.taming import enable_legacy_imports

    with enable_legacy_imports():
        from taming.models.vqgan import VQModel

        with pytest.raises(ValueError, match="outside the allowed packages"):
            VQModel(DDCONFIG, {"target": "os.system"}, n_embed=4, embed_dim=8)


def test_gumbel_refuses_grad_to_encoder():
    with pytest.raises(ValueError, match='grad_to="encoder" is impossible'):
        tavq.wrap(tiny("taming-gumbel"), grad_to="encoder")


def test_the_adapters_are_no_global_package():
    run = subprocess.run(
        [sys.executable, "-c", "import adapters"], cwd=torch.__path__[0], capture_output=True, text=True
    )
    assert run.returncode != 0 and "No module named 'adapters'" in run.stderr
