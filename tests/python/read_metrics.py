"""Parses OpenMetrics text by Prometheus's own parser and prints its families: name and type a line."""
import sys
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families

for family in text_string_to_metric_families(Path(sys.argv[1]).read_text()):
    print(family.name, family.type)
