"""Prints what the MLflow server at URL has of the runs of EXPERIMENT: of each run its status, then `param KEY VALUE`,
`tag KEY VALUE`, `metric KEY STEP VALUE` and `file PATH BYTES`."""
import sys

from mlflow import MlflowClient

client = MlflowClient(sys.argv[1])
experiment = client.get_experiment_by_name(sys.argv[2])
for run in client.search_runs([experiment.experiment_id]):
    print("run", run.info.run_name, run.info.status)
    for key, value in sorted(run.data.params.items()):
        print("param", key, value)
    for key, value in sorted(run.data.tags.items()):
        print("tag", key, value)
    for key in sorted(run.data.metrics):
        for metric in client.get_metric_history(run.info.run_id, key):
            print("metric", key, metric.step, repr(metric.value))
    folders = [""]
    while folders:
        for found in client.list_artifacts(run.info.run_id, folders.pop() or None):
            if found.is_dir:
                folders.append(found.path)
            else:
                print("file", found.path, found.file_size)
