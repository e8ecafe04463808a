"""Workers of Ray, on a cluster of this machine: the same posteriors, whatever dies, fails or is interrupted."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace

import pytest
from test_workers import ALONE, ENGINE, MODELS, Trouble, facts, walk

import feynkac as fk

# Ray forks to run another program at once, which is safe beside JAX's threads; JAX warns of every fork in its process.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray = pytest.importorskip("ray")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=2, num_gpus=1, **quiet)
    yield ray
    ray.shutdown()


@fk.program
async def killed(steps, scale, flag):
    """Kills its process, once."""
    x = 0.0
    for t in range(steps):
        x = await fk.sample("x", fk.dist.Normal(x, scale))
        if t == 1 and not os.path.exists(flag):
            open(flag, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        await fk.factor("G", -x * x)
    return x


def plain(posterior):
    return facts(replace(posterior, model=""))


def test_posteriors_are_those_of_one_process_though_a_worker_is_killed(tmp_path):
    flag = str(tmp_path / "killed")
    models = [killed(i % 4 + 1, 1.0 + i / 10, flag) for i in range(11)]
    found = fk.infer(models, ENGINE, seed=3, workers=fk.Ray(2, chunk=5))
    assert os.path.exists(flag)
    assert list(map(plain, found)) == list(map(plain, ALONE))


@pytest.mark.parametrize("chunk", [8, 64])
def test_posteriors_do_not_depend_on_the_chunk(chunk):
    steps = []
    found = fk.infer(MODELS, ENGINE, seed=3, workers=fk.Ray(2, chunk=chunk), callbacks=[steps.append])
    assert list(map(facts, found)) == list(map(facts, ALONE))
    assert len(steps) == sum(len(chain.steps) for p in ALONE for chain in p.chains)


def test_errors_of_models_arrive_in_their_own_type_and_lose_nothing(tmp_path):
    """Also: a folder, a function that makes the models of a device, callbacks, and warnings."""
    devices = tmp_path / "devices"
    devices.mkdir()

    def models(device):
        import warnings

        (devices / f"{device} {os.getpid()}").touch(exist_ok=False)  # once in each process
        warnings.warn("a warning of a worker", UserWarning, stacklevel=1)
        return [walk(3, 1.4, "raises") if i == 4 else walk(i % 4 + 1, 1.0 + i / 10) for i in range(11)]

    steps, workers = [], fk.Ray(2, chunk=3, gpus=0.5)
    with pytest.warns(UserWarning, match="a warning of a worker"), pytest.raises(Trouble) as caught:
        fk.infer(models, ENGINE, seed=3, workers=workers, save=tmp_path / "run", callbacks=[steps.append])
    error = caught.value
    assert type(error) is Trouble
    assert str(error) == "a bad problem (7)"
    assert "problem 4 of 11" in "".join(error.__notes__)
    assert "in walk" in "".join(error.__notes__)
    assert error.posterior.missing == (4,)
    others = [i for i in range(11) if i != 4]
    assert [facts(error.posterior[i]) for i in others] == [facts(ALONE[i]) for i in others]
    made = [path.name.split()[0] for path in devices.iterdir()]
    assert made in (["cuda"], ["cuda"] * 2)  # the second worker may come when all is done
    assert len(steps) >= sum(len(chain.steps) for i in others for chain in ALONE[i].chains)


def test_ctrl_c_keeps_what_is_there():
    @fk.program
    async def slow(steps):
        import time

        for _ in range(steps):
            await fk.call("wait", fk.batched(lambda xs: time.sleep(0.2) or xs), 0)
            x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
            await fk.factor("G", -x * x)
        return x

    def interrupt(step):
        if step.depth == 2:
            os.kill(os.getpid(), signal.SIGINT)

    models = [slow(n) for n in (1, 60, 60, 60)]
    found = fk.infer(models, fk.SMC(4), seed=0, workers=fk.Ray(2, chunk=1), callbacks=[interrupt])
    assert [p.stopped for p in found] == [None, "interrupted", "interrupted", "interrupted"]
    alone = fk.infer(models[:1], fk.SMC(4), seed=0)
    assert facts(found[0]) == facts(alone[0])
    assert max(len(p.steps) for p in found) >= 3
    assert all(p.guarantee == "prefix" for p in found[1:])
    assert len(found[3]) == 0


def test_chains_of_one_model_are_shared_out():
    found = fk.infer(MODELS[3], ENGINE, seed=3, workers=fk.Ray(2, chunk=1))
    assert facts(found) == facts(fk.infer(MODELS[3], ENGINE, seed=3))


def test_a_function_that_cannot_make_its_models_says_so():
    def models():
        raise Trouble(1, "no weights here")

    with pytest.raises(Trouble, match="no weights here"):
        fk.infer(models, ENGINE, seed=0, workers=fk.Ray(1))
    with pytest.raises(fk.errors.CannotSend, match="pass a function that makes the models"):
        fk.infer([walk(threading.Lock())], ENGINE, seed=0, workers=fk.Ray(1))
    with pytest.raises(fk.errors.WorkerLost, match="workers die before they have their models"):
        fk.infer(lambda: os._exit(1), ENGINE, seed=0, workers=fk.Ray(1, max_retries=0))
