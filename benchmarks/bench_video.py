"""A training step of SimVP, PhyDNet and SwinLSTM beside plain twins that mirror the released loops: concatenations made, frames one by one, channels first.

    python benchmarks/bench_video.py                         # over five fresh processes
    python benchmarks/bench_video.py --processes 1 --rounds 3 --threads 1
    python benchmarks/bench_video.py --record                # writes results/bench/video.csv as well

Losses and gradients of ours and of the twin are compared before anything is timed. Where there is a GPU, a step there as well: ours in bf16 as `fit` takes it,
each operation asked for by Python and replayed from a CUDA graph, the twin in float32 as released, and by how much bf16 moves the loss.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from calibrate import in_fresh_process, interleave, medians, print_calibration, report
from torch import Tensor

from paperlib.core import training
from paperlib.core.video import moving
from paperlib.sequence import phydnet, simvp, swinlstm

RESULTS = Path(__file__).resolve().parent.parent / "results" / "bench"


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """SimVP as released: channels first, concatenations made."""
    kept = simvp.channels_last, simvp.split_conv
    simvp.channels_last, simvp.split_conv = (lambda x: x.contiguous()), (lambda conv, *parts: conv(torch.cat(parts, 1)))
    try:
        yield
    finally:
        simvp.channels_last, simvp.split_conv = kept


def simvp_loss(net: simvp.SimVP, clips: Tensor) -> Tensor:
    return F.mse_loss(net(clips[:, :10]), clips[:, 10:])


def simvp_plain(net: simvp.SimVP, clips: Tensor) -> Tensor:
    with plain():
        return simvp_loss(net, clips)


def phydnet_loss(net: phydnet.PhyDNet, clips: Tensor) -> Tensor:
    found = net(clips[:, :10], 10, clips[:, 10:], all_steps=True)
    return (found - clips[:, 1:]).square().mean((0, 2, 3, 4)).sum() + net.moment_loss()


def phydnet_free(net: phydnet.PhyDNet, clips: Tensor) -> Tensor:
    found = net(clips[:, :10], 10, all_steps=True)
    return (found - clips[:, 1:]).square().mean((0, 2, 3, 4)).sum() + net.moment_loss()


def _released_step(net: phydnet.PhyDNet, x: Tensor, state: tuple) -> tuple[Tensor, tuple]:
    """One step as released: each convolution on the concatenation of input and state, and the branches painted apart as well."""
    e = net.encoder(x)
    p, physical = net.physical.inward(e), []
    for cell, (h,) in zip(net.physical.cells, state[0]):
        ahead = cell.predicted(h)
        gain = cell.gate(torch.cat([p, h], 1)).sigmoid()
        p = ahead + gain * (p - ahead)
        physical.append((p,))
    r, residual = net.residual.inward(e), []
    for cell, (h, c) in zip(net.residual.cells, state[1]):
        i, f, o, g = cell.conv(torch.cat([r, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        r = o.sigmoid() * c.tanh()
        residual.append((r, c))
    p, r = net.physical.outward(p), net.residual.outward(r)
    net.paint(p)
    net.paint(r)
    return net.paint(p, r), (tuple(physical), tuple(residual))


def _moments_looped(weight: Tensor) -> Tensor:
    """Return the moment loss as released: a loop over input channels."""
    unit = torch.eye(49, dtype=weight.dtype, device=weight.device).view(49, 7, 7)
    return sum(F.mse_loss(phydnet.kernel_to_moments(weight[:, b]).to(weight.dtype), unit) for b in range(weight.shape[1]))


def phydnet_plain(net: phydnet.PhyDNet, clips: Tensor, forced: bool = True) -> Tensor:
    state, loss, x = net.start(net.encoder(clips[:, 0])), 0.0, clips[:, 0]
    for t in range(19):
        y, state = _released_step(net, x, state)
        loss = loss + F.mse_loss(y, clips[:, t + 1])
        x = clips[:, t + 1] if forced or t < 9 else y
    return loss + _moments_looped(net.physical.cells[0].derive.weight)


def swinlstm_loss(net: swinlstm.SwinLSTM, clips: Tensor) -> Tensor:
    with swinlstm.sooner(net):                                                           # as `train` has it
        return F.mse_loss(net(clips[:, :10], 10, all_steps=True), clips[:, 1:])


def swinlstm_plain(net: swinlstm.SwinLSTM, clips: Tensor) -> Tensor:
    """Frames one by one; windows cut, attended by explicit products, put back; the two maps of a block concatenated; patches in and out by convolutions."""
    blocks, embed, readout = [b for cell in (*net.down, *net.up) for b in cell.mixer.blocks], net.patch_embed, net.readout
    forwards = [m.forward for m in (*blocks, embed, readout)]
    embed.forward = lambda x: embed.norm(embed.proj(x).movedim(1, -1))
    readout.forward = lambda x: torch.nn.ConvTranspose2d.forward(readout, x.movedim(-1, 1))
    for b in blocks:
        b.attn.kernel = "explicit"
        b.forward = lambda x, other=None, b=b: _released_block(b, x, other)
    try:
        return F.mse_loss(net(clips[:, :10], 10, all_steps=True), clips[:, 1:])
    finally:
        for b in blocks:
            b.attn.kernel = "auto"
        for m, f in zip((*blocks, embed, readout), forwards):
            m.forward = f


def _released_block(block: swinlstm.SwinBlock, x: Tensor, other: Tensor | None) -> Tensor:
    y = block.norm1(x)
    y = y if block.reduce is None else block.reduce(torch.cat([y, block.norm1(other)], -1))
    x = x + block.attn(y, block.shift)
    return x + block.mlp(block.norm2(x))


CASES = {  # name -> (network, clips in a batch, ours, twin)
    "SimVP (16, 64, 4, 3), 4 clips": (lambda: simvp.SimVP((10, 1, 64, 64), 16, 64, 4, 3), 4, simvp_loss, simvp_plain),
    "SimVP (16, 64, 4, 3), 1 clip": (lambda: simvp.SimVP((10, 1, 64, 64), 16, 64, 4, 3), 1, simvp_loss, simvp_plain),
    "PhyDNet, forced, 1 clip": (phydnet.PhyDNet, 1, phydnet_loss, phydnet_plain),
    "PhyDNet, free, 1 clip": (phydnet.PhyDNet, 1, phydnet_free, lambda net, clips: phydnet_plain(net, clips, False)),
    "SwinLSTM, one cell of 4 blocks, 1 clip": (lambda: swinlstm.SwinLSTM(64, 4, 1, 48, (4,), None, (4,), drop_path_rate=0.0), 1, swinlstm_loss, swinlstm_plain),
}


def gradients(loss: Callable[..., Tensor], net: torch.nn.Module, clips: Tensor) -> tuple[float, list[Tensor]]:
    """Return the loss and the gradient of each parameter."""
    net.zero_grad()
    value = loss(net, clips)
    value.backward()
    return value.item(), [p.grad.clone() for p in net.parameters()]


def compare(name: str, net: torch.nn.Module, clips: Tensor, ours: Callable[..., Tensor], twin: Callable[..., Tensor]) -> None:
    """Stop unless losses and gradients agree in float64; in float32 a rectifier near zero may fall either way."""
    (a, one), (b, two) = gradients(ours, net, clips), gradients(twin, net, clips)
    assert abs(a - b) < 1e-6 * abs(a), (name, a, b)                                       # the looped moment term is float32 in both
    for (key, _), x, y in zip(net.named_parameters(), one, two):
        assert (x - y).norm() <= 1e-5 * y.norm() + 1e-9, (name, key, (x - y).norm().item(), y.norm().item())


def ratios(rounds: int, threads: int) -> dict[str, float]:
    """Return what the twin takes over ours in this process: medians of paired rounds, forward and backward."""
    torch.set_num_threads(threads)
    found = {}
    for name, (make, batch, ours, twin) in CASES.items():
        torch.manual_seed(0)
        net, clips = make().train(), moving().draw(batch, 0).frames
        compare(name, copy.deepcopy(net).double(), clips[:1].double(), ours, twin)
        calls = {"twin": partial(gradients, twin, net, clips), "ours": partial(gradients, ours, net, clips)}
        times = interleave(calls, rounds)
        found[f"training step, {name}"] = statistics.median(t / o for t, o in zip(times["twin"], times["ours"]))
    weight = torch.nn.Conv2d(64, 49, 7).weight
    assert abs(_moments_looped(weight) - phydnet.moment_loss(weight)) < 1e-5
    times = interleave({"twin": lambda: _moments_looped(weight).backward(), "ours": lambda: phydnet.moment_loss(weight).backward()}, 3 * rounds)
    found["moment loss, loop over one contraction"] = statistics.median(t / o for t, o in zip(times["twin"], times["ours"]))
    return found


def gpu_ratios(rounds: int, batch: int = 16) -> dict[str, float]:
    """Return what the twin in float32 takes over ours as `fit` takes it on a GPU, in bf16, each operation asked for by Python and replayed from a record, and by which share the loss differs, for ``batch`` clips."""
    found = {}
    for name, make, ours, twin in {cases[2]: (name.rsplit(",", 1)[0], cases[0], *cases[2:]) for name, cases in CASES.items()}.values():
        torch.manual_seed(0)
        net, clips = make().train(), moving().draw(batch, 0).frames.cuda()
        other = copy.deepcopy(net).cuda()
        with training._session(net, torch.device("cuda"), None, 1) as (accelerator, prepared):
            replay = training._Replay(lambda: None, net, torch.optim.SGD(net.parameters(), 0.0))

            def released(twin: Callable = twin, other: torch.nn.Module = other, clips: Tensor = clips) -> Tensor:
                other.zero_grad()
                loss = twin(other, clips)
                loss.backward()
                return loss

            def asked(ours: Callable = ours, accelerator: Accelerator = accelerator, prepared: torch.nn.Module = prepared, clips: Tensor = clips) -> Tensor:
                prepared.zero_grad()
                loss = ours(prepared, clips)
                accelerator.backward(loss)
                return loss

            def replayed(ours: Callable = ours, accelerator: Accelerator = accelerator, prepared: torch.nn.Module = prepared, clips: Tensor = clips, replay: training._Replay = replay) -> Tensor:
                return replay(accelerator, prepared, ours, clips, 0)[0]

            calls = {"twin": released, "asked": asked, "replayed": replayed}
            plain_loss, our_loss = released().item(), replayed().item()
            times = interleave(calls, rounds, torch.cuda.synchronize)
        for what in ("asked", "replayed"):
            found[f"GPU, training step, {name}, {batch} clips: float32 twin / ours in bf16, {what}"] = statistics.median(t / o for t, o in zip(times["twin"], times[what]))
        found[f"GPU, training step, {name}, {batch} clips: ours, replayed, ms"] = 1e3 * statistics.median(times["replayed"])
        found[f"GPU, {name}: loss in bf16, relative difference"] = abs(our_loss - plain_loss) / abs(plain_loss)
    return found


def main() -> None:
    """Measure, print, and record when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    print_calibration()
    measured = [in_fresh_process(ratios, args.rounds, args.threads) for _ in range(args.processes)]
    rows = medians(measured, f"{args.threads} threads, float32, twin over ours", 2)
    if torch.cuda.is_available():
        rows += medians([in_fresh_process(gpu_ratios, 4 * args.rounds) for _ in range(args.processes)], torch.cuda.get_device_name())
    report(rows, RESULTS / "video.csv" if args.record else None)


if __name__ == "__main__":
    main()
