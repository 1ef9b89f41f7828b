"""The environment that every test runs in, set before JAX is imported, and shared fixtures.

Subprocesses that a test starts inherit it. There is no compilation cache on disk: JAX writes its
entries in place, so that a killed process (and the tests kill some) leaves a cut one behind.
"""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

if "jax" in sys.modules:
    raise pytest.UsageError("jax was imported before tests/conftest.py could set its environment")

for name in [name for name in os.environ if name.startswith("JAX_")]:
    del os.environ[name]  # the user's settings; tests see JAX's defaults but for these:
# Compiling is most of the time of the tests, and the newer emitters of fused loops are half of it;
# JAX 0.10 can do without them.
FUSED_LOOPS = ["--xla_cpu_use_fusion_emitters=false"] if metadata.version("jax") < "0.11" else []
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        *FUSED_LOOPS,
    ]
).strip()
os.environ["MPLBACKEND"] = "Agg"

# Each test process keeps to one core: XLA starts threads for each of the eight devices, and those
# of several test processes on the same cores wait for each other.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1 and so on
if WORKER and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})
gc.set_threshold(100_000)  # tracing makes many objects that live long

# A shell that starts the tests in the background, or `nohup`, leaves signals ignored, and a run
# respects that; the tests send them.
for number, default in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fidelity-table",
        action="store_true",
        help="write the errors that tests/fidelity finds into docs/fidelity.md",
    )


@pytest.fixture(scope="module", autouse=True)
def free_programs() -> Iterator[None]:
    """Each compiled program has many memory maps, of which Linux allows a process 65,530."""
    yield
    import jax  # after the environment is set

    from occinv.train import shared

    shared.forget()
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The runs of a module share their compiled programs, which is safe as nothing kills them."""
    from tiny_runs import compile_once  # imports JAX, after the environment is set

    with compile_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of labeled images for training and for validation."""
    from tiny_runs import make_images

    return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of arrays that the official code computed: $OCCINV_REFERENCE, or tests/reference.

    A test that asks for it fails where it is missing: it never skips.
    """
    folder = Path(os.environ.get("OCCINV_REFERENCE", REPOSITORY / "tests" / "reference"))
    if not (folder / "mae_pretrain.npz").is_file():
        pytest.fail(f"no reference arrays (mae_pretrain.npz and others) in {folder}")
    return folder
