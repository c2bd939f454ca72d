#!/usr/bin/env python
"""Would the tests notice? Every small change of a module, and who fails.

  python launch/mutants.py --module=fer_jax/data/sampling.py
  python launch/mutants.py --sample=150 --json=docs/records/mutation.json

A mutant is a module with one operator, comparison, constant, argument,
condition or statement changed. It is killed where a test of its module fails,
or takes three times as long as all should. What survives is listed with its
line: either a test is missing, or the change means nothing (EQUIVALENT below
says of each why, and such are not counted).

Texts are left alone: of messages, documentation and annotations. So is the
`strict` of `zip`, which says what holds already.

Programs are compiled once for all mutants, which differ in few of them. cuDNN's
layer is tested without a GPU by JAX's own reference in the place of cuDNN.
"""

import argparse
import ast
import atexit
import copy
import dataclasses
import importlib.abc
import importlib.util
import os
import pathlib
import random
import signal
import sys
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_LAYERS = 'tests/nn/test_recurrent.py'
_BACKENDS = 'tests/nn/test_recurrent_backends.py'
TESTS = {
  'fer_jax/data/sampling.py': ('tests/data/test_sampling.py',),
  'fer_jax/metrics.py': ('tests/test_metrics.py',),
  'fer_jax/evaluation/scores.py': ('tests/evaluation/test_scores.py',),
  'fer_jax/evaluation/counts.py': ('tests/evaluation/test_scores.py',),
  'fer_jax/evaluation/intervals.py': ('tests/evaluation/test_intervals.py',),
  **{
    f'fer_jax/data/protocol/{module}.py': (
      'tests/data/test_protocol.py',
      'tests/data/test_folds.py',
    )
    for module in (
      'all_folds',
      'drawn',
      'lists',
      'published',
      'registry',
      'resolving',
      'settings',
      'units',
    )
  },
  'fer_jax/nn/recurrent/cells.py': (
    f'{_LAYERS}::test_layer_equals_a_float64_loop',
    f'{_LAYERS}::test_bfloat16_keeps_its_carry_in_float32',
    f'{_LAYERS}::test_bfloat16_rounds_what_enters_a_product_and_nothing_else',
    f'{_BACKENDS}::test_fused_equals_the_scan_in_bfloat16',
    f'{_BACKENDS}::test_fused_equals_the_scan_in_float64',
  ),
  'fer_jax/nn/recurrent/scan.py': (
    f'{_BACKENDS}::test_fused_equals_the_scan',
    f'{_BACKENDS}::test_fused_equals_the_scan_in_bfloat16',
    f'{_BACKENDS}::test_fused_equals_the_scan_in_float64',
  ),
  'fer_jax/nn/recurrent/fused.py': (
    f'{_BACKENDS}::test_fused_equals_the_scan',
    f'{_BACKENDS}::test_fused_equals_the_scan_in_bfloat16',
    f'{_BACKENDS}::test_fused_equals_the_scan_in_float64',
    f'{_BACKENDS}::test_without_gradients_nothing_is_kept_for_them',
    f'{_LAYERS}::test_layer_equals_a_float64_loop',
  ),
  'fer_jax/nn/recurrent/cudnn.py': (
    f'{_BACKENDS}::test_packed_weights_are_what_jax_unpacks',
    f'{_BACKENDS}::test_plumbing_of_cudnn',
    f'{_BACKENDS}::test_members_on_cudnn_run_one_after_another',
  ),
  'fer_jax/nn/recurrent/backends.py': (
    f'{_BACKENDS}::test_choice_by_platform',
    f'{_BACKENDS}::test_the_platform_is_where_a_computation_would_run',
    f'{_BACKENDS}::test_wrong_backends_are_named',
    f'{_BACKENDS}::test_a_layer_runs_on_the_backend_it_names',
  ),
  'fer_jax/nn/recurrent/layers.py': (
    f'{_LAYERS}::test_wrong_layers_are_named',
    f'{_LAYERS}::test_wrong_shapes_are_named',
    f'{_LAYERS}::test_initialisation_is_that_of_keras',
    f'{_BACKENDS}::test_wrong_backends_are_named',
    _LAYERS,
    f'{_BACKENDS}::test_a_layer_runs_on_the_backend_it_names',
  ),
}
"""Files and tests of them that ought to kill, quick ones first."""
_SCORES = 'fer_jax/evaluation/scores.py'
_RECURRENT = 'fer_jax/nn/recurrent'
EQUIVALENT: dict[tuple[str, str, str], str] = {
  (
    'fer_jax/data/sampling.py',
    'of_class = of_class[np.argsort(ids[of_class]',
    "np.argsort(ids[of_class], kind='stable') ->",
  ): 'ids occur once, so no sort of them has a choice',
  ('fer_jax/metrics.py', '', '-1 -> +1'): 'all of it has two axes',
  (
    'fer_jax/metrics.py',
    'MULTI_TARGET_SHARE - 1e-6',
    'targets >= MULTI_TARGET_SHARE',
  ): 'no share of whole votes lies within the slack',
  **{
    (_SCORES, line, '-1 -> +1'): 'of two axes the last is the first but one'
    for line in (
      'logits = logits - logits.max(axis=-1',
      'return logits - np.log(np.exp(logits).sum(axis=-1',
    )
  },
  **{
    (f'{_RECURRENT}/{name}.py', line, '-1 -> +1'): (
      'of two axes the last is the first but one'
    )
    for name, line in (
      ('scan', 'hidden_bh.shape[-1]'),
      ('scan', 'jnp.split('),
      ('fused', 'jnp.split('),
      ('fused', '      -1,'),
    )
  },
  **{
    (f'{_RECURRENT}/backends.py', 'difflib.get_close_matches', said): (
      'the first alone is told'
    )
    for said in ('difflib.get_close_matches(backend', '1 -> 2')
  },
  (
    'fer_jax/data/protocol/all_folds.py',
    'settings = dataclasses.replace(',
    'dataclasses.replace(settings, validation_share=0.0',
  ): 'what selects decides nothing of the test',
  (
    f'{_RECURRENT}/cudnn.py',
    'mask_bt.sum(1, dtype=jnp.int32)',
    'mask_bt.sum(1, dtype=jnp.int32) ->',
  ): 'JAX sums to int32 anyway where it is not set to 64 bits',
}
"""Why a change means nothing, by module, a piece of its line, and what
`Mutant.said` begins with."""

_SWAPS = {
  ast.Lt: ast.LtE,
  ast.LtE: ast.Lt,
  ast.Gt: ast.GtE,
  ast.GtE: ast.Gt,
  ast.Eq: ast.NotEq,
  ast.NotEq: ast.Eq,
  ast.In: ast.NotIn,
  ast.NotIn: ast.In,
  ast.Is: ast.IsNot,
  ast.IsNot: ast.Is,
  ast.Add: ast.Sub,
  ast.Sub: ast.Add,
  ast.Mult: ast.Add,
  ast.Div: ast.Mult,
  ast.FloorDiv: ast.Mult,
  ast.Mod: ast.Add,
  ast.Pow: ast.Mult,
  ast.MatMult: ast.Mult,
  ast.BitAnd: ast.BitOr,
  ast.BitOr: ast.BitAnd,
  ast.BitXor: ast.BitAnd,
  ast.And: ast.Or,
  ast.Or: ast.And,
}


@dataclasses.dataclass(frozen=True)
class Mutant:
  """A changed module.

  Attributes:
    line: of the change.
    said: what became of what.
    tree: of the whole module.
  """

  line: int
  said: str
  tree: ast.Module


def mutants(source: str) -> list[Mutant]:
  """All mutants of a module, in the order of their lines."""
  tree = ast.parse(source)
  found = []
  places = [(node, change) for node in _code(tree) for change in _changes(node)]
  for node, change in places:
    memo: dict[int, object] = {}
    changed = copy.deepcopy(tree, memo)
    before = ast.unparse(node)
    twin = memo[id(node)]
    change(twin)
    after = ast.unparse(twin) or 'pass'
    said = f'{_short(before)} -> {_short(after)}'
    found.append(Mutant(node.lineno, said, ast.fix_missing_locations(changed)))
  return sorted(found, key=lambda mutant: mutant.line)


def _short(code: str) -> str:
  line = ' '.join(code.split())
  return line if len(line) <= 90 else f'{line[:87]}...'


def _code(node: ast.AST) -> Iterator[ast.AST]:
  """The nodes that do something: no texts, annotations or messages."""
  for name, value in ast.iter_fields(node):
    if name in ('annotation', 'returns', 'decorator_list', 'type_params'):
      continue
    for child in value if isinstance(value, list) else [value]:
      if not isinstance(child, ast.AST) or isinstance(child, ast.Raise):
        continue
      if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
        continue
      if isinstance(child, ast.keyword) and child.arg == 'strict':
        continue
      yield child
      if not isinstance(child, ast.Import | ast.ImportFrom | ast.JoinedStr):
        yield from _code(child)


def _changes(node: ast.AST):
  """Functions that change a node in place, each in one way."""
  match node:
    case ast.Compare() if type(node.ops[0]) in _SWAPS:
      yield lambda n: n.ops.__setitem__(0, _SWAPS[type(n.ops[0])]())
    case ast.BinOp() | ast.BoolOp() | ast.AugAssign():
      if type(node.op) in _SWAPS:
        yield lambda n: setattr(n, 'op', _SWAPS[type(n.op)]())
    case ast.UnaryOp(op=ast.USub() | ast.Invert()):
      yield lambda n: setattr(n, 'op', ast.UAdd())
    case ast.UnaryOp(op=ast.Not()):
      yield lambda n: setattr(n, 'operand', _negated(n.operand))
    case ast.Constant(value=bool()):
      yield lambda n: setattr(n, 'value', not n.value)
    case ast.Constant(value=int() | float()):
      yield lambda n: setattr(n, 'value', n.value + 1)
    case ast.If() | ast.IfExp() | ast.While():
      yield lambda n: setattr(n, 'test', _negated(n.test))
    case ast.Return(value=ast.expr()) if not _is_none(node.value):
      yield lambda n: setattr(n, 'value', ast.Constant(None))
    case ast.Expr(value=ast.Call()):
      yield lambda n: setattr(n, 'value', ast.Constant(None))
    case ast.Break():
      yield lambda n: _become(n, ast.Continue())
    case ast.Continue():
      yield lambda n: _become(n, ast.Break())
    case ast.Call() if node.keywords:
      for at, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, 'strict'):
          yield lambda n, at=at: n.keywords.pop(at)


def _is_none(node: ast.expr) -> bool:
  return isinstance(node, ast.Constant) and node.value is None


def _negated(test: ast.expr) -> ast.expr:
  return ast.UnaryOp(ast.Not(), test)


def _become(node: ast.AST, other: ast.AST) -> None:
  node.__class__ = other.__class__  # pyright: ignore[reportAttributeAccessIssue]


class _Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Gives a mutant where its module is imported."""

  def __init__(self, module: str, tree: ast.Module):
    self.path = ROOT / module
    self.name = module.removesuffix('.py').replace('/', '.')
    self.tree = tree

  def find_spec(self, fullname, path, target=None):
    if fullname != self.name:
      return None
    return importlib.util.spec_from_file_location(
      fullname, self.path, loader=self
    )

  def create_module(self, spec):
    return None

  def exec_module(self, module):
    exec(compile(self.tree, str(self.path), 'exec'), module.__dict__)


def tested(module: str, tree: ast.Module, seconds: float) -> str:
  """'survived', 'killed' or 'killed by time', in a process of its own."""
  child = os.fork()
  if not child:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
      os.dup2(null, stream)
    status = 3
    try:
      import pytest

      sys.meta_path.insert(0, _Loader(module, tree))
      status = int(
        pytest.main(['-x', '-q', '-p', 'no:cacheprovider', *TESTS[module]])
      )
    finally:
      os._exit(status)
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
      return 'survived' if os.waitstatus_to_exitcode(status) == 0 else 'killed'
    time.sleep(0.02)
  os.killpg(child, signal.SIGKILL)
  os.waitpid(child, 0)
  return 'killed by time'


def examine(
  module: str, sample: int, seed: int, earlier: dict | None = None
) -> dict:
  """Counts and survivors of a module; of an earlier record its survivors."""
  source = (ROOT / module).read_text()
  every = mutants(source)
  lines = source.splitlines()
  chosen = every
  if 0 < sample < len(every):
    rng = random.Random(f'{seed}/{module}')
    chosen = sorted(rng.sample(every, sample), key=lambda m: m.line)
  tried = len(chosen)
  if earlier is not None:
    left = [e['change'] for e in earlier['survivors']]
    chosen = [mutant for mutant in chosen if mutant.said in left]
    tried = earlier['tried']
  began = time.monotonic()
  if tested(module, ast.parse(source), 600) != 'survived':
    raise SystemExit(f'{module}: its tests fail as it is')
  limit = 3 * (time.monotonic() - began) + 5
  survivors, equivalent = [], []
  for number, mutant in enumerate(chosen, 1):
    if number % 50 == 0:
      print(f'{number} of {len(chosen)}', file=sys.stderr, flush=True)
    outcome = tested(module, mutant.tree, limit)
    entry = {'line': mutant.line, 'change': mutant.said}
    why = next(
      (
        why
        for (of, line, said), why in EQUIVALENT.items()
        if of == module
        and line in lines[mutant.line - 1]
        and mutant.said.startswith(said)
      ),
      None,
    )
    if outcome != 'survived':
      continue
    if why:
      equivalent.append(entry | {'why': why})
    else:
      survivors.append(entry)
      print(f'{module}:{mutant.line}: {mutant.said}', flush=True)
  if earlier is not None:
    equivalent += earlier['equivalent']
  counted = tried - len(equivalent)
  killed = counted - len(survivors)
  result = {
    'mutants': len(every),
    'tried': tried,
    'killed': killed,
    'equivalent': equivalent,
    'survivors': survivors,
    'killed_share': round(killed / max(counted, 1), 4),
    'seconds': round(time.monotonic() - began, 1),
  }
  print(f'{module}: {killed} of {counted} killed', flush=True)
  return result


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--module', action='append', choices=list(TESTS))
  parser.add_argument(
    '--sample', type=int, default=0, help='mutants of a module; 0 for all'
  )
  parser.add_argument('--seed', type=int, default=0, help='of the sample')
  parser.add_argument(
    '--again', action='store_true', help="only the record's survivors"
  )
  parser.add_argument('--json', help='record; modules in it are replaced')
  given = parser.parse_args()
  os.chdir(ROOT)
  from fer_jax import files, provenance
  from fer_jax.errors import UserError

  modules = given.module or list(TESTS)
  record = {}
  try:
    files.require_writable(given.json)
    if given.json and pathlib.Path(given.json).exists():
      record = files.read_json(pathlib.Path(given.json))
  except UserError as error:
    parser.error(str(error))
  missing = set(modules) - set(record.get('modules', {}))
  if given.again and missing:
    parser.error(f'--again: --json has no record of {min(missing)}')
  # Read and decided once, here, rather than in each of the children.
  sys.path.append(str(ROOT / 'tests'))
  import conftest
  import flax.nnx  # noqa: F401
  import jax
  import pytest  # noqa: F401
  import sklearn.metrics  # noqa: F401

  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  atexit.register(conftest.remove_programs)
  for module in modules:
    earlier = record['modules'][module] if given.again else None
    found = examine(module, given.sample, given.seed, earlier)
    record.setdefault('modules', {})[module] = found
    record['seed'] = given.seed
    record['versions'] = provenance.versions()
    files.write_result(given.json, record)
  return 0


if __name__ == '__main__':
  sys.exit(main())
