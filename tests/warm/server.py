"""Loads what takes long to load, and then forks for each request of `program.py`; see the package's docstring."""

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import sys
import threading
import types

# What homojl and torchrun load.
LIBRARIES = (
    "torch", "torch.distributed.run", "numpy", "h5py", "click", "tomlkit", "safetensors.torch", "PIL.Image", "tqdm",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg",
    "torch._dynamo", "torch.profiler", "juliapkg.deps", "tensorboard", "statistics",
)  # fmt: skip


def serve(path: str) -> list[str]:
    """Fork for every request until the standard input ends. Returns, in each child, its arguments."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    waiting = selectors.DefaultSelector()
    for source in (listener, woken, 0):
        waiting.register(source, selectors.EVENT_READ)
    clients: dict[int, socket.socket] = {}  # by the process forked for them
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            if key.fileobj == 0:
                for child in clients:
                    os.kill(child, signal.SIGKILL)
                os._exit(0)
            elif key.fileobj == woken:
                os.read(woken, 4096)
                while clients:
                    child, status = os.waitpid(-1, os.WNOHANG)
                    if child == 0:
                        break
                    client = clients.pop(child)
                    with contextlib.suppress(KeyError):
                        waiting.unregister(client)
                    with client, contextlib.suppress(OSError):
                        client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            elif key.fileobj is listener:
                client = listener.accept()[0]
                request, streams = receive(client)
                child = os.fork()
                if child == 0:
                    signal.set_wakeup_fd(-1)
                    waiting.close()
                    for other in (listener, client, *clients.values()):
                        other.close()
                    os.close(woken)
                    os.close(wake)
                    return become(request, streams)
                for stream in streams:
                    os.close(stream)
                clients[child] = client
                client.sendall(f"{child}\n".encode())
                waiting.register(client, selectors.EVENT_READ, child)
            elif key.data in clients:  # its program was killed
                waiting.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)


def receive(client: socket.socket) -> tuple[dict, list[int]]:
    size, streams, _, _ = socket.recv_fds(client, 8, 3)
    return json.loads(client.makefile("rb").read(int.from_bytes(size, "big"))), streams


def become(request: dict, streams: list[int]) -> list[str]:
    """Make this process what the request says, but for what it runs."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    # Those of the server know what its own streams were, such as seekable.
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    resource.setrlimit(resource.RLIMIT_FSIZE, request["largest_file"])
    return request["arguments"]


def run(arguments: list[str]) -> None:
    """Run what Python would run, given these arguments."""
    if arguments[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        arguments = arguments[1:]
    kind, what = arguments[0], arguments[1] if len(arguments) > 1 else ""
    sys.path[:0] = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if "WARM_WITHOUT_FIGURES" in os.environ:
        importlib.import_module("homojl.results.plots").draw_all = lambda *_, **__: []
    if kind == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        sys.argv = ["-m", *arguments[2:]]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert not kind.startswith("-"), f"not an option of the warm Python: {kind}"
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
        runpy.run_path(kind, run_name="__main__")


def leave(code: object) -> None:
    """End as Python does, but for the taking apart of all that was loaded."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()
    arguments = serve(sys.argv[1])
    if any(name.startswith("COVERAGE_PROCESS_") for name in os.environ):  # as a new interpreter would begin
        import coverage

        coverage.process_startup()
    try:
        run(arguments)
    except SystemExit as end:
        leave(end.code)
    leave(None)
