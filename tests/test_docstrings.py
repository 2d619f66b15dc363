"""Every public function and every neuron has an example in its docstring, and it runs."""

import doctest
import importlib
import inspect
from importlib.metadata import version

import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")
if version("spikingjelly").startswith("0."):
    pytest.skip("the examples are written for the newest releases", allow_module_level=True)

MODULES = [
    *("functional", "kernels", "swap", "parameters", "registration", "layers", "nir", "checkpoints"),
    *("spikingjelly", "spikingjelly.resnet", "spikingjelly.clock_driven", "snntorch"),
    *("models", "datasets", "training", "analysis"),
]
ADAPTERS = [importlib.import_module(f"pmsn_plugins.{name}") for name in ("spikingjelly", "snntorch")]
# these read files that are downloaded, or train for minutes; ATan is a class with the arguments of an old one
WITHOUT = {
    *("mnist_source", "cifar_source", "imagenet_source", "speech_commands_source", "spoken_source"),
    *("compartment_sweep", "reset_ablation", "quadrant_search", "ATan"),
}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


def public_functions():
    found = {}
    for module in (importlib.import_module(f"pmsn_plugins.{name}") for name in MODULES):
        defined = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        for name in getattr(module, "__all__", defined):
            function = getattr(module, name)
            shown = inspect.isfunction(function) or (module in ADAPTERS and inspect.isclass(function))
            if shown and not name.startswith("_") and name not in WITHOUT:
                found[f"{function.__module__.removeprefix('pmsn_plugins.')}.{name}"] = function, module
    return found


FUNCTIONS = public_functions()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, public = FUNCTIONS[name]
    module = inspect.getmodule(function)
    known = {**vars(module), **vars(public), "torch": torch, "nn": torch.nn}
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, module=module, globs=known)
    assert test.examples, f"the docstring of {name} has no example"
    said = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert not said, "".join(said)
