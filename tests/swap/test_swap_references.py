"""An old neuron is replaced wherever the net holds it; where that is impossible, the error says where."""

import functools
import gc
import sys
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, monitor, neuron

from pmsn_plugins import swap_neurons
from pmsn_plugins.spikingjelly import PMSNNode, TCLIFNode
from pmsn_plugins.swap.references import Holders, StillHeldError, copied, replace

sys.path.insert(0, str(Path(__file__).parent))
from swapping import check_swap, forbid, same, snapshot

Pair = namedtuple("Pair", "first second")
N = 2


@dataclass
class Part:
    fire: object


class Slots:
    __slots__ = ("__fire", "name")

    def __init__(self, fire):
        self.__fire = fire

    def __call__(self, x):
        return self.__fire(x)


def run_with(fire, x, scale=1.0):
    return fire(scale * x)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.sn = nn.Linear(4, 4), neuron.IFNode()
        self.hold(self.sn)

    def forward(self, x):
        return self.call(3 * self.fc(x))


def form(hold, call):
    """A net that calls its neuron by another way than its registered name."""
    return type("Held", (Base,), {"hold": hold, "call": call, "__module__": __name__})


def in_closure(self, sn):
    def fire(x):
        return sn(x)

    self.fire = fire


def in_closure_of_self(self, sn):
    self.fire = lambda x: self.sn(x)


def in_default(self, sn):
    self.fire = lambda x, f=sn, *, g=sn: 0.5 * f(x) + 0.5 * g(x)


def in_nested_closure(self, sn):
    chain = [self.fc, (sn,)]

    def outer():
        def inner(x):
            return chain[1][0](x)

        return inner

    self.fire = outer()


def hold(path):
    """``self.held = ...`` as ``path`` makes it."""
    return lambda self, sn: setattr(self, "held", path(sn))


FORMS = {
    "list": form(hold(lambda sn: [None, sn]), lambda self, x: self.held[1](x)),
    "nested": form(hold(lambda sn: [[None], {"a": (1, [sn])}]), lambda self, x: self.held[1]["a"][1][0](x)),
    "tuple": form(hold(lambda sn: (sn, (sn, 1))), lambda self, x: self.held[1][0](x) + 0 * self.held[0](x)),
    "namedtuple": form(hold(lambda sn: Pair(sn, 1)), lambda self, x: self.held.first(x)),
    "dict": form(hold(lambda sn: {"fire": sn}), lambda self, x: self.held["fire"](x)),
    "ordered dict": form(hold(lambda sn: OrderedDict(fire=sn)), lambda self, x: self.held["fire"](x)),
    "default dict": form(
        hold(lambda sn: defaultdict(list, fire=[sn])), lambda self, x: self.held["fire"][0](x)
    ),
    "dict key": form(hold(lambda sn: {sn: 2.0, "b": sn}), lambda self, x: next(iter(self.held))(x)),
    "dict key and value": form(hold(lambda sn: {sn: sn}), lambda self, x: self.held[self.sn](x)),
    "set": form(hold(lambda sn: {sn}), lambda self, x: next(iter(self.held))(x)),
    "frozen set": form(hold(lambda sn: frozenset([sn])), lambda self, x: next(iter(self.held))(x)),
    "deque": form(hold(lambda sn: deque([sn])), lambda self, x: self.held[0](x)),
    "object": form(hold(Part), lambda self, x: self.held.fire(x)),
    "object in object": form(hold(lambda sn: Part(Part(sn))), lambda self, x: self.held.fire.fire(x)),
    "slots": form(hold(Slots), lambda self, x: self.held(x)),
    "attribute past registration": form(
        lambda self, sn: vars(self).__setitem__("other", sn), lambda self, x: self.other(x)
    ),
    "bound method": form(hold(lambda sn: sn.forward), lambda self, x: self.held(x)),
    "bound method in tuple": form(hold(lambda sn: (sn.forward,)), lambda self, x: self.held[0](x)),
    "partial": form(hold(lambda sn: functools.partial(sn)), lambda self, x: self.held(x)),
    "partial argument": form(hold(lambda sn: functools.partial(run_with, sn)), lambda self, x: self.held(x)),
    "partial keyword": form(hold(lambda sn: functools.partial(run_with, fire=sn)), lambda self, x: self.held(x=x)),
    "partial of a method": form(hold(lambda sn: functools.partial(sn.__call__)), lambda self, x: self.held(x)),
    "weak reference": form(hold(weakref.ref), lambda self, x: self.held()(x)),
    "closure": form(in_closure, lambda self, x: self.fire(x)),
    "closure of self": form(in_closure_of_self, lambda self, x: self.fire(x)),
    "default argument": form(in_default, lambda self, x: self.fire(x)),
    "nested closure": form(in_nested_closure, lambda self, x: self.fire(x)),
    "a second name": form(lambda self, sn: setattr(self, "act", sn), lambda self, x: self.act(x)),
    "module list": form(lambda self, sn: setattr(self, "acts", nn.ModuleList([sn])), lambda self, x: self.acts[0](x)),
    "a module in a list": form(
        hold(lambda sn: [nn.Sequential(nn.Identity(), sn)]), lambda self, x: self.held[0](x)
    ),
    "hook": form(
        lambda self, sn: self.fc.register_forward_hook(lambda m, i, y: sn(y)), lambda self, x: x
    ),
}  # fmt: skip


@pytest.mark.parametrize("sample", [True, False], ids=["sample", "no sample"])
@pytest.mark.parametrize("name", FORMS)
def test_it_is_replaced_wherever_it_is_held(name, sample):
    net, report = check_swap(FORMS[name], PMSNNode, torch.rand(N, 4), others=(torch.rand(N + 3, 4),), sample=sample)
    assert report["sn"] == 4 and type(net.sn) is PMSNNode
    assert not any(isinstance(obj, neuron.IFNode) for obj in Holders(net).found.values())


@pytest.mark.parametrize("name", FORMS)
def test_it_is_put_back_everywhere(name):
    """The new neuron does not fit the input, which only the swapped net's dry run finds out."""

    class Refuses(nn.Module):
        def forward(self, x):
            raise RuntimeError("not this one")

    net, x = FORMS[name](), torch.rand(N, 4)
    before, first = snapshot(net), net(x)
    functional.reset_net(net)
    with pytest.raises(ValueError, match="the swapped net does not take sample_input: RuntimeError: not this one"):
        swap_neurons(net, Refuses, x)
    assert same(before, snapshot(net)) and type(net.sn) is neuron.IFNode
    assert not any(isinstance(obj, Refuses) for obj in Holders(net).found.values())
    assert torch.equal(net(x), first)


def test_copies_are_independent_of_the_net():
    for build in FORMS.values():
        net = build()
        net(torch.rand(N, 4)).sum().backward()  # leaves states with a graph, which torch cannot copy
        twin = copied(net)
        forbid(net.sn)
        with torch.no_grad():
            functional.reset_net(twin)
            twin(torch.rand(N, 4))
        assert twin.sn is not net.sn and torch.equal(twin.fc.weight, net.fc.weight)


GLOBAL = []


def generator_of(sn):
    while True:
        x = yield
        yield sn(x)


class ReadsAGlobal(Base):
    def hold(self, sn):
        GLOBAL[:] = [sn]

    def call(self, x):
        return helper(x)


def helper(x):
    return GLOBAL[0](x)


class ClassAttribute(Base):
    registry = {}  # noqa: RUF012

    def hold(self, sn):
        self.registry["sn"] = sn

    def call(self, x):
        return self.registry["sn"](x)


class Method(Base):
    """A method that the new neuron does not have."""

    def hold(self, sn):
        self.charge = sn.single_step_forward

    def call(self, x):
        return self.sn(x)


class Generator(Base):
    def hold(self, sn):
        self.steps = generator_of(sn)
        next(self.steps)

    def call(self, x):
        return self.sn(x)


class FarOutside(Base):
    """Code that we cannot read: the dry run finds it."""

    def hold(self, sn):
        functional.held_by_a_test = sn

    def call(self, x):
        return functional.held_by_a_test(x)


@pytest.mark.parametrize("sample", [True, False], ids=["sample", "no sample"])
@pytest.mark.parametrize(
    ("build", "where"),
    [
        (ReadsAGlobal, r"net\.hold \(global GLOBAL\)\[0\]"),
        (ClassAttribute, r"net\.registry\['sn'\]"),
        (Method, r"net\.charge: .*has no attribute 'single_step_forward'"),
        (Generator, r"net\.steps, a generator"),
    ],
)
def test_what_cannot_be_followed_is_an_error_that_says_where(build, where, sample):
    class NoSuchMethod(nn.Module):
        def forward(self, x):
            return x

    net = build()
    before = snapshot(net)
    new = NoSuchMethod if build is Method else TCLIFNode
    with pytest.raises(ValueError, match=where):
        swap_neurons(net, new, torch.ones(N, 4) if sample else None)
    assert same(before, snapshot(net))
    GLOBAL.clear()


def test_the_dry_run_finds_what_no_walk_can():
    net = FarOutside()
    before = snapshot(net)
    try:
        with pytest.raises(
            ValueError, match="a copy of the net calls the original sn: something outside the net holds"
        ):
            swap_neurons(net, TCLIFNode, torch.ones(N, 4))
    finally:
        del functional.held_by_a_test
    assert same(before, snapshot(net)) and "forward" not in vars(net.sn)


def test_variables_of_the_user_are_no_error():
    sn = neuron.IFNode()
    net = nn.Sequential(nn.Linear(4, 4), sn)
    globals()["sn"] = sn  # a script's variable, of a name that Sequential's own code uses too
    try:
        swap_neurons(net, TCLIFNode)
    finally:
        del globals()["sn"]
    assert type(net[1]) is TCLIFNode and type(sn) is neuron.IFNode


def test_the_old_neuron_is_gone():
    net = FORMS["closure"]()
    old = weakref.ref(net.sn)
    swap_neurons(net, TCLIFNode, torch.rand(N, 4))
    gc.collect()
    assert old() is None


def test_what_stays_of_the_old_neurons_is_said():
    class Net(Base):
        def hold(self, sn):
            self.sn = neuron.ParametricLIFNode()
            self.weights = [self.fc.weight, self.sn.w]
            self.spare = [neuron.IFNode()]

        def call(self, x):
            return self.spare[0](self.sn(x))

    net = Net()
    net.sn.register_forward_hook(lambda *args: None)
    with pytest.warns(UserWarning) as warned:
        swap_neurons(net, PMSNNode, torch.rand(N, 4))
    messages = "\n".join(str(w.message) for w in warned)
    assert "net.weights[1] is w of the old sn, which is gone" in messages
    assert "net.spare[0] is no registered module of the net and was left as it is" in messages
    assert "hooks on sn are gone with it" in messages


def test_monitors_see_nothing_of_a_dry_run():
    net = nn.Sequential(nn.Linear(4, 4), neuron.IFNode())
    records = monitor.OutputMonitor(net, nn.Linear).records
    swap_neurons(net, PMSNNode, torch.rand(N, 4))
    assert records == []


def test_what_cannot_be_copied_is_shared_with_the_copy():
    net = FORMS["closure"]()
    net.part = Part(Part(generator_of(None)))
    twin = copied(net)
    assert twin.part is not net.part and twin.part.fire.fire is net.part.fire.fire


def test_replace_all_or_nothing():
    a, b, c = Part(1), Part(2), Part(3)
    root = Part([a, (b, a)])
    undo = replace(root, {a: c})
    assert root.fire[0] is c and root.fire[1] == (b, c)
    undo()
    assert root.fire[0] is a and root.fire[1][1] is a
    root.fire.append(part for part in [a])
    with pytest.raises(StillHeldError, match=r"net\.fire\[2\]"):
        replace(root, {a: c})
    assert root.fire[0] is a


Part.__hash__ = object.__hash__
