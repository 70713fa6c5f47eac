"""Compiled programs that the runs of a process share."""

import collections
import json
from typing import Any

from ml_collections import ConfigDict

from imgclf_jax.config import flatten, to_json
from imgclf_jax.training import experiment, members
from imgclf_jax.training.experiment import Experiment

# Fields that no program depends on.
WITHOUT = ("seed", "data.fold", "data.dir", "data.workers", "log.", "checkpoint.keep")


class Programs:
    """Builds experiments as `imgclf_jax.training.experiment.build` does, and reuses those of earlier runs."""

    def __init__(self, most: int = 32):
        """Prepares the memory for the programs of the `most` last different experiments."""
        self._most = most
        self._built: collections.OrderedDict[Any, Experiment] = collections.OrderedDict()

    def build(self, config: ConfigDict, *parts: Any) -> Experiment:
        """Returns the experiment of a config; see `imgclf_jax.training.experiment.build` for the arguments."""
        fields = {path: value for path, value in flatten(to_json(config)).items() if not path.startswith(WITHOUT)}
        return self._get(fields, config, parts).repeated(config)

    def build_for_several(self, config: ConfigDict, *parts: Any) -> Experiment:
        """Returns the experiment of the first of several runs that train together."""
        return self._get(members.shape(config) | {"": "several"}, config, parts).varied(config)

    def _get(self, fields, config, parts):
        key = (json.dumps(fields, sort_keys=True), *parts)
        if key not in self._built:
            self._built[key] = experiment.build(config, *parts)
            if len(self._built) > self._most:
                self._built.popitem(last=False)
        self._built.move_to_end(key)
        return self._built[key]
