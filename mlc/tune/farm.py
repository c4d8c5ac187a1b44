"""The devices of one kind behind a tracker, and what they are."""

from __future__ import annotations

import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mlc import target, tvm_env
from mlc.cpu import host_cpu, physical_cores
from mlc.errors import TargetError, TuningError, UsageError, did_you_mean
from mlc.events import Notice
from mlc.rpc import address, facts
from mlc.rpc.tracker import Tracker
from mlc.tune.aside import readable, start
from mlc.tune.device import Device, device_for, gpu_device
from mlc.tune.session import ASK_S, connect, describe

if TYPE_CHECKING:
    from mlc.events import OnEvent
    from mlc.options import TuneOptions
    from mlc.rpc.address import Address
    from mlc.rpc.tracker import Grant
    from mlc.tune.worker import Channel


@dataclass(frozen=True, kw_only=True)
class Farm:
    """Where the devices of a key are asked for, and what each of them is."""

    tracker: Address
    key: str
    facts: facts.DeviceFacts

    def devices(self) -> tuple[Address, ...]:
        """Return the devices that the tracker has now.

        Raises:
            TuningError: the tracker does not answer.
        """
        with Tracker(self.tracker) as tracker:
            return tracker.status().servers.get(self.key, ())


def find(options: TuneOptions, on_event: OnEvent) -> Farm | None:
    """Return the devices that the options name; None: this machine.

    Those that are free are asked what they are, each from a process of its own. Later, every session
    asks again.

    Raises:
        UsageError: an option is malformed or lacks the other one.
        TuningError: no tracker, no device under the key, none that answers, or not all alike.
    """
    if options.tracker is None and options.key is None:
        return None
    if options.tracker is None or options.key is None:
        given, lacks = ("--key", "--tracker HOST:PORT") if options.key else ("--tracker", "--key K")
        raise UsageError(
            f"{given} needs {lacks} beside it", "`mlc rpc status` lists the keys of a tracker"
        )
    at, key = address.parse(options.tracker), address.check_key(options.key)
    tvm_env.tvm()  # before processes are forked that need it
    with Tracker(at) as tracker:
        status = tracker.status()
        if not status.servers.get(key):
            raise TuningError(
                f"the tracker at {at} has no device {key!r}",
                f"{did_you_mean(key, status.servers)}; add one: "
                f"mlc rpc server --tracker {at} --key {key}",
            )
        # Where all are at work for others, wait for one.
        answers = _ask(tracker, key, max(1, status.free.get(key, 0)))
    kinds: dict[facts.DeviceFacts, list[Address]] = {}
    for device, answer in answers.items():
        if isinstance(answer, str):
            on_event(Notice(text=f"the device at {device} is no use: {answer}", level="warning"))
        else:
            kinds.setdefault(answer, []).append(device)
    if not kinds:
        raise TuningError(f"no device {key!r} of the tracker at {at} can be used", "see above")
    if len(kinds) > 1:
        listing = "; ".join(
            f"{kind}: {', '.join(map(str, found))}" for kind, found in kinds.items()
        )
        raise TuningError(
            f"the devices under {key!r} are not alike ({listing})", "give each kind its own --key"
        )
    return Farm(tracker=at, key=key, facts=next(iter(kinds)))


def measuring_device(options: TuneOptions, farm: Farm | None) -> Device:
    """Return what measures for the options' target: the devices of a farm, or this machine.

    With a farm `llvm` means its devices, not this machine.

    Raises:
        TargetError: it cannot run code for the target.
    """
    cpu = farm.facts.cpu if farm else host_cpu()
    cores = farm.facts.physical_cores if farm else physical_cores()
    theirs = farm is not None and options.target in target.HOST_NAMES
    chosen = target.for_cpu(cpu) if theirs else target.resolve(options.target)
    if chosen.gpu is not None:
        return _gpu(options, chosen, farm)
    missing = target.missing_features(chosen.features, cpu)
    if chosen.arch != cpu.arch or missing:
        why = f"it lacks {', '.join(missing)}" if missing else f"it is {cpu.arch}"
        raise TargetError(
            f"{'the device' if farm else 'this machine'} cannot run code for {chosen.name} ({why}), "
            "so there is nothing to measure on",
            "tune on such a machine, and bring its records with `mlc logs import`",
        )
    return device_for(chosen, cpu, options.threads or cores)


def _gpu(options: TuneOptions, chosen: target.Target, farm: Farm | None) -> Device:
    """Return the GPU that a farm's devices have; TargetError when it is none for the target."""
    tracker, key = options.tracker or "127.0.0.1:9190", options.key or "K"
    asked = f"--target cuda --arch {chosen.mcpu} --tracker {tracker} --key {key}"
    serve = f"`mlc rpc server --device cuda --key {key} --tracker {tracker}`"
    if farm is None:
        raise TargetError(
            f"{chosen.name} is a GPU, and GPUs measure behind a tracker only: times are not invented",
            f"on a machine with an {chosen.mcpu}: {serve}; here: `mlc rpc tracker` and `mlc tune "
            f"{shlex.quote(options.model or 'MODEL')} {asked}`. Without a GPU default configs apply, or "
            "AutoTVM records, with `mlc compile MODEL --records FILE`",
        )
    card = farm.facts.gpu
    if card is None:
        raise TargetError(
            f"the devices under {farm.key!r} offer no GPU, and {chosen.name} is one",
            f"there: {serve}",
        )
    if card.sm != chosen.mcpu:
        raise TargetError(
            f"the devices under {farm.key!r} are {card.name} ({card.sm}), and {chosen.name} is of "
            f"{chosen.mcpu}: times of one say little about the other",
            f"tune for what is there: --target cuda --arch {card.sm}",
        )
    return gpu_device(chosen, card.name)


def _ask(tracker: Tracker, key: str, count: int) -> dict[Address, facts.DeviceFacts | str]:
    """Return what devices say of themselves, or why they do not.

    All sessions stay open until the last one was opened: no device is asked twice.
    """
    found: dict[Address, facts.DeviceFacts | str] = {}
    deadline = time.monotonic() + ASK_S
    with ExitStack() as open_sessions:
        children = {}
        for _ in range(count):
            tracker.request(key)
            if not readable(tracker, deadline):
                break
            grant = tracker.granted()
            children[grant.address] = start(partial(_describe, grant), open_sessions)
        for device, channel in children.items():
            answer = channel.receive() if readable(channel.end, deadline) else None
            found[device] = _believed(answer)
    return found


def _believed(answer: Any) -> facts.DeviceFacts | str:
    if answer is None:
        return "it does not answer"
    if "why" in answer:
        return str(answer["why"])
    try:
        return facts.read(answer["facts"])
    except TuningError as error:
        return error.message


def _describe(grant: Grant, channel: Channel) -> None:
    """Open a session, send what the device says, and wait to be ended."""
    try:
        session = connect(grant, 3 * ASK_S)
        channel.send({"facts": describe(session)})
    except Exception as error:  # noqa: BLE001 - TVM raises anything
        channel.send({"why": tvm_env.reason(error)})
    channel.receive()
