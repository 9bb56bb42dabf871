"""Prints what TensorBoard reads from the run directory RUN: of each scalar `TAG STEP VALUE`, then the hyper-parameters."""
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
for tag in events.Tags()["scalars"]:
    for event in events.Scalars(tag):
        print(tag, event.step, repr(event.value))
for content in events.PluginTagToContent("hparams").values():
    found = plugin_data_pb2.HParamsPluginData.FromString(content)
    for name, value in found.session_start_info.hparams.items():
        print("hparam", name, value.number_value or value.string_value or value.bool_value)
