"""An S3 server on PORT of this machine, whose bucket `data` holds the files below FOLDER, if one is named.

It begins to listen once they are there, prints `ready`, and serves until its stdin ends.
"""
import sys
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

port = int(sys.argv[1])
first = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
first.start()
host, own = first.get_host_and_port()
client = boto3.client(
    "s3",
    endpoint_url=f"http://{host}:{own}",
    aws_access_key_id="test",
    aws_secret_access_key="test",
    region_name="us-east-1",
)
client.create_bucket(Bucket="data")
if len(sys.argv) > 2:
    root = Path(sys.argv[2])
    for path in sorted(root.rglob("*")):
        if path.is_file():
            client.put_object(Bucket="data", Key=str(path.relative_to(root)), Body=path.read_bytes())
ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False).start()
print("ready", flush=True)
sys.stdin.read()
