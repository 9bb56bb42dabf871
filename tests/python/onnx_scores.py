"""Checks ONNX models and prints their scores of rows or pictures.

    onnx_scores.py MODEL.onnx INPUT... [MODEL.onnx INPUT...]...

An input is a picture of the model's size, or a CSV file with the model's columns. Prints a line for each model: the classes
as its metadata has them, and the scores of each input or row.
"""

import csv
import json
import sys

import numpy as np
import onnx
import onnxruntime
from PIL import Image


def scores_of(path, inputs):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    (given,) = session.get_outputs()
    assert wanted.name == "input" and wanted.shape[0] == "batch", wanted.shape
    assert given.name == "logits" and given.shape[0] == "batch", given.shape
    metadata = session.get_modelmeta().custom_metadata_map
    mean, std = (np.array(json.loads(metadata[key]), np.float32) for key in ("mean", "std"))
    if "columns" in metadata:
        columns = json.loads(metadata["columns"])
        rows = [row for file in inputs for row in csv.DictReader(open(file))]
        x = np.array([[float(row[column]) for column in columns] for row in rows], np.float32)
    else:
        pictures = [np.asarray(Image.open(file), np.float32) / 255 for file in inputs]
        x = np.stack([np.atleast_3d(picture).transpose(2, 0, 1) for picture in pictures])
        mean, std = mean[:, None, None], std[:, None, None]
    if metadata["normalized_inside"] == "false":
        x = (x - mean) / std
    (scores,) = session.run(None, {"input": x})
    # The batch is of any size.
    (single,) = session.run(None, {"input": x[:1]})
    assert single.shape == (1, scores.shape[1]) and np.abs(single - scores[:1]).max() < 1e-5
    return {"classes": json.loads(metadata["classes"]), "scores": scores.tolist()}


def main():
    models = []
    for argument in sys.argv[1:]:
        if argument.endswith(".onnx"):
            models.append((argument, []))
        else:
            models[-1][1].append(argument)
    for path, inputs in models:
        print(json.dumps(scores_of(path, inputs)))


main()
