"""core.training where it meets files, processes, devices and bad input."""
import copy
import errno
import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.utils.data import TensorDataset

import paperlib
from paperlib.core import training
from paperlib.core.training import EMA, Batches, fit, load_weights, resolve_device, save_weights
from paperlib.core.video import material

X = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
Y = X[:, :1].sin() + X[:, 1:2] * X[:, 2:3]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def mlp(width=16, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.BatchNorm1d(width), nn.Dropout(dropout), nn.Linear(width, 1))


def squares(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def train(steps=12, *, model=None, width=16, batch_size=12, optimizer=torch.optim.Adam, lr=1e-2, loss_fn=squares, schedule=None, device="cpu",
          progress=False, **kwargs):
    model = mlp(width) if model is None else model
    optimizer = optimizer(model.parameters(), lr=lr)
    scheduler = schedule(optimizer) if schedule else None
    return model, fit(model, Batches((X, Y), batch_size), loss_fn, optimizer, steps, scheduler=scheduler, device=device, progress=progress, **kwargs)


def vector(model):
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


class Bomb:
    """A hook that stops the run after some step."""

    def __init__(self, at):
        self.at = at

    def on_step(self, model, optimizer, done):
        if done == self.at:
            raise InterruptedError


# ---- batches

def test_batches_of_a_dataset_equal_those_of_its_tensors():
    a, b, single = Batches((X, Y), 20, seed=3), Batches(TensorDataset(X, Y), 20, seed=3), Batches(X, 20, seed=3)
    for step in (0, 2, 7):
        for got, want in zip(b(step, 1, 2), a(step, 1, 2), strict=True):
            assert torch.equal(got, want)
        assert torch.equal(single(step), a(step)[0])
    dicts = Batches([{"x": x, "i": i} for i, x in enumerate(X)], 20, seed=3)(2)
    assert torch.equal(dicts["x"], X[dicts["i"]])


def test_batches_larger_than_the_data_wrap_into_the_next_epochs():
    assert torch.equal(Batches(X, 144).indices(5).bincount(), torch.full((48,), 3))


def test_transform_is_a_function_of_seed_step_and_rank():
    def jitter(batch, generator):
        return torch.rand(4, generator=generator)
    draw = lambda seed, step, rank: tuple(Batches(X, 12, seed, jitter)(step, rank, 2).tolist())
    keys = [(s, k, r) for s in (0, 1) for k in (0, 1) for r in (0, 1)]
    assert [draw(*k) for k in keys] == [draw(*k) for k in keys]
    assert len({draw(*k) for k in keys}) == len(keys)


@pytest.mark.parametrize("data, size, says", [((X, Y[1:]), 4, "lengths [47, 48]"), (X[:0], 4, "lengths [0]"), (X, 0, "batch_size 0"),
                                              ((X.numpy(), Y.numpy()), 4, "need a tuple of tensors")])
def test_bad_batches(data, size, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Batches(data, size)


# ---- killed and resumed

KILLS = '''
import os, random, signal, sys, torch
import torch._dynamo         # the first optimiser imports it: once here, not in every child
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_training as t
from paperlib.core.training import EMA, fit, Batches
torch.set_num_threads(1)

class Kill:
    def __init__(self, at): self.at = at
    def on_step(self, model, optimizer, done):
        if done == self.at: os.kill(os.getpid(), signal.SIGKILL)

def during(name):            # die inside a write: before the flush, or with the new file whole but not yet renamed
    def dead(*args): os.kill(os.getpid(), signal.SIGKILL)
    setattr(os, name, dead)

def run(out, checkpoint, kill=0, write=None):
    pid = os.fork()          # torch has computed nothing yet, so a child starts as a fresh process would
    if pid == 0:
        try:
            if write: during(write)
            model, ema = t.mlp(dropout=0.3), EMA(0.9)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=40)
            history = fit(model, Batches((t.X, t.Y), 20), t.squares, optimizer, 40, device="cpu", scheduler=schedule, accumulate=2, clip_norm=1.0,
                          hooks=[Kill(kill), ema], checkpoint=checkpoint, checkpoint_every=3, progress=False)
            torch.save([model.state_dict(), ema.shadow, optimizer.state_dict(), history.loss], out)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

here = Path(sys.argv[2])
assert run(here / "whole", None) == 0
rng = random.Random(int(sys.argv[3]))
kills = [1, 3, *sorted(rng.sample(range(4, 40), 8))]
for k in kills: assert run(here / "never", here / "run.pt", kill=k) == -signal.SIGKILL, k
assert run(here / "never", here / "run.pt", write="fsync") == -signal.SIGKILL
assert run(here / "never", here / "run.pt", write="replace") == -signal.SIGKILL
assert len(list(here.glob("run.pt.*.tmp"))) == 1           # the last one's; the one before has been cleared
assert run(here / "parts", here / "run.pt") == 0
assert not list(here.glob("*.tmp")) and not (here / "never").exists()
a, b = torch.load(here / "whole"), torch.load(here / "parts")
def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b
assert len(a[3]) == 40 and [same(x, y) for x, y in zip(a, b)] == [True] * 4, kills
print("same after", kills)
'''


def python(script, *args, launcher=(), **env):
    root = Path(__file__).resolve().parents[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]), **env}
    env.pop("PAPERLIB_WORK", None)
    return subprocess.run([sys.executable, *launcher, str(script), *map(str, args)], env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_anywhere_ends_at_the_same_bits(tmp_path, seed):
    script = tmp_path / "kills.py"
    script.write_text(KILLS)
    done = python(script, Path(__file__).parent, tmp_path, seed)
    assert done.returncode == 0 and "same after [1, 3, " in done.stdout, done.stderr[-3000:]


def test_resume_restores_hooks_before_weights(tmp_path):
    class Grow:
        """Adds a row to the model every 4 steps, as densification does."""

        def grow(self, model, optimizer):
            old = model.rows
            model.rows = nn.Parameter(torch.cat([old.detach(), torch.randn(1, 8)]))
            optimizer.param_groups[0]["params"] = [model.rows]
            optimizer.state[model.rows] = {k: F.pad(v, (0, 0, 0, 1)) if v.ndim else v for k, v in optimizer.state.pop(old).items()}

        def on_start(self, model, optimizer):
            self.model, self.optimizer, self.count = model, optimizer, 0

        def on_step(self, model, optimizer, done):
            if done % 4 == 0:
                self.grow(model, optimizer)
                self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]
            self.model.rows = nn.Parameter(torch.zeros(3 + self.count, 8))
            self.optimizer.param_groups[0]["params"] = [self.model.rows]

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Parameter(torch.linspace(-1, 1, 24).view(3, 8))

        def forward(self, x):
            return (x @ self.rows.T).tanh().sum(-1, keepdim=True)

    kwargs = dict(checkpoint_every=5)
    whole, _ = train(18, model=Rows(), hooks=[Grow()], **kwargs)
    with pytest.raises(InterruptedError):
        train(18, model=Rows(), hooks=[Grow(), Bomb(14)], checkpoint=tmp_path / "a.pt", **kwargs)
    parts, history = train(18, model=Rows(), hooks=[Grow(), Bomb(0)], checkpoint=tmp_path / "a.pt", **kwargs)
    assert history.resumed_from == 10 and parts.rows.shape == (7, 8)
    assert torch.equal(parts.rows, whole.rows)


def test_a_finished_run_is_read_not_repeated(tmp_path):
    model, first = train(checkpoint=tmp_path / "a.pt")
    again, second = train(checkpoint=tmp_path / "a.pt", loss_fn=None)
    assert torch.equal(vector(again), vector(model)) and second.loss == first.loss
    assert (second.resumed_from, second.seconds) == (12, first.seconds) and first.seconds > 0


def test_seconds_add_up_over_resumes(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(InterruptedError):
        train(hooks=[Bomb(9)], checkpoint=path, checkpoint_every=4)
    saved = torch.load(path, weights_only=True)
    assert 0 < saved["history"]["seconds"] < 60
    saved["history"]["seconds"] = 1000.0
    torch.save(saved, path)
    _, history = train(hooks=[Bomb(0)], checkpoint=path, checkpoint_every=4)
    assert history.resumed_from == 8 and 1000 < history.seconds < 1060


@pytest.mark.parametrize("damage", ["empty", "head", "half", "last byte", "text", "other torch file", "other zip", "flipped"])
def test_damaged_checkpoint(tmp_path, damage):
    path = tmp_path / "run.pt"
    train(checkpoint=path)
    whole = path.read_bytes()
    if damage == "other torch file":
        torch.save({"model": X}, path)
    elif damage == "other zip":
        with zipfile.ZipFile(path, "w") as z:
            z.writestr("a.txt", "hello")
    else:
        middle = len(whole) // 3
        path.write_bytes({"empty": b"", "head": whole[:10], "half": whole[:len(whole) // 2], "last byte": whole[:-1], "text": b"hello " * 50,
                          "flipped": whole[:40] + bytes(255 - b for b in whole[40:middle]) + whole[middle:]}[damage])
    with pytest.raises(ValueError, match="run.pt is truncated or not one of fit") as error:
        train(checkpoint=path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("change, says", [
    (dict(steps=13), "steps: 12 there, 13 here"), (dict(seed=1), "seed: 0 there, 1 here"), (dict(accumulate=2), "accumulate: 1 there, 2 here"),
    (dict(batch_size=6), "batches: Batches(12 of 48 samples, seed 0) there, Batches(6 of"), (dict(lr=2e-2), "optimizer group 0 lr: 0.01 there, 0.02"),
    (dict(optimizer=torch.optim.AdamW), "optimizer: Adam there, AdamW here"), (dict(width=17), "parameter 0.weight: (16, 8) there, (17, 8) here"),
    (dict(clip_norm=1.0), "clip_norm: None there, 1.0 here"), (dict(hooks=[EMA()]), "hooks:  there, EMA here"),
    (dict(schedule=lambda o: torch.optim.lr_scheduler.LinearLR(o)), "scheduler: NoneType there, LinearLR here")])
def test_checkpoint_of_another_run(tmp_path, change, says):
    train(checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match="is of another run") as error:
        train(checkpoint=tmp_path / "run.pt", **change)
    assert says in str(error.value)


def test_checkpoint_of_the_same_run_on_other_data(tmp_path):
    path = tmp_path / "c.pt"
    train(4, checkpoint=path)
    other = Batches((X.roll(1, 0), Y), 12)
    model = mlp()
    with pytest.raises(ValueError, match="first_batch"):
        fit(model, other, squares, torch.optim.Adam(model.parameters(), lr=1e-2), 4, checkpoint=path, device="cpu", progress=False)


def test_a_schedule_that_moved_the_rate_is_no_other_run(tmp_path):
    step_lr = lambda o: torch.optim.lr_scheduler.StepLR(o, 2)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):        # the second call meets an optimiser whose lr the first call's schedule has lowered
        history = fit(model, Batches((X, Y), 12), squares, optimizer, 6, scheduler=step_lr(optimizer), device="cpu", progress=False,
                      checkpoint=tmp_path / "run.pt")
    assert history.resumed_from == 6
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.1 ** 3)      # stepped once a step: 6 steps are 3 decays


# ---- a disk that is full

@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, where):
    path, real, calls = tmp_path / "run.pt", getattr(os, where), []

    def full(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, where, full)
    with pytest.raises(OSError, match="checkpoint of step 8: No space left on device; what stood there before is intact") as error:
        train(checkpoint=path, checkpoint_every=4)
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    resumed, history = train(checkpoint=path, checkpoint_every=4)
    assert history.resumed_from == 4 and torch.equal(vector(resumed), vector(train()[0]))


def test_a_write_that_really_fails_halfway(tmp_path):
    """The limit on file size stands in for the disk: the failure comes from write(2), through torch's zip writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(OSError, match="could not write the checkpoint of step 12: .*; nothing stood there before") as error:
            train(checkpoint=tmp_path / "sub" / "run.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert list((tmp_path / "sub").iterdir()) == []


def test_an_error_that_is_not_the_disks_is_not_called_so(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(checkpoint=tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_hook_state_that_could_not_be_read_back_is_refused_at_once(tmp_path):
    class Odd:
        def state_dict(self):
            return {"where": Path("x")}

        def load_state_dict(self, state): ...

    with pytest.raises(ValueError, match="must be tensors and plain Python"):
        train(hooks=[Odd()], checkpoint=tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == []


# ---- numbers that are not

@pytest.mark.parametrize("look_every", [1, 5, 20])
def test_bad_loss_names_its_step_and_spares_the_checkpoint(tmp_path, monkeypatch, look_every):
    monkeypatch.setitem(training._LOOK_EVERY, "cpu", look_every)      # 20 is what a GPU run does
    calls = []

    def bad_from_the_ninth(model, batch):
        calls.append(1)
        return squares(model, batch) * (float("inf") if len(calls) >= 9 else 1)

    with pytest.raises(FloatingPointError, match=r"loss is inf at step 8 \(counted from 0\)"):
        train(loss_fn=bad_from_the_ninth, checkpoint=tmp_path / "run.pt", checkpoint_every=3)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    assert saved["step"] == 6 and all(v.isfinite().all() for v in saved["parts"][0].values())


def test_bad_gradient_under_a_good_loss_never_reaches_the_disk(tmp_path):
    def root_at_zero(model, batch):
        return squares(model, batch) + (0 * model(batch[0])).sum().abs().sqrt()      # value 0, slope infinite

    with pytest.raises(FloatingPointError, match="parameter '0.weight' is not finite after step 0"):
        train(loss_fn=root_at_zero, checkpoint=tmp_path / "run.pt", checkpoint_every=1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FloatingPointError, match="after step 0"):                    # without a checkpoint: at the end
        train(1, loss_fn=root_at_zero)


# ---- several processes

LAUNCHED = '''
import sys, torch
sys.path.insert(0, sys.argv[1])
import test_training as t
from pathlib import Path
out = Path(sys.argv[2])
results = t.runs_for_processes(1, out)
rank = torch.distributed.get_rank()
torch.save(results, out / f"rank{rank}.pt")
try:
    t.train(loss_fn=lambda m, b: t.squares(m, b) * (float("nan") if rank == 1 else 1))
except FloatingPointError as error:
    (out / f"stopped{rank}").write_text(str(error))
try:
    for _ in range(2): t.train(checkpoint=out / f"mine{rank}" / "run.pt")     # folders that are not shared: only rank 0's gets a file
except ValueError as error:
    (out / f"apart{rank}").write_text(str(error))
torch.distributed.destroy_process_group()
'''


def runs_for_processes(accumulate, folder):
    """Three trainings, one after another in the same process: plain, with chance, and stopped and resumed."""
    def plain_mlp(dropout=0.0):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))

    def noisy(batch, generator):
        return batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator), batch[1]

    results = {}
    for name, dropout, transform, micro in (("plain", 0.0, None, 1), ("chance", 0.3, noisy, accumulate)):
        model = plain_mlp(dropout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        with_mean = lambda m, b: (squares(m, b), {"first": b[0].mean()})
        history = fit(model, Batches((X, Y), 12, transform=transform), with_mean, optimizer, 20, device="cpu", scheduler=schedule,
                      accumulate=micro, clip_norm=0.5, progress=False)
        results[name] = [vector(model), torch.tensor(history.loss), torch.tensor(history.scalars["first"]), torch.tensor(schedule.get_last_lr())]
    for bomb in (7, 0):
        try:
            model, history = train(model=plain_mlp(), optimizer=torch.optim.SGD, lr=0.1, hooks=[Bomb(bomb)], checkpoint=folder / "run.pt",
                                   checkpoint_every=5)
            results["resumed"] = [vector(model), torch.tensor(history.loss), torch.tensor(history.resumed_from)]
        except InterruptedError:
            assert bomb == 7
    return results


def test_two_processes_give_the_result_of_one(tmp_path):
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    (tmp_path / "alone").mkdir()
    done = python(script, Path(__file__).parent, tmp_path,
                  # --multi_gpu only picks the launcher that starts processes; with --cpu, Accelerate would leave that to mpirun and start one
                  launcher=("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                            "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"))
    assert done.returncode == 0, done.stderr[-3000:]
    one = runs_for_processes(2, tmp_path / "alone")           # two micro-batches draw what two processes draw
    two = [torch.load(tmp_path / f"rank{r}.pt") for r in (0, 1)]
    assert len(one) == 3
    for name, values in one.items():
        for i, want in enumerate(values):
            torch.testing.assert_close(two[0][name][i], want, atol=1e-6, rtol=0)
            assert torch.equal(two[0][name][i], two[1][name][i])
    for rank in (0, 1):                                        # the bad loss of one process stops both
        assert "loss is nan at step 0 " in (tmp_path / f"stopped{rank}").read_text()
        assert "checkpoints of different steps, [0, 12]" in (tmp_path / f"apart{rank}").read_text()


# ---- what a call leaves behind

def test_settings_marks_and_modes_are_as_before():
    states = (AcceleratorState, PartialState, GradientState)
    for state in states:
        state._shared_state.clear()
    try:
        mine = Accelerator(cpu=True)
        before = [dict(s._shared_state) for s in states]
        model = mlp()
        attributes = set(model.__dict__)
        seen = []

        def look(m, batch):
            out = m(batch[0])
            with torch.no_grad():
                seen.append((out.dtype, m[0](batch[0]).dtype))
            return F.mse_loss(out, batch[1])

        train(2, model=model, loss_fn=look, mixed_precision="bf16")
        train(2, model=model, loss_fn=look)
        assert seen == [(torch.float32, torch.float32)] * 4
        assert [dict(s._shared_state) for s in states] == before and mine.mixed_precision == "no"
        assert set(model.__dict__) == attributes
        assert torch.equal(vector(pickle.loads(pickle.dumps(model))), vector(copy.deepcopy(model)))
    finally:
        for state in states:
            state._shared_state.clear()


def test_bf16_reaches_the_model_and_only_the_model():
    class Probe(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            dtypes.append(out.dtype)
            return out

    dtypes = []
    model = nn.Sequential(Probe(8, 1))
    train(1, model=model, mixed_precision="bf16")
    train(1, model=model, mixed_precision="no")
    with pytest.raises(ZeroDivisionError):
        train(1, model=model, mixed_precision="bf16", loss_fn=lambda m, b: 1 / 0)
    model(X)
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]


def test_scalars_of_every_kind_are_recorded():
    _, history = train(3, loss_fn=lambda m, b: (squares(m, b), {"int": 2, "tensor": b[1].mean(), "numpy": np.float64(0.5)}), accumulate=2)
    batches = Batches((X, Y), 12)
    assert history.scalars["int"] == [2.0] * 3 and history.scalars["numpy"] == [0.5] * 3
    assert history.scalars["tensor"] == pytest.approx([float(batches(k)[1].mean()) for k in range(3)], abs=1e-6)


def test_every_part_of_every_step_draws_its_own_numbers():
    def draws(seed):
        seen = []
        train(3, loss_fn=lambda m, b: (seen.append(float(torch.rand(()))), squares(m, b))[1], accumulate=2, seed=seed)
        return seen
    assert len({*draws(0), *draws(1)}) == 12 and draws(0) == draws(0)


def test_a_compiled_model_trains_and_stays_compiled():
    plain, _ = train(5)
    compiled, _ = train(5, model=torch.compile(mlp(), backend="eager"))
    assert torch.equal(vector(compiled), vector(plain)) and hasattr(compiled, "_orig_mod")
    assert compiled(X).shape == (48, 1)


def test_progress_goes_to_stderr_or_nowhere(capsys):
    train(3)
    assert capsys.readouterr() == ("", "")
    train(3, progress=True, desc="shown")
    out, err = capsys.readouterr()
    assert out == "" and "shown" in err and "/3" in err


def test_automatic_checkpoints(tmp_path, monkeypatch):
    monkeypatch.delenv("PAPERLIB_WORK", raising=False)
    train()
    monkeypatch.setenv("PAPERLIB_WORK", str(tmp_path / "work"))
    with pytest.raises(InterruptedError):
        train(desc="SRCNN x3/a", hooks=[Bomb(9)], checkpoint_every=4)
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["SRCNN-x3-a.pt"]
    _, history = train(desc="SRCNN x3/a", hooks=[Bomb(0)], checkpoint_every=4)
    assert history.resumed_from == 8
    with pytest.raises(ValueError, match="'SRCNN x3/a' has already finished in this run: give each its own desc"):
        train(desc="SRCNN x3/a")
    train(desc="unsaved", checkpoint=None)
    assert len(list((tmp_path / "work").iterdir())) == 1


# ---- bad calls

@pytest.mark.parametrize("kwargs, says", [
    (dict(steps=-1), "steps must be an integer >= 0, got -1"), (dict(accumulate=0), "accumulate must be"), (dict(steps=2.5), "got 2.5"),
    (dict(checkpoint_every=0), "checkpoint_every must"), (dict(mixed_precision="fp16"), "got 'fp16'"), (dict(device="gpu"), "unknown device 'gpu'"),
    (dict(seed=-1), "seed must be an integer >= 0"), (dict(accumulate=5), "into 5 equal parts"),
    (dict(loss_fn=lambda m, b: m(b[0])), "got shape (12, 1)"), (dict(loss_fn=lambda m, b: squares(m, b).item()), "got float"),
    (dict(loss_fn=lambda m, b: squares(m, b).detach()), "requires_grad False"),
    (dict(loss_fn=lambda m, b: (squares(m, b), {"loss": 1.0})), "none of them named 'loss'"),
    (dict(loss_fn=lambda m, b: (squares(m, b), {"per_sample": b[1]})), "must be numbers, none of them named 'loss'; got ['per_sample']")])
def test_bad_calls(kwargs, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        train(**kwargs)


def test_more_bad_calls():
    model = mlp()
    with pytest.raises(ValueError, match="batches must be a function .* got TensorDataset"):
        fit(model, TensorDataset(X, Y), squares, torch.optim.SGD(model.parameters()), 1, device="cpu")
    with pytest.raises(ValueError, match="the optimizer holds no parameter of the model"):
        fit(model, Batches((X, Y), 12), squares, torch.optim.SGD(mlp().parameters()), 1, device="cpu", progress=False)
    names = iter("aab")
    with pytest.raises(ValueError, match=re.escape("the same scalars at every step, got [['b']] after ['a']")):
        train(loss_fn=lambda m, b: (squares(m, b), {next(names): 1.0}))


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_no_gpu_is_said(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"torch sees 0 GPU\(s\): say 'cpu' or 'auto'"):
        resolve_device(device)


def test_auto_obeys_a_launcher_that_says_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert resolve_device("auto") == torch.device("cpu")


def test_one_gpu_by_name_is_refused_under_a_launcher(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="'cuda:1' names one GPU, but a launcher started this process"):
        train(device="cuda:1", mixed_precision="no")


# ---- weights

def test_weights_by_name_need_a_work_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("PAPERLIB_WORK", raising=False)
    assert save_weights(mlp(), "tiny_x2", {}) is None
    monkeypatch.setenv("PAPERLIB_WORK", str(tmp_path))
    path = save_weights(mlp(), "tiny_x2", {"preset": "smoke"})
    assert path == tmp_path / "weights" / "tiny_x2.safetensors"
    assert sorted(p.name for p in path.parent.iterdir()) == ["tiny_x2.json", "tiny_x2.safetensors"]


def test_weights_keep_every_dtype_tied_and_strided_tensors(tmp_path):
    tied = torch.arange(6.0).view(2, 3)
    state = {"a": tied, "b": tied, "t": tied.T, "n": torch.tensor(3), "h": tied.bfloat16(), "empty": torch.zeros(0, 2)}
    loaded, _ = load_weights(save_weights(state, tmp_path / "w.safetensors", {}))
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert loaded[key].dtype == value.dtype and torch.equal(loaded[key], value)


def test_weights_errors(tmp_path):
    path = save_weights(mlp(), tmp_path / "w.safetensors", {"a": 1})
    whole = path.read_bytes()
    for cut in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="w.safetensors is truncated or not a safetensors file"):
            load_weights(path)
    with pytest.raises(FileNotFoundError, match="no weights at .*absent"):
        load_weights(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match="must be plain JSON"):
        save_weights(mlp(), path, {"psnr": float("nan")})
    with pytest.raises(ValueError, match="must be plain JSON"):
        save_weights(mlp(), path, {"x": X})
    with pytest.raises(ValueError, match="into a .safetensors file, got '.*w.pt'"):
        save_weights(mlp(), tmp_path / "w.pt", {})
    with pytest.raises(ValueError, match="got 'w.pt'"):        # not a name that is quietly not written
        save_weights(mlp(), "w.pt", {})
    import safetensors.torch
    safetensors.torch.save_file({"x": X}, path)
    with pytest.raises(ValueError, match="has no card"):
        load_weights(path)


def test_a_failed_write_keeps_the_old_weights(tmp_path, monkeypatch):
    path = save_weights({"x": X}, tmp_path / "w.safetensors", {"round": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="could not write weights: No space left on device; what stood there before is intact"):
        save_weights({"x": Y}, path, {"round": 2})
    state, card = load_weights(path)
    assert card == {"round": 1} and torch.equal(state["x"], X)
    assert len(list(tmp_path.iterdir())) == 2


# ---- with a GPU

@needs_gpu
def test_gpu_result_is_that_of_the_cpu_and_back_again():
    on_cpu, _ = train(20, optimizer=torch.optim.SGD)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for device, steps in (("cuda", 20),):
        fit(model, Batches((X, Y), 12), squares, optimizer, steps, device=device, mixed_precision="no", progress=False)
    assert next(model.parameters()).device.type == "cuda"
    torch.testing.assert_close(vector(model), vector(on_cpu), atol=1e-4, rtol=0)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    for device in ("cuda", "cpu", "cuda:0"):                   # the moments follow the model
        fit(model, Batches((X, Y), 12), squares, adam, 3, device=device, progress=False)
        assert next(model.parameters()).device.type == device[:4].rstrip(":")
        assert all(s["exp_avg"].device == p.device for p, s in adam.state.items())


@needs_gpu
def test_gpu_defaults_to_bf16_where_it_is_built_in():
    class Probe(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            dtypes.append(out.dtype)
            return out

    dtypes = []
    _, history = train(3, model=nn.Sequential(Probe(8, 1)), device="cuda")
    assert set(dtypes) == {torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float32}
    assert history.steps == 3


@needs_gpu
def test_gpu_resume_and_nan_stop(tmp_path):
    with pytest.raises(InterruptedError):
        train(40, device="cuda", hooks=[EMA(0.9), Bomb(33)], checkpoint=tmp_path / "a.pt", checkpoint_every=15, mixed_precision="no")
    ema = EMA(0.9)
    model, history = train(40, device="cuda", hooks=[ema, Bomb(0)], checkpoint=tmp_path / "a.pt", checkpoint_every=15, mixed_precision="no")
    whole, _ = train(40, device="cuda", mixed_precision="no")
    assert history.resumed_from == 30 and next(iter(ema.shadow.values())).is_cuda
    torch.testing.assert_close(vector(model), vector(whole), atol=1e-4, rtol=0)
    calls = []

    def bad(m, b):
        calls.append(1)
        return squares(m, b) * (float("nan") if len(calls) >= 9 else 1)

    with pytest.raises(FloatingPointError, match="loss is nan at step 8 "):
        train(40, device="cuda", loss_fn=bad)


class Normed(nn.Module):
    """A net with dropout and statistics of a batch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

    def forward(self, x):
        return self.layers(x)


def normed(steps, **kwargs):
    torch.manual_seed(0)
    model = Normed()
    history = fit(model, Batches((X, Y), 12), squares, torch.optim.Adam(model.parameters(), 1e-2), steps, progress=False, mixed_precision="no", **kwargs)
    return model, history


def test_replay_is_not_looked_at_on_a_cpu():
    asked, replayed = (normed(10, device="cpu", replay=r)[0] for r in (None, lambda: pytest.fail("the key was asked for")))
    assert torch.equal(vector(asked), vector(replayed))


@needs_gpu
def test_replayed_steps_are_the_asked_ones():
    off = lambda m: [setattr(d, "p", 0.0) for d in m.modules() if isinstance(d, nn.Dropout)]
    hook = type("NoDropout", (), {"on_start": lambda self, model, optimizer: off(model)})
    (asked, one), (replayed, two) = (normed(40, device="cuda", hooks=[hook()], replay=r) for r in (None, lambda: None))
    torch.testing.assert_close(vector(replayed), vector(asked), atol=1e-4, rtol=0)
    for (key, a), b in zip(asked.named_buffers(), replayed.buffers()):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4, msg=key)         # statistics: moved once a step, not by the recording
    assert one.loss == pytest.approx(two.loss, abs=1e-3)


@needs_gpu
def test_a_replay_draws_anew_and_by_the_seed():
    seen = []

    def drawn(model, batch):
        noise = torch.rand((), device="cuda")
        return squares(model, batch) * (1 + 0 * noise), {"noise": noise}

    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = mlp()
        seen.append(fit(model, Batches((X, Y), 12), drawn, torch.optim.SGD(model.parameters(), 1e-2), 10, seed=seed, device="cuda", progress=False, replay=lambda: None).scalars["noise"])
    assert seen[0] == seen[1] != seen[2] and len(set(seen[0])) == 10


@needs_gpu
def test_each_key_and_each_shape_has_its_own_record():
    steps = []

    class Way:
        def on_step(self, model, optimizer, done):
            steps.append(done)

    signed = lambda model, batch: squares(model, batch) * (1.0 if len(steps) % 2 else 2.0)
    ragged = lambda step, rank, world: tuple(t[:6 + step % 3] for t in (X, Y))
    losses = []
    for replay in (None, lambda: len(steps) % 2):
        steps.clear()
        torch.manual_seed(0)
        model = mlp()
        losses.append(fit(model, ragged, signed, torch.optim.SGD(model.parameters(), 1e-3), 12, device="cuda", mixed_precision="no", hooks=[Way()], progress=False, replay=replay).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@needs_gpu
@pytest.mark.parametrize("fixed", [1.0, torch.tensor(1.0)])
def test_a_replayed_number_is_refused(fixed):
    model = mlp()
    with pytest.raises(ValueError, match="with replay, scalars beside the loss must be tensors on its device.*'epoch'"):
        fit(model, Batches((X, Y), 12), lambda m, b: (squares(m, b), {"epoch": fixed}), torch.optim.SGD(model.parameters(), 1e-3), 2, device="cuda", progress=False, replay=lambda: None)


@needs_gpu
def test_a_loss_that_waits_for_the_device_cannot_be_recorded():
    model = mlp()
    with pytest.raises(RuntimeError, match="with replay a loss must not wait for the device"):
        fit(model, Batches((X, Y), 12), lambda m, b: squares(m, b) * (1 + 0 * squares(m, b).item()), torch.optim.SGD(model.parameters(), 1e-3), 2, device="cuda", progress=False, replay=lambda: None)


@needs_gpu
def test_a_parameter_that_only_the_optimizer_holds_is_trained_by_replays():
    outcomes = []
    for replay in (None, lambda: None):
        torch.manual_seed(0)
        model, gain = mlp(), torch.ones((), device="cuda", requires_grad=True)
        optimizer = torch.optim.SGD([*model.parameters(), gain], 1e-2)
        fit(model, Batches((X, Y), 12), lambda m, b, gain=gain: (gain * m(b[0]) - b[1]).square().mean(), optimizer, 10, device="cuda", mixed_precision="no", progress=False, replay=replay)
        outcomes.append(gain.item())
    assert outcomes[0] == pytest.approx(outcomes[1], abs=1e-5) and abs(outcomes[0] - 1) > 1e-4


@needs_gpu
def test_parameters_that_a_hook_replaces_are_recorded_anew():
    class Swap:
        def on_step(self, model, optimizer, done):
            if done == 5:
                for p in model.parameters():
                    p.data = p.data.clone()

    outcomes = []
    for replay in (None, lambda: None):
        torch.manual_seed(0)
        model = mlp()
        fit(model, Batches((X, Y), 12), squares, torch.optim.SGD(model.parameters(), 1e-2), 12, device="cuda", mixed_precision="no", hooks=[Swap()], progress=False, replay=replay)
        outcomes.append(vector(model))
    torch.testing.assert_close(outcomes[0], outcomes[1], atol=1e-5, rtol=0)


@needs_gpu
@pytest.mark.parametrize("slug", ["simvp", "swinlstm", "phydnet"])
def test_replayed_steps_of_the_video_papers_are_the_asked_ones(slug, monkeypatch):
    """In bf16, with clipped gradients and with both ways of PhyDNet's teacher forcing, as their presets train."""
    record, losses = paperlib.paper(slug), []
    preset = record.preset("smoke", {"steps": 12})
    given = material(preset.data, preset.size, preset.frames_in + preset.frames_out, 8, preset.batch_size, 4, 0)
    for replayed in (False, True):
        monkeypatch.setattr(record.module, "fit", fit if replayed else lambda *a, replay=None, **k: fit(*a, **k))
        torch.manual_seed(0)
        size = (preset.size, preset.size)
        model = record.module.PhyDNet(**record.module.config_of(preset, 1)) if slug == "phydnet" else getattr(record.module, record.model)(**record.module.config_of(preset, 1, size))
        losses.append(record.module.train(model, given.batches, preset, 0, torch.device("cuda")).loss)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_a_replayed_batch_holds_tensors_alone():
    a, b, c = torch.zeros(2), torch.ones(3), torch.ones(1)
    assert {k: t.shape for k, t in training._tensors({"x": (a, [b]), "y": c}).items()} == {"/x/0": (2,), "/x/1/0": (3,), "/y": (1,)}
    with pytest.raises(ValueError, match="with replay, a batch must be tensors in tuples, lists or dicts, got a str in it"):
        training._tensors((a, {"name": "x"}))
