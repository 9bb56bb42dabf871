"""Validates what `kubectl kustomize` printed against the schema of several versions of the
Kubernetes API, strictly: an unknown field is an error. Prints the resources as JSON."""

import json
import sys

import kubernetes_validate
import yaml

with open(sys.argv[1]) as file:
    resources = list(yaml.safe_load_all(file))
for resource in resources:
    for version in ("1.28", "1.32", "1.37"):
        kubernetes_validate.validate(resource, version, strict=True)
print(json.dumps(resources))
