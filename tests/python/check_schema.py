"""Checks the config files after SCHEMA against it, and prints of each `good` or what is wrong with it."""
import json
import sys
import tomllib
from pathlib import Path

import jsonschema

schema = json.loads(Path(sys.argv[1]).read_text())
jsonschema.Draft202012Validator.check_schema(schema)
checker = jsonschema.Draft202012Validator(schema)
for path in sys.argv[2:]:
    errors = [error.message for error in checker.iter_errors(tomllib.loads(Path(path).read_text()))]
    print("; ".join(errors) or "good")
