"""Start-up, memory and order of large unlabelled pools: ``python benchmarks/shards.py``.

Writes tar files of tiny images (about 1 GB for a million), opens them for the first time (which makes their indices)
and again, and reads some in a process of its own, as a loading worker does, in random and in sharded order.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image

CODE = """
import resource, sys, time
began = time.perf_counter()
from pathlib import Path
from allspark.config.schema import DataConfig
from allspark.data.image import read_image
from allspark.data.order import index_at
from allspark.data.shards import Shards, find_shards
imported = time.perf_counter()
shards = Shards(find_shards(Path(sys.argv[1])))
opened = time.perf_counter()
print(f"imports {imported - began:.2f} s, opened {len(shards):,} images in {opened - imported:.2f} s")
for order in ("random", "sharded"):
    config = DataConfig(unlabeled_order=order)
    began = time.perf_counter()
    for place in range(int(sys.argv[2])):
        read_image(shards[index_at(place, shards, config, 0, 1, 0)].image)
    taken = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{order}: {int(sys.argv[2]) / taken:,.0f} images/s, peak of the whole process {peak:.0f} MB")
"""


def write_pool(folder: Path, images: int, files: int) -> None:
    """Tar files of one tiny picture each time; the names count."""
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "png")
    data = content.getvalue() + b"\0" * (-content.tell() % 512)
    for number in range(files):
        with (folder / f"pool-{number:04d}.tar").open("wb") as tar:
            for i in range(images // files):
                info = tarfile.TarInfo(f"{number:04d}/image_{i:08d}.png")
                info.size = content.tell()
                tar.write(info.tobuf(tarfile.USTAR_FORMAT) + data)
            tar.write(b"\0" * 1024)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--read", type=int, default=20_000, help="images read in each order")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        write_pool(Path(folder), args.images, args.files)
        print(f"wrote {args.files} tar files in {time.perf_counter() - began:.1f} s")
        for what in ("first", "again"):
            print(f"-- {what}", flush=True)
            one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, "-c", CODE, folder, str(args.read)], check=True, env=one_thread)


if __name__ == "__main__":
    main()
