"""A file may name only classes of allowed packages, at every depth; anything else is refused, and no code runs."""

import os
import pickle
import re

import pytest
import torch
from helpers.tiny_hosts import DDCONFIG
from torch import nn
from typer.testing import CliRunner

from tavq_plugin.cli.app import app
from tavq_plugin.hosts.instantiate import BUILDERS, builder_of, instantiate
from tavq_plugin.hosts.user_setup import load_setup

yaml = pytest.importorskip("yaml")
VQMODEL = "taming.models.vqgan.VQModel"


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path):
    """The path of a file that code hidden in `tmp_path` writes if it runs."""
    path = tmp_path / "ran"
    code = f"open({str(path)!r}, 'w')\n"
    for name in ("evil.py", "hubconf.py"):
        (tmp_path / name).write_text(code)
    (tmp_path / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}')
    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump(Payload(path), file)
    return path


def vqmodel(**params):
    return {"target": VQMODEL, "params": {"ddconfig": DDCONFIG, "n_embed": 8, "embed_dim": 8, **params}}


def hidden(marker):
    """Configurations that ask for code to be run, by name."""
    folder = str(marker.parent)
    touch = {"command": f"touch {marker}"}
    hub = {"target": "torch.hub.load", "params": {"repo_or_dir": folder, "model": "x", "source": "local"}}
    pickled = {"target": "torch.load", "params": {"f": f"{folder}/evil.pt", "weights_only": False}}
    system = {"target": "os.system", "params": touch}
    return {
        "own resolver": {"target": "tavq_plugin.hosts.instantiate.instantiate", "params": {**system, "allow": ["os"]}},
        "own loader": {
            "target": "tavq_plugin.hosts.user_setup.load_setup",
            "params": {"target": f"{folder}/evil.py:h"},
        },
        "remote code": {"target": "transformers.pipeline", "params": {"model": folder, "trust_remote_code": True}},
        "pipeline": {"target": "transformers.pipeline", "params": {"model": folder}},
        "nested hub": vqmodel(lossconfig=hub),
        "nested pickle": vqmodel(lossconfig=pickled),
        "nested twice": vqmodel(lossconfig={"target": "torch.nn.Identity", "params": {"x": [{"y": system}]}}),
    }


WORDS = {
    "own resolver": "target 'tavq_plugin.hosts.instantiate.instantiate' is outside the allowed packages",
    "own loader": "target 'tavq_plugin.hosts.user_setup.load_setup' is outside the allowed packages",
    "remote code": "params.trust_remote_code is True",
    "pipeline": "target 'transformers.pipeline' is a function",
    "nested hub": "params.lossconfig.target 'torch.hub.load' is outside the allowed packages",
    "nested pickle": "params.lossconfig.params.weights_only is False",
    "nested twice": "params.lossconfig.params.x[0].y.target 'os.system' is outside the allowed packages",
}


@pytest.mark.parametrize("case", WORDS)
@pytest.mark.parametrize("command", ["doctor", "train", "compare"])
def test_hidden_code_is_refused_by_every_command_and_does_not_run(command, case, marker, tmp_path):
    for package in ("taming", "transformers", "accelerate"):
        pytest.importorskip(package)
    config, path, out = hidden(marker)[case], tmp_path / "given.yaml", tmp_path / "out"
    if command == "doctor":
        path.write_text(yaml.safe_dump({"model": config}))
        arguments = ["doctor", str(path)]
    else:
        path.write_text(yaml.safe_dump({"host": config, "steps": 1, "resolution": 32, "tracker": "none"}))
        arguments = [command, "--recipe", str(path), "--out", str(out), "--train", "8", "--eval", "2"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})
    assert not marker.exists()
    assert result.exit_code == 2 and WORDS[case] in " ".join(result.output.split()), result.output
    assert command == "doctor" or f"host.{WORDS[case]}" in " ".join(result.output.split())
    assert not out.exists()  # refused before anything is drawn, read or written


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_network_of_a_perceptual_loss_is_checked_too(command, tmp_path):
    pytest.importorskip("accelerate")
    recipe = {"perceptual": {"kind": "frozen", "network": "torch.hub.load", "layers": ["a"], "path": "x"}}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [command, "--recipe", str(tmp_path / "given.yaml"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})
    assert result.exit_code == 2 and "perceptual.network 'torch.hub.load' is outside" in result.output, result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("os.system", "is outside the allowed packages .*--allow its package"),
        ("OS.system", "is outside the allowed packages"),
        ("Torch.nn.Identity", "is outside the allowed packages"),
        ("torch.load", "is outside the allowed packages"),
        ("torch.nnx.Identity", "is outside the allowed packages"),
        ("torch.jit.CompilationUnit", "is outside the allowed packages"),
        ("taming.models.vqgan.torch.load", "'taming.models.vqgan' is not a package"),
        ("transformers.utils.os.system", "is no module"),
        ("taming.models.vqgan.torch", "is a module"),
        ("taming.main.importlib.import_module", "is no module"),
        ("taming.models.vqgan.instantiate_from_config", "is a function"),
        ("tavq_plugin.adapters.taming.ModuleType", "is a class, but no subclass of torch.nn.Module"),
        ("tavq_plugin.adapters.taming.import_module", "is refused|has no import_module"),
        ("tavq_plugin.adapters.taming.VQGANN", "has no VQGANN"),
        ("torch.nn.functional.linear", "is a builtin_function_or_method"),
        ("torch.nn.Parameter", "no subclass of torch.nn.Module"),
        ("torchvision.models.get_model", "is a function"),
        ("transformers.AutoModel", "no subclass of torch.nn.Module"),
        ("transformers.__main__.main", "give the class as package.module.Class"),
        (" torch.nn.Identity", "give the class as package.module.Class"),
        ("torch.nn.Identity\n", "give the class as package.module.Class"),
        ("torch.nn:Identity", "give the class as package.module.Class"),
        (".torch.nn.Identity", "give the class as package.module.Class"),
        ("Identity", "give the class as package.module.Class"),
        ("", "give the class as package.module.Class"),
        (None, "give the class as package.module.Class"),
        (["torch.nn.Identity"], "give the class as package.module.Class"),
    ],
)
def test_other_targets_are_refused_at_every_depth(target, words):
    for package in ("taming", "transformers", "torchvision"):
        pytest.importorskip(package)
    with pytest.raises(ValueError, match=rf"(?s)^target {re.escape(repr(target))}.*({words})"):
        instantiate(target, {})
    for key in ("target", "_target_", "class_path"):
        with pytest.raises(ValueError, match=rf"(?s)^params\.a\[1\]\.{key} {re.escape(repr(target))}.*({words})"):
            instantiate("torch.nn.Identity", {"a": (0, {key: target})})


def test_an_allowed_package_may_give_only_classes(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "import subprocess\nfrom subprocess import Popen\n"
        "from helpers.tiny_hosts import Autoencoder\nfrom torch import nn\n"
        "class Host(nn.Module):\n    pass\ndef host():\n    return Host()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert type(instantiate("theirs.Host", {}, allow=["theirs"])).__name__ == "Host"
    with pytest.raises(ValueError, match=r"'theirs.host' is a function.*file.py:function"):
        instantiate("theirs.host", {}, allow=["theirs"])
    with pytest.raises(ValueError, match=r"'theirs.Popen' is a class, but no subclass of torch.nn.Module"):
        instantiate("theirs.Popen", {"args": ["true"]}, allow=["theirs", "subprocess"])
    with pytest.raises(ValueError, match=r"is defined in helpers.tiny_hosts, outside .*--allow helpers"):
        instantiate("theirs.Autoencoder", {}, allow=["theirs"])
    for package in ("os", "tavq_plugin"):
        target = {"os": "os.system", "tavq_plugin": "tavq_plugin.hosts.instantiate.instantiate"}[package]
        with pytest.raises(ValueError, match="is a (function|builtin_function_or_method)"):
            instantiate(target, {}, allow=[package])
    host, _, _ = load_setup(f"{tmp_path}/theirs.py:host")  # given on the command line: the user's own code
    assert type(host).__name__ == "Host"


@pytest.mark.parametrize("value", [True, "true", 1, "False", None, [False]])
def test_remote_code_is_refused_at_every_depth(value):
    for key in ("trust_remote_code", "Trust-Remote-Code "):
        with pytest.raises(ValueError, match=rf"params\.a\[0\]\.{key} is .*remove it, or give False"):
            instantiate("torch.nn.Identity", {"a": [{key: value}]})
    assert isinstance(instantiate("torch.nn.Identity", {"a": [{"trust_remote_code": False}]}), nn.Identity)


def test_parameters_are_names_and_values_and_may_contain_themselves():
    with pytest.raises(ValueError, match=r"params is \[1\]: give names and values"):
        instantiate("torch.nn.Identity", [1])
    cyclic = {}
    cyclic["again"] = [cyclic]
    assert isinstance(instantiate("torch.nn.Identity", cyclic), nn.Identity)
    cyclic["target"] = "os.system"
    with pytest.raises(ValueError, match=r"^params\.a\[0\]\.target 'os\.system'"):
        instantiate("torch.nn.Identity", {"a": cyclic["again"]})


def test_a_target_is_not_hidden_by_another_with_the_same_place():
    system, identity = {"target": "os.system"}, {"target": "torch.nn.Identity"}
    for params in ({"a": {"b": system}, "a.b": identity}, {"a": [system], "a[0]": identity}):
        with pytest.raises(ValueError, match=r"'os\.system' is outside"):
            instantiate("torch.nn.Identity", params)


@pytest.mark.parametrize("content", ["a: [", "[1]", "model: 3", "model: {}", "target: 3", "target: {a: b}"])
def test_a_file_that_names_no_class_is_refused(tmp_path, content):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"c\.yaml|package\.module\.Class"):
        load_setup(str(tmp_path / "c.yaml"))


def test_python_tags_are_not_read(marker, tmp_path):
    (tmp_path / "c.yaml").write_text(f"target: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(ValueError, match="is not YAML"):
        load_setup(str(tmp_path / "c.yaml"))
    assert not marker.exists()


@pytest.mark.parametrize("target", sorted(BUILDERS))
def test_every_builder_exists_and_torchvisions_build_modules(target):
    pytest.importorskip(target.split(".")[0])
    assert builder_of(target, {}).__name__ == target.rpartition(".")[2]
    if target.startswith("torchvision"):
        with torch.device("meta"):
            assert isinstance(instantiate(target, {}), nn.Module)


def test_known_configurations_of_taming_are_built(tmp_path):
    pytest.importorskip("taming")
    schedule = {
        "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
        "params": {"warm_up_steps": 0, "lr_min": 0.1, "lr_max": 1.0, "lr_start": 1.0, "max_decay_steps": 9},
    }
    loss = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
    config = vqmodel(lossconfig=loss, temperature_scheduler_config=schedule, kl_weight=1e-8)
    host = instantiate("taming.models.vqgan.GumbelVQ", config["params"])
    assert type(host.temperature_scheduler).__name__ == "LambdaWarmUpCosineScheduler"
    assert type(host.loss).__name__ == "DummyLoss"


def test_a_users_own_loss_may_be_nested_if_its_package_is_allowed(tmp_path, monkeypatch):
    pytest.importorskip("taming")
    (tmp_path / "my_loss.py").write_text("from torch import nn\nclass Loss(nn.Module):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = vqmodel(lossconfig={"target": "my_loss.Loss"})
    with pytest.raises(ValueError, match=r"^params\.lossconfig\.target 'my_loss\.Loss' is outside"):
        instantiate(**config)
    assert type(instantiate(**config, allow=["my_loss"]).loss).__name__ == "Loss"


def test_a_target_that_taming_resolves_itself_is_checked_too(marker):
    pytest.importorskip("taming")
    from tavq_plugin.adapters.taming import enable_legacy_imports

    with enable_legacy_imports():
        from taming.models.vqgan import VQModel
    with pytest.raises(ValueError, match=r"^target 'torch\.hub\.load' is outside"):
        VQModel(**hidden(marker)["nested hub"]["params"])
    assert not marker.exists()


@pytest.mark.parametrize("forced", [False, True])
def test_a_checkpoint_that_a_file_names_is_read_without_running_it(marker, tmp_path, monkeypatch, forced):
    pytest.importorskip("taming")
    (tmp_path / "lax.py").write_text(
        "import torch\nclass Lax(torch.nn.Module):\n    def __init__(self, path):\n        super().__init__()\n"
        "        torch.load(path, weights_only=False)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": Payload(marker)}, tmp_path / "evil.ckpt")
    path, before = str(tmp_path / "evil.ckpt"), dict(os.environ)
    for config in (vqmodel(ckpt_path=path, lossconfig={"target": "torch.nn.Identity"}),
                   {"target": "lax.Lax", "params": {"path": path}}):  # fmt: skip
        with pytest.raises(ValueError, match=r"reads a checkpoint that holds more than tensors.*convert-checkpoint"):
            instantiate(**config, allow=["lax"])
        assert not marker.exists() and dict(os.environ) == before
