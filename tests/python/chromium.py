"""A headless Chromium to look at the page with: the one that CHROMIUM names, one of this machine, or the one that the
package @sparticuz/chromium of npm's registry carries, unpacked into the user's cache once. Prints the program's path; ends
with an error where there is none."""
import hashlib
import io
import os
import shutil
import sys
import tarfile
import urllib.request
from pathlib import Path

import brotli

from once import once

URL = "https://registry.npmjs.org/@sparticuz/chromium/-/chromium-153.0.0.tgz"
SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"

given = os.environ.get("CHROMIUM")
found = given or next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome", "chrome"])), None)
if found:
    print(found)
    sys.exit()


def unpack(folder):
    try:
        package = urllib.request.urlopen(URL, timeout=60).read()
    except OSError as e:
        sys.exit(f"there is no Chromium on this machine, and {URL} cannot be had: {e}")
    if hashlib.sha256(package).hexdigest() != SHA256:
        sys.exit(f"{URL} is not what it was")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(package)) as members:
        for member in members:
            name = Path(member.name).name
            if not name.endswith(".br"):
                continue
            data = brotli.decompress(members.extractfile(member).read())
            if name.endswith(".tar.br"):
                with tarfile.open(fileobj=io.BytesIO(data)) as inner:
                    inner.extractall(folder / name.removesuffix(".tar.br"), filter="data")
            else:
                program = folder / name.removesuffix(".br")
                program.write_bytes(data)
                program.chmod(0o755)
    # The package's own configuration of fonts names a folder that is not here.
    (folder / "fonts.conf").write_text(
        f"""<?xml version="1.0"?><fontconfig><dir>{folder}/fonts</dir><dir>/usr/share/fonts</dir>
        <cachedir>{folder}/font-cache</cachedir></fontconfig>""")


print(once(f"chromium-{SHA256[:12]}", "chromium.lock", unpack) / "chromium")
