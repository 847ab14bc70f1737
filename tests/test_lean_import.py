"""`import tuckprop` needs torch alone, and no network."""

import subprocess
import sys

# What only the extras bring. (torch itself may import numpy.)
EXTRAS = [
    "timm", "torchvision", "matplotlib", "tyro", "rich", "sklearn", "scipy", "pandas", "safetensors", "PIL", "tensorly",
    "hypothesis", "pytest", "huggingface_hub", "torchmetrics", "segmentation_models_pytorch", "transformers",
    "accelerate", "lightning",
]  # fmt: skip

STATE = "(torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed())"


def run(code: str) -> tuple[str, str]:
    """Run `code` in a fresh interpreter, to its end; return what it prints on both streams."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_importing_brings_no_extra_touches_no_network_and_leaves_torch_as_it_was() -> None:
    out, err = run(
        "import socket, sys, torch\n"
        "def refuse(*args, **kwargs): raise SystemExit('the network was touched')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse\n"
        f"torch.manual_seed(5); before, state = set(sys.modules), {STATE}\n"
        "import tuckprop\n"
        f"assert {STATE} == state\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    brought = out.split()
    assert err == ""
    assert "tuckprop" in brought
    assert not set(brought) & set(EXTRAS)
    # Parts of torch that it does not import by itself may come besides.
    assert {name for name in brought if name not in sys.stdlib_module_names} <= {"tuckprop", "torch"}


def test_the_core_works_where_torch_is_all_there_is() -> None:
    run(
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
        "import torch, tuckprop\n"
        "model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))\n"
        "x = torch.ones(16, 3, 32, 32)\n"
        "print(tuckprop.plan(model, x, tuckprop.HOSVD(epsilon=0.8)))\n"
        "tuckprop.convert(model, tuckprop.HOSVD(epsilon=0.8))\n"
        "print(tuckprop.measure(model, lambda m: m(x).sum()))\n"
        "tuckprop.revert(model)"
    )


def test_no_module_of_unix_alone_is_needed() -> None:
    run(
        "import sys\n"
        "sys.modules['resource'] = None\n"
        "import torch, tuckprop\n"
        "model = tuckprop.convert(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), tuckprop.Dense())\n"
        "print(tuckprop.measure(model, lambda m: m(torch.ones(2, 4)).sum()))"
    )
