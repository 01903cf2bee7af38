"""A Python that has the heavy libraries loaded: a process that starts in it is a fork, there in 50 ms where a new one imports for three seconds.

`warm_python.py serve SOCKET` loads them and forks; `warm_python.py run SOCKET …` is a process like `python …` (`-m MODULE`, `-c CODE` or a file, then
arguments): arguments, folder, environment, files and exit status are those of the fork. Signals reach the fork; it dies when its client is killed.
What a process imports, and what a library reads from the environment as it is loaded, can only be tested in a new one.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
from pathlib import Path

HEAVY = (
    *(
        "numpy",
        "scipy.stats",
        "scipy.ndimage",
        "sklearn.datasets",
        "torch",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "openvino",
        "torch_pruning",
        "jinja2",
        "rich.table",
    ),
    *("torch.onnx._internal.exporter._compat", "torch.export", "torch.fx.experimental.symbolic_shapes"),
    *("kdpipe.pipeline.building", "kdpipe.pipeline.evaluating", "kdpipe.pipeline.report.render", "kdpipe.stages.teacher", "kdpipe.stages.distill"),
    *("kdpipe.stages.prune", "kdpipe.stages.qat", "kdpipe.stages.export", "kdpipe.stages.score", "kdpipe.stages.score_export", "kdpipe.stages.bench"),
    *("kdpipe.pipeline.cli",),
)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(path: str) -> None:
    """Forks for each client until standard input closes; a line on standard output says that it is ready."""
    import importlib

    for name in HEAVY:
        with contextlib.suppress(ImportError):  # an extra that is not installed is not needed
            importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [], 1)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if sys.stdin in ready:
                return
            if listener in ready:
                connection, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    _watch(connection)
                connection.close()


def _watch(connection: socket.socket) -> None:
    """Forks the process that was asked for, passes signals on to it and tells how it ended."""
    (size,) = struct.unpack("I", connection.recv(4, socket.MSG_WAITALL))
    text, files, _, _ = socket.recv_fds(connection, size, 3)
    while len(text) < size:
        text += connection.recv(size - len(text))
    asked = json.loads(text)
    child = os.fork()
    if child == 0:
        connection.close()
        _become(files, asked["arguments"], asked["folder"], asked["environment"])
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    while ended not in (ready := select.select([ended, connection], [], [])[0]):
        number = connection.recv(1) if connection in ready else b""
        os.kill(child, number[0] if number else signal.SIGKILL)
        if not number:
            break
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):  # the client is gone
        connection.send(struct.pack("i", os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(files: list[int], arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    import atexit
    import runpy
    import traceback

    for own, theirs in enumerate(files):
        os.dup2(theirs, own)
        os.close(theirs)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", buffering=1 if number == 2 else -1, encoding="utf-8", closefd=False))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status: object = 0
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], folder
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *arguments[2:]], folder
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as exit_:
        status = exit_.code
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        status = 1
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(int(status or 0))


def run(path: str, arguments: list[str]) -> int:
    """Exit status of the fork; where a signal killed it, the same signal kills this process."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        for number in FORWARDED:
            signal.signal(number, lambda number, _: connection.send(bytes([number])))
        text = json.dumps({"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}).encode()
        connection.send(struct.pack("I", len(text)))
        sent = socket.send_fds(connection, [text], [0, 1, 2])
        connection.sendall(text[sent:])
        answer = connection.recv(4)
    if len(answer) < 4:
        print("warm_python: the server is gone", file=sys.stderr)
        return 70
    (status,) = struct.unpack("i", answer)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        raise SystemExit(run(sys.argv[2], sys.argv[3:]))
