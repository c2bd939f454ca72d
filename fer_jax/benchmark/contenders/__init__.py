"""One framework a module, each imported only by its own process.

Every module offers `prepare(case) -> (run, info)`:

  case  dict: 'what' (the measurement), 'model', 'overrides', 'layers' (see
        `architecture`), 'input_shape', 'num_classes', 'batch_size',
        'steps_per_dispatch' (of a loop of ours), 'steps_per_epoch' (of Keras),
        'seed'
  run   function of a number of steps; returns the seconds they took, back to
        back, with all results there
  info  dict: 'steps_per_dispatch' (steps come in multiples of it),
        'parameters' (trainable scalars), 'device', 'versions', 'threads'
"""


class AbsentError(Exception):
  """Raised by `prepare`: there is no such contender here, and why."""
