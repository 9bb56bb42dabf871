"""Makes the files of parquet/, against which the reader of Parquet files is held, and
parquet/expected.json with what pyarrow reads from them: of each row the length and CRC-32
of its picture and its label, null where it has none. `pip install pyarrow`, then run it.
"""
import json
import os
import zlib
from base64 import b64decode, b64encode

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "parquet")
os.makedirs(out, exist_ok=True)
ROWS = 40
NAMES = ["cat", "dog", "emu"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(n, distinct=ROWS):
    n = n % distinct
    return b"\xff\xd8\xff picture %d " % n + bytes((n * 7 + i * i) % 251 for i in range(10 + 3 * (n % 17)))


def features(**kinds):
    found = {}
    for name, kind in kinds.items():
        found[name] = {"_type": kind} if kind != "ClassLabel" else {"names": NAMES, "_type": kind}
    return {b"huggingface": json.dumps({"info": {"features": found}}).encode()}


def structs(pictures, paths=True):
    rows = [None if p is None else {"bytes": p or None, "path": f"{n}.jpg" if paths else None} for n, p in enumerate(pictures)]
    return pa.array(rows, IMAGE)


def write(name, columns, metadata=None, schema=None, **options):
    table = pa.table(columns, schema=schema) if schema else pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata(metadata)
    defaults = dict(row_group_size=16, data_page_size=250, write_batch_size=3, use_dictionary=False, compression="none")
    pq.write_table(table, os.path.join(out, name + ".parquet"), **{**defaults, **options})


plain = [picture(n) for n in range(ROWS)]
few = [picture(n, 5) for n in range(ROWS)]
holes = [None if n % 7 == 3 else b"" if n % 11 == 5 else p for n, p in enumerate(plain)]
labels = pa.array([n % 3 for n in range(ROWS)], pa.int64())
gaps = pa.array([None if n % 9 == 4 else -1 if n % 13 == 6 else n % 3 for n in range(ROWS)], pa.int64())
of_hub = features(image="Image", label="ClassLabel")

write("snappy-dictionary-index", {"image": structs(few), "label": labels}, of_hub, compression="snappy", use_dictionary=True, write_page_index=True)
write("zstd-v2-index", {"image": pa.array(plain, pa.binary()), "label": labels}, compression="zstd", data_page_version="2.0", write_page_index=True)
write("gzip-nulls", {"image": structs(holes), "label": gaps}, of_hub, compression="gzip")
write("none-v2-dictionary-nulls-checksums", {"image": structs(holes), "label": gaps}, of_hub, use_dictionary=True, data_page_version="2.0", write_page_index=True, write_page_checksum=True)
write("brotli-no-statistics", {"img": pa.array(plain, pa.binary()), "labels": labels.cast(pa.uint8())}, compression="brotli", write_statistics=False)
write("lz4-large", {"image": pa.array(plain, pa.large_binary()), "label": labels.cast(pa.int32())}, compression="lz4", use_dictionary=["label"])
write("snappy-dictionary-full", {"image": structs(plain, False), "label": labels}, of_hub, compression="snappy", use_dictionary=True, dictionary_pagesize_limit=600, write_page_index=True)
write("zstd-delta", {"other": pa.array(range(ROWS)), "image": structs(plain), "label": labels}, of_hub, compression="zstd", data_page_version="2.0",
      column_encoding={"image.bytes": "DELTA_LENGTH_BYTE_ARRAY", "image.path": "DELTA_BYTE_ARRAY", "label": "DELTA_BINARY_PACKED"})
required = pa.schema([pa.field("image", pa.binary(), nullable=False), pa.field("label", pa.int64(), nullable=False)])
write("none-required", {"image": plain, "label": labels}, schema=required)
texts = [None if n == 8 else ["emu", "cat", "10", "9"][n % 4] for n in range(ROWS)]
write("snappy-texts", {"image": structs(plain), "label": pa.array(texts, pa.string())}, features(image="Image", label="Value"), compression="snappy", use_dictionary=True)
one = structs(plain[:4])
numbers = labels[:4]
write("cifar100", {"img": one, "fine_label": numbers, "coarse_label": numbers}, features(img="Image", fine_label="ClassLabel", coarse_label="ClassLabel"))

expected = {}
for file in sorted(os.listdir(out)):
    if file.endswith(".parquet"):
        table = pq.read_table(os.path.join(out, file))
        image = next(name for name in ("image", "img") if name in table.column_names)
        label = next(name for name in ("label", "labels", "fine_label") if name in table.column_names)
        rows = []
        for value, number in zip(table[image].to_pylist(), table[label].to_pylist()):
            content = value["bytes"] if isinstance(value, dict) else value
            rows.append([None if content is None else [len(content), zlib.crc32(content)], number])
        expected[file] = rows

# What is refused.
write("list", {"image": pa.array([[{"bytes": b"x", "path": None}]] * 2, pa.list_(IMAGE)), "label": pa.array([0, 1])})
write("two", {"image": one, "img": one, "label": numbers})
write("none", {"picture": one, "size": pa.array([1.5] * 4), "at": pa.array([0] * 4, pa.timestamp("ms"))})
write("decimals", {"image": one, "label": pa.array([1, 2, 3, 4], pa.decimal128(5, 2))})
write("outside", {"image": one, "label": pa.array([0, 1, 3, 2])}, of_hub)


class Kms(pe.KmsClient):
    def __init__(self, _):
        pe.KmsClient.__init__(self)

    def wrap_key(self, key, _):
        return b64encode(key)

    def unwrap_key(self, key, _):
        return b64decode(key)


factory = pe.CryptoFactory(Kms)
for name, plaintext in [("encrypted", False), ("encrypted-columns", True)]:
    config = pe.EncryptionConfiguration(footer_key="key", column_keys={"key": ["image.bytes"]}, plaintext_footer=plaintext)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(os.path.join(out, name + ".parquet"), pa.schema([("image", IMAGE), ("label", pa.int64())]), encryption_properties=properties) as writer:
        writer.write_table(pa.table({"image": one, "label": numbers}))

with open(os.path.join(out, "expected.json"), "w") as file:
    file.write("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(rows, separators=(',', ':'))}" for name, rows in expected.items()) + "\n}\n")
