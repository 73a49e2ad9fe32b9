"""Switches of Ray that it does not document, and where it keeps its files on this machine.

All of them were read in the source of Ray 2.60.0.
"""

import os
import sys

from recray.errors import RecrayError

POLL_VARIABLE = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
"""Seconds between two looks of Ray Train at its workers."""
PROXY_CHECK_VARIABLE = "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"
"""Seconds between two looks of Serve's controller at its proxies."""
RAY_SWITCHES = {
    # With Ray's 2.0 s every Train report costs 2 s, and fit() another 5 s at its end.
    POLL_VARIABLE: "0.2",
    # A dead or silent worker fails the run; Ray alone would wait for ever.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # A checkpoint is to be written within 10 s of the notice that a node is taken away.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "300",
    # Spinning threads of several workers on few cores are slower than one thread each.
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_COLOR_PREFIX": "0",  # what Ray says of its processes may go to a file
    # Serve kills its proxy where it needs longer than this to come up; its 5 s are too few for a
    # busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # A dead proxy is replaced when it has missed three checks, and these are 10 s apart in Ray.
    PROXY_CHECK_VARIABLE: "1",
    # What Serve's proxy answers where no replica does has the form of the service's own errors.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "recray.serving.proxy_replies:middlewares",
}
"""While recray has Ray running."""
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""0: Ray is for this machine alone and binds 127.0.0.1, its own default on macOS."""
JOIN_SWITCHES = {"RAY_gcs_server_port_wait_time_s": "8"}
"""While Ray tries to join a cluster whose head listens: it gives up after 8 s."""
TUNE_SWITCHES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no csv, json and TensorBoard files beside ours
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its snapshots are not used
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths are the user's: train.init_from may be relative
}
"""While Tune runs."""
PRODUCTION_SWITCHES = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}
"""Before Ray starts, on every node of a production service: HAProxy in place of Ray's Python proxy,
and one event loop in a replica. HAProxy binds every interface, so keys and a firewall belong to it.
"""
JOB_SWITCHES = {"RAY_JOB_STOP_WAIT_TIME_S": "20"}
"""Of a job: training writes its checkpoint when it is told to stop, and Ray's 3 s are too short."""
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the process that is the driver of a job."""
_TEMP_VARIABLES = ("RAY_TMPDIR", "TMPDIR")
"""Where Ray puts its files on Linux: the first that is set."""
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1"
"""The longest path of a socket in it."""
_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""The longest path that the system allows for a socket."""
SHORT_TEMP = "/tmp"


def temp_folder() -> str:
    """Where a local Ray keeps its files: the user's choice, or /tmp where that is too long.

    Raises:
        RecrayError: The choice is too long for the system's sockets, and /tmp is not writable.
    """
    name = next((name for name in _TEMP_VARIABLES if os.environ.get(name)), "")
    chosen = os.path.abspath(os.environ[name]) if name else SHORT_TEMP
    if len(os.fsencode(os.path.join(chosen, _SOCKET))) > _SOCKET_BYTES:
        if not os.access(SHORT_TEMP, os.W_OK | os.X_OK):
            raise RecrayError(
                f"{name} has {len(os.fsencode(chosen))} bytes, too many for Ray's sockets, and "
                f"{SHORT_TEMP} is not writable: set {_TEMP_VARIABLES[0]} to a folder of "
                f"{_SOCKET_BYTES - len(_SOCKET) - 1} bytes at most"
            )
        chosen = SHORT_TEMP
    return os.path.join(chosen, "ray")
