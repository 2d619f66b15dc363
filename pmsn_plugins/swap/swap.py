"""The steps of a swap: look, make, exchange, check; nothing is changed until all that can fail has been tried."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from .batch_first import BatchFirst
from .channels import (
    DEFAULT_AXIS,
    CannotTellError,
    ChannelAxis,
    Channels,
    registered_channels,
    seen_channels,
    wanted_axis,
)
from .dry_run import Calls, DryRun, Moving, OriginalCalledError, untouched_random_numbers
from .frameworks import Framework, frameworks
from .maker import Maker
from .memory_axis import memory_axis
from .references import Holders, StillHeldError, check_replaceable, replace
from .report import Replacement, SwapReport
from .returned import GRADED, OTHER
from .targets import Selection, select

LINES = 12
"""Of one error."""


class Swap:
    """One call of :func:`pmsn_plugins.swap_neurons`, whose arguments it takes."""

    def __init__(
        self,
        net: nn.Module,
        neuron: Callable[..., nn.Module],
        sample_input: Tensor | tuple[Any, ...] | None,
        target: Selection,
        exclude: Selection,
        channel_axis: ChannelAxis,
        batch_first: bool,
    ) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
        if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in net.modules()):
            raise ValueError("net must be swapped before it is wrapped in DistributedDataParallel")
        if not isinstance(batch_first, bool):
            raise TypeError(f"batch_first must be True or False, got {batch_first!r}")
        self.net, self.batch_first = net, batch_first
        self.sample = sample_input if isinstance(sample_input, tuple) or sample_input is None else (sample_input,)
        self.maker = Maker(neuron)
        self.channel_axis = self.maker.given.get("channel_axis") if channel_axis is None else channel_axis
        self.frameworks = frameworks()
        recurrent = [framework.recurrent for framework in self.frameworks]
        self.recurrent = next((r for r in recurrent if self.maker.cls and issubclass(self.maker.cls, r.neuron)), None)
        self.known = tuple(cls for framework in self.frameworks for cls in framework.neurons)
        if self.recurrent is not None:
            self.known = self.recurrent.layers
            if target is None and not any(isinstance(module, self.known) for module in net.modules()):
                raise ValueError(
                    f"net has no recurrent layer to swap ({', '.join(cls.__name__ for cls in self.known)}); name "
                    "neurons with target= to give them feedback of their own"
                )
        self.ours = tuple(cls for framework in self.frameworks for cls in framework.ours)
        try:
            self.found = select(net, target, exclude, self.known, self.ours)
        except ValueError as error:
            if target is None and (hidden := self.unregistered(Holders(net))):
                raise ValueError(
                    f"{error}; {', '.join(hidden)} is no registered module of the net: keep it in a "
                    "torch.nn.ModuleList or ModuleDict"
                ) from None
            raise
        self.chosen = target is not None
        self.remembers: dict[nn.Module, bool] = {}  # of modules of no framework: whether sequences, where that is seen
        self.unused: list[str] = []

    def run(self) -> SwapReport:
        try:
            check_replaceable(self.net, self.found)
        except StillHeldError as error:
            raise ValueError(f"a neuron is held where it cannot be replaced: {error}") from error
        calls = None if self.sample is None else self.look()
        settings = {}
        for old in self.found:
            settings[old] = self.settings(old)
        if calls is not None and not self.chosen:
            self.leave_readouts(calls)
        channels = self.channels(calls)
        new = self.make_all(channels, settings)
        made = {old: self.placed(old, new[old], settings[old]) for old in self.found}
        try:
            undo = replace(self.net, made)
        except StillHeldError as error:
            raise ValueError(f"a neuron is held where it cannot be replaced: {error}") from error
        try:
            if calls is not None:
                self.check(calls)
        except BaseException:
            undo()
            raise
        for framework in self.frameworks:
            framework.swapped(self.net)
        self.warn_of_leftovers()
        return SwapReport(
            (
                Replacement(
                    names=tuple(names),
                    old=type(old).__name__,
                    new=type(new[old]).__name__,
                    channels=channels[old].count,
                    channel_axis=channels[old].axis,
                    settings=settings[old],
                )
                for old, names in self.found.items()
            ),
            self.unused,
        )

    # what the net does as it is

    def dry_run(self, watch_time: bool = True) -> DryRun:
        originals = {self.say(old): old for old in self.found}
        assert self.sample is not None
        time_axis: Callable[[str], int | None] = self.time_axis if watch_time else (lambda name: None)
        names = [names[0] for names in self.found.values()]
        methods = {m: axis for framework in self.frameworks for m, axis in framework.methods.items()}
        return DryRun(self.net, names, self.sample, time_axis, methods, originals)

    def look(self) -> Calls:
        """What the net's neurons see as it is; those that it never calls are taken out of ``found``."""
        try:
            self.look_for_memory()
            calls = _called_in_any_mode(self.dry_run(), trace=True)
        except Exception as error:
            error.add_note("while a copy of the net, as it is, was run on sample_input in evaluation mode")
            raise
        if unused := self.leave(lambda name: name not in calls.called()):
            if not self.found:
                raise ValueError(f"the dry run never reached {', '.join(unused)}")
            warnings.warn(f"never called, left as they are: {', '.join(unused)}", stacklevel=4)
        return calls

    def leave_readouts(self, calls: Calls) -> None:
        """Take neurons that send no spikes out of ``found``."""
        sources = {names[0]: old for old, names in self.found.items()}

        def is_readout(name: str) -> bool:
            old = sources[name]
            theirs = type(old).__module__.partition(".")[0] in ("spikingjelly", "snntorch")  # known by their names
            smooth = not getattr(getattr(old, "surrogate_function", None), "spiking", True)
            return not (theirs or smooth) and any(r.values == OTHER for r in calls.returned[name])

        if readouts := self.leave(is_readout):
            what = f"{', '.join(readouts)} returned no spikes but {_some(calls.returned[readouts[0]][0].examples)}"
            if not self.found:
                raise ValueError(f"net has no neuron to swap: {what}; name it with target= to replace it all the same")
            warnings.warn(
                f"{what}, left as they are: name them with target= to replace them all the same", stacklevel=4
            )

    def leave(self, condition: Callable[[str], bool]) -> list[str]:
        """Take neurons out of ``found`` by their first names; returns all names of these."""
        left = {old: names for old, names in self.found.items() if condition(names[0])}
        for old in left:
            del self.found[old]
        names = [name for names in left.values() for name in names]
        self.unused += names
        return names

    def look_for_memory(self) -> None:
        """Along which axis modules of no framework remember, where nobody has said where time is."""
        unknown = {names[0]: old for old, names in self.found.items() if self.said_sequence(old) is None}
        if not unknown:
            return
        calls = self.dry_run(watch_time=False).run()
        for name, old in unknown.items():
            if len(calls.shapes[name]) > 1:  # a loop over time
                self.remembers[old] = False
                continue
            with untouched_random_numbers(self.net):
                axis = memory_axis(old, calls.inputs.get(name, ()))
            if axis == 1 and self.rest_of_net() != {False}:
                raise ValueError(
                    f"{self.say(old)} remembers along axis 1 of its input {calls.shapes[name][0]}, not along "
                    "axis 0: if that is [N, T, *], say batch_first=True, else step_mode='m' or 's' in a "
                    "functools.partial"
                )
            if axis == 0:
                self.remembers[old] = True

    def time_axis(self, name: str) -> int | None:
        if self.batch_first:
            return 1
        return 0 if self.is_sequence(self.net.get_submodule(name)) else None

    def said_sequence(self, old: nn.Module) -> bool | None:
        """Whether ``old`` takes whole sequences, by what it is or by what the user said."""
        for framework in self.frameworks:
            if (sequence := framework.is_sequence(old)) is not None:
                return sequence
        if self.batch_first:
            return True
        return self.maker.given["step_mode"] == "m" if "step_mode" in self.maker.given else None

    def is_sequence(self, old: nn.Module) -> bool:
        """Whether ``old`` takes whole sequences. A module of no framework whose memory has not been seen is taken to do
        as the rest of the net."""
        if (said := self.said_sequence(old)) is not None:
            return said
        if old in self.remembers:
            return self.remembers[old]
        if len(rest := self.rest_of_net()) == 1:
            return rest.pop()
        if self.maker.takes("step_mode"):
            assert self.maker.cls is not None
            raise ValueError(
                f"{self.say(old)} ({type(old).__name__}) is of no framework, and nothing tells whether it takes whole "
                f"sequences [T, N, *] or single steps [N, *]: say functools.partial({self.maker.cls.__name__}, "
                "step_mode='m') or step_mode='s'"
            )
        return self.maker.default("step_mode") == "m"

    def rest_of_net(self) -> set[bool]:
        """Whether its layers of a framework take sequences."""
        answers = (framework.is_sequence(m) for framework in self.frameworks for m in self.net.modules())
        return {answer for answer in answers if answer is not None}

    # how many channels

    def channels(self, calls: Calls | None) -> dict[nn.Module, Channels]:
        if self.recurrent is not None and all(self.is_recurrent(old) for old in self.found):  # their feedback says
            return {old: Channels(self.recurrent.width(old)) for old in self.found}
        if calls is None:
            return self.channels_from_registration()
        names = [names[0] for names in self.found.values()]
        moving = {name: Moving() for name in names}
        certain = all(sighting.is_certain() for name in names for sighting in calls.sightings[name])
        if self.maker.needs_channels and not certain:
            moving = self.dry_run().moving_axes(calls)
        channels, problems = {}, []
        for old, (name, *_) in self.found.items():
            try:
                wanted = wanted_axis(self.channel_axis, name)
                channels[old] = seen_channels(calls.sightings[name], moving[name], wanted)
                if isinstance(wanted, int) and channels[old].axis in moving[name].taken:
                    warnings.warn(
                        f"{self.say(old)}: axis {channels[old].axis} of its steps {calls.shapes[name][0]} follows the "
                        "size of sample_input, and holds the channels as channel_axis says",
                        stacklevel=4,
                    )
            except CannotTellError as error:
                channels[old] = Channels(None)
                problems.append(f"{self.say(old)} with {self.mode(name)} {error}")
        if problems and self.maker.needs_channels:
            more = [f"and of {len(problems) - LINES} more"] if len(problems) > LINES else []
            raise ValueError("the channels cannot be told:\n  " + "\n  ".join(problems[:LINES] + more))
        return channels

    def channels_from_registration(self) -> dict[nn.Module, Channels]:
        axes = {old: wanted_axis(self.channel_axis, names[0]) for old, names in self.found.items()}
        if "auto" in axes.values():
            raise ValueError("channel_axis='auto' needs a sample_input to find the axis in")
        widths = registered_channels(self.net, self.found)
        if self.maker.needs_channels:
            if unknown := [self.say(old) for old in self.found if not widths[old]]:
                raise ValueError(
                    f"the channels of {', '.join(unknown)} cannot be told from the layer registered before; pass "
                    "sample_input, an input of the net, for a dry run"
                )
            for old in self.found:
                if len(widths[old]) > 1:
                    raise ValueError(f"{self.say(old)} is one shared neuron, but sees {sorted(widths[old])} channels")
        return {
            old: Channels(
                min(widths[old]) if len(widths[old]) == 1 else None,
                axis if isinstance(axis := axes[old], int) else DEFAULT_AXIS,
            )
            for old in self.found
        }

    # the new neurons

    def settings(self, old: nn.Module) -> dict[str, Any]:
        """What the new neuron takes over of the old one."""
        framework = self.framework(old)
        if framework is None:
            return {}
        if self.maker.cls is None:
            return {name: getattr(old, name) for name in framework.attributes if hasattr(old, name)}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                settings = framework.settings(old, self.maker, self.is_sequence(old))
            except ValueError as error:
                raise ValueError(f"{self.say(old)}: {error}") from error
        for warning in caught:
            warnings.warn(f"{self.say(old)}: {warning.message}", warning.category, stacklevel=4)
        return {name: value for name, value in settings.items() if self.maker.takes(name)}

    def framework(self, old: nn.Module) -> Framework | None:
        """That of the new neuron, or of the old one where a function makes the new one."""
        for framework in self.frameworks:
            classes = framework.neurons + framework.ours
            if issubclass(self.maker.cls, classes) if self.maker.cls is not None else isinstance(old, classes):
                return framework
        return None

    def make_all(
        self, channels: dict[nn.Module, Channels], settings: dict[nn.Module, dict[str, Any]]
    ) -> dict[nn.Module, nn.Module]:
        made: dict[nn.Module, nn.Module] = {}
        taken, near = set(self.net.modules()), _tensors_near(self.net, self.found)
        for old in self.found:
            new = self.make(old, channels[old], settings[old])
            if new in taken:
                raise ValueError(
                    f"neuron returned the same module twice (for {self.say(old)}); make a new one in every call"
                )
            taken.add(new)
            made[old] = new
            if old in near:
                made[old].to(device=near[old].device, dtype=near[old].dtype)
        return made

    def is_recurrent(self, old: nn.Module) -> bool:
        return self.recurrent is not None and isinstance(old, self.recurrent.layers)

    def placed(self, old: nn.Module, new: nn.Module, settings: dict[str, Any]) -> nn.Module:
        """What stands in the place of ``old``."""
        module = new
        if self.recurrent is not None and self.is_recurrent(old):
            module = self.recurrent.adopt(old, new)
            settings["recurrent"] = getattr(new, "recurrent", None)
        if self.batch_first:
            module = BatchFirst(module)
        return module.train(old.training)

    def make(self, old: nn.Module, channels: Channels, settings: dict[str, Any]) -> nn.Module:
        """The new neuron; ``settings`` is reduced to what it really took over."""
        name, options = self.say(old), dict(settings)
        if self.maker.cls is not None and (lacking := self.maker.lacking(settings)):
            raise TypeError(
                f"{self.maker.cls.__name__} needs {', '.join(lacking)}: give it with functools.partial"
                f"({self.maker.cls.__name__}, {lacking[0]}=...)"
            )
        if self.maker.takes("channel_axis") and channels.axis != DEFAULT_AXIS:
            options["channel_axis"] = channels.axis
        try:
            new = self.maker.make(channels.count, old, options)
        except Exception as error:
            note = f"while the new neuron for {name} was made"
            if taken := [option for option in settings if option in str(error)]:
                note += (
                    f" with the {taken[0]} of the old {type(old).__name__}: give another with functools.partial, or "
                    "exclude= it (a readout?)"
                )
            error.add_note(note)
            raise
        if not isinstance(new, nn.Module):
            raise ValueError(f"neuron must make a torch.nn.Module, got {type(new).__name__} for {name}")
        if None not in (channels.count, (made_for := getattr(new, "channels", None))) and made_for != channels.count:
            raise ValueError(f"neuron made one for {made_for} channels, but {name} sees {channels.count}")
        if self.maker.cls is None:
            for attribute, value in list(settings.items()):
                if hasattr(new, attribute):
                    setattr(new, attribute, value)
                else:
                    del settings[attribute]
        axis = getattr(new, "channel_axis", DEFAULT_AXIS)
        if self.maker.needs_channels and not channels.are_on(axis):
            if not hasattr(new, "channel_axis") or axis != DEFAULT_AXIS:
                raise ValueError(
                    f"{name} has its channels on axis {channels.axis} of a step, but the {type(new).__name__} made for "
                    f"it acts on axis {axis}"
                )
            new.channel_axis = channels.axis  # type: ignore[assignment]  # to torch, a module's attributes are modules
        return new

    # what the swapped net does

    def check(self, before: Calls) -> None:
        """Raise unless a copy of the swapped net calls every new neuron and no old one, and gets what it got before."""
        calls = Calls(list(before.returned))
        try:
            _called_in_any_mode(self.dry_run(watch_time=False), calls=calls)
        except OriginalCalledError:
            raise
        except Exception as error:
            self.compare(before, calls)
            where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            raise ValueError(
                f"the swapped net does not take sample_input: {type(error).__name__}: {error}{where}"
            ) from error
        missed = [self.say(old) for old, (name, *_) in self.found.items() if name not in calls.called()]
        if missed:
            raise ValueError(f"the swapped net no longer calls {', '.join(missed)}")
        self.compare(before, calls)
        theirs = [m for m in calls.strangers if isinstance(m, self.known) and not isinstance(m, self.ours)]
        if theirs and not self.unregistered(Holders(self.net)):
            warnings.warn(
                f"the net still calls {', '.join(sorted({type(m).__name__ for m in theirs}))} that it does not hold: a "
                "neuron made in forward is left as it is, make it in __init__",
                stacklevel=4,
            )

    def compare(self, before: Calls, after: Calls) -> None:
        """Raise if a new neuron returns something of another form than the old one did, and warn if other spikes."""
        for old, (name, *_) in self.found.items():
            for was, now in zip(before.returned[name], after.returned[name], strict=False):
                if was.given != now.given or was.form == now.form:
                    continue
                message = (
                    f"{self.say(old)} ({type(old).__name__}) returned {was.form} for an input of shape {was.given}, "
                    f"and the new neuron returns {now.form}"
                )
                if not self.chosen and self.maker.cls is not None:
                    raise ValueError(
                        f"{message}: exclude= it, or give a function that makes a module with a new neuron inside "
                        "which returns the same, or name it with target= if the net takes both"
                    )
                warnings.warn(message, stacklevel=5)
            if any(r.values == GRADED for r in before.returned[name]) and not any(
                r.values == GRADED for r in after.returned[name]
            ):
                values = next(r.examples for r in before.returned[name] if r.values == GRADED)
                warnings.warn(
                    f"{self.say(old)} ({type(old).__name__}) returned {_some(values)}, and the new neuron sends spikes "
                    "of 0 and 1",
                    stacklevel=5,
                )

    def warn_of_leftovers(self) -> None:
        """Neurons that the net holds without having registered them, and parameters of the old ones."""
        holders = Holders(self.net)
        for where in self.unregistered(holders):
            warnings.warn(f"{where} is no registered module of the net and was left as it is", stacklevel=4)
        for old, names in self.found.items():
            for name, parameter in old.named_parameters():
                for reference in holders.references.get(id(parameter), ()):
                    where = holders.say(reference)
                    if "._parameters[" not in where:
                        warnings.warn(f"{where} is {name} of the old {names[0]}, which is gone", stacklevel=4)
            if old._forward_hooks or old._forward_pre_hooks or old._backward_hooks:
                warnings.warn(f"hooks on {self.say(old)} are gone with it: register them again", stacklevel=4)

    def unregistered(self, holders: Holders) -> list[str]:
        """Where the net holds neurons that are no registered modules."""
        registered = set(self.net.modules())
        return [
            holders.say(holders.references[id(module)][0])
            for module in list(holders.found.values())
            if isinstance(module, self.known) and not isinstance(module, self.ours) and module not in registered
        ]

    def say(self, old: nn.Module) -> str:
        return " = ".join(self.found[old])

    def mode(self, name: str) -> str:
        if self.batch_first:
            return "batch_first=True"
        return f"step_mode={'s' if self.time_axis(name) is None else 'm'!r}"


def _some(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values) + ", ..."


def _called_in_any_mode(dry_run: DryRun, trace: bool = False, calls: Calls | None = None) -> Calls:
    """The calls in evaluation, and those of neurons that are called in training only."""
    calls = dry_run.run(trace=trace, calls=calls)
    missed = set(dry_run.names) - calls.called()
    if missed:
        training = Calls(dry_run.names)
        with suppress(Exception):  # a BatchNorm does not train on one sample
            dry_run.run(trace=trace, training=True, calls=training)
        for name in missed:
            calls.sightings[name], calls.shapes[name] = training.sightings[name], training.shapes[name]
            calls.returned[name] = training.returned[name]
    return calls


def _tensors_near(net: nn.Module, found: Iterable[nn.Module]) -> dict[nn.Module, Tensor]:
    """For each neuron a floating-point parameter of the layer registered before it, else its own, else of the next."""
    near: dict[nn.Module, Tensor] = {}
    waiting: list[nn.Module] = []
    inside = {child for neuron in found for child in neuron.modules() if child is not neuron}
    last: Tensor | None = None
    for module in net.modules():
        if module in inside:
            continue
        tensors = (*module.parameters(recurse=False), *(module.buffers(recurse=False) if module in found else ()))
        own = next((t for t in tensors if t.is_floating_point()), None)
        if module not in found:
            last = last if own is None else own
        elif (tensor := own if last is None else last) is not None:
            near[module] = tensor
        else:
            waiting.append(module)
        if last is not None:
            near |= dict.fromkeys(waiting, last)
            waiting.clear()
    return near
