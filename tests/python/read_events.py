"""Prints what TensorBoard reads from the run directory RUN: of each scalar `TAG STEP VALUE`, of each picture
`TAG STEP WIDTHxHEIGHT COLOURS`, as Pillow decodes it, then the hyper-parameters."""
import io
import sys

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "images": 0})
events.Reload()
for tag in events.Tags()["scalars"]:
    for event in events.Scalars(tag):
        print(tag, event.step, repr(event.value))
for tag in events.Tags()["images"]:
    for event in events.Images(tag):
        picture = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
        if picture.size != (event.width, event.height):
            sys.exit(f"{tag} is said to be {event.width}x{event.height}, and is {picture.size}")
        print(tag, event.step, f"{picture.width}x{picture.height}", len(picture.getcolors(1 << 24)))
for content in events.PluginTagToContent("hparams").values():
    found = plugin_data_pb2.HParamsPluginData.FromString(content)
    for name, value in found.session_start_info.hparams.items():
        print("hparam", name, value.number_value or value.string_value or value.bool_value)
