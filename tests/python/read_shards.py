"""Prints what webdataset and Pillow read from tar shards: key, label, size and mean of each sample."""
import sys

import webdataset

for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False).decode("rgb8"):
    pixels = next(sample[ending] for ending in ("jpg", "png") if ending in sample)
    height, width, _ = pixels.shape
    print(sample["__key__"], sample["cls"], f"{width}x{height}", f"{pixels.mean():.2f}")
