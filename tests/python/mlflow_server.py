"""An MLflow server on PORT of this machine, which keeps its runs and their files below FOLDER.

It prints `ready` once it answers, and serves until its stdin ends.
"""
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

port, folder = sys.argv[1], Path(sys.argv[2])
words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
words += ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
server = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
try:
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
            break
        except OSError:
            if server.poll() is not None:
                sys.exit("the server ended")
            time.sleep(0.5)
    else:
        sys.exit("the server does not answer")
    print("ready", flush=True)
    sys.stdin.read()
finally:
    # It has processes of its own.
    subprocess.run(["kill", "--", f"-{server.pid}"], check=False)
