"""The command line: `python -m fer_jax VERB [flags]`."""

import ast
import contextlib
import importlib
import io
import logging
import os
import pathlib
import pkgutil
import re
import sys
import traceback

from absl import flags

from fer_jax import commands
from fer_jax.errors import UserError, exhaustion, nearest

USAGE_ERROR = 2
LONGEST_LINE = 1000
INTERRUPTED = 130
TAKES_LESS = (
  'a smaller train.batch_size, model.remat=True, or data.resident_gib below '
  'the size of the data set, which then streams, helps'
)
_JSON_LOADER = pathlib.Path(__file__).with_name('config_json.py')
_RAISED_ANEW = (  # by ml_collections
  'Error whilst parsing config file:',
  'Configuration is not available because of',
)
_LOOKED_UP = re.compile(r'(?<=Attempting to lookup: )[\w.]+')
_SUGGESTED = re.compile(r'did you mean "(\w+)"')
_SECTION = re.compile(r'flag ((--[\w.]+)=.*?): Failed to parse .* as a Config')
_LISTS_FIELDS = 'train --fields lists those there are'
STATUSES = (
  'exit status: 0 done; 2 a mistake, told on stderr; 75 asked to leave by '
  'SIGTERM\nand saved, start the same command again; 130 interrupted; see '
  'docs/faults.md'
)


def verbs() -> list[str]:
  """The verbs there are, one module each in `fer_jax.commands`."""
  return sorted(m.name for m in pkgutil.iter_modules(commands.__path__))


def _list_verbs() -> str:
  lines = ['usage: python -m fer_jax VERB [flags]; VERB --help tells its flags']
  for verb in verbs():
    module = importlib.import_module(f'fer_jax.commands.{verb}')
    lines.append(f'  {verb:<10} {module.SUMMARY}')
  return '\n'.join([*lines, STATUSES])


def one_line(message: object) -> str:
  """A message on one line that any terminal shows as it is.

  Names in files may hold anything: line breaks, bytes that are no text, and
  the sequences by which terminals are told what to do.
  """
  line = ' '.join(str(message).split())
  if not line.isprintable():
    line = ''.join(
      c if c.isprintable() else c.encode('unicode_escape').decode()
      for c in line
    )
  if len(line) > LONGEST_LINE:
    kept = LONGEST_LINE // 2
    line = f'{line[:kept]} ... {line[-kept:]}'
  return line


def _complain(message: object, status: int = USAGE_ERROR) -> int:
  """One line on stderr, whatever the message holds."""
  print(f'fer_jax: {one_line(message)}', file=sys.stderr)
  return status


def _joined(arguments: list[str]) -> list[str]:
  """`--config FILE` as `--config=FILE`."""
  joined: list[str] = []
  for argument in arguments:
    if joined and joined[-1] in ('--config', '-config'):
      joined[-1] += f'={argument}'
    else:
      joined.append(argument)
  return joined


def _config_argument(argument: str) -> str:
  """Lets --config=FILE.json stand where a Python config file is expected.

  Raises:
    UserError: there is no such file.
  """
  name, _, value = argument.partition('=')
  if name.lstrip('-') != 'config' or not value:
    return argument
  path = value if value.endswith('.json') else value.partition(':')[0]
  if not pathlib.Path(path).is_file():
    raise UserError(f'--config={value}: there is no file {path}')
  if not path.endswith('.json'):
    return argument
  return f'--config={_JSON_LOADER}:{path}'


def _parse(arguments: list[str]) -> list[str]:
  """Parses the flags, which runs the config file.

  Returns:
    The arguments that are no flags.

  Raises:
    UserError: what the config file or an override does is a mistake.
  """
  try:
    remaining = flags.FLAGS(arguments)
    if 'config' in flags.FLAGS:
      # A file that the config could not open is told when it is looked at.
      getattr(flags.FLAGS.config, 'model', None)
      _require_config(arguments)
    return remaining
  except Exception as error:  # whatever a user's Python file may raise
    told = _told_by_ml_collections(error)
    if told is None and (section := _SECTION.match(str(error))):
      raise UserError(
        f'{section[1]}: that is a section of the config, whose fields are set '
        f'one by one, as {section[2]}.FIELD=VALUE; {_LISTS_FIELDS}'
      ) from None
    if told is None and isinstance(error, UserError | flags.Error):
      raise
    raise UserError(_config_mistake(told or error, arguments)) from error


def _require_config(arguments: list[str]) -> None:
  """Checks that a config file has returned a config.

  Raises:
    UserError: it has returned something else.
  """
  from ml_collections import ConfigDict

  given, config = _config_flag(arguments), flags.FLAGS.config
  if given.partition('=')[2] and not isinstance(config, ConfigDict):
    raise UserError(
      f'{given}: get_config() returned {config!r}; expected the config that '
      'get_base() gives'
    )


def _config_flag(arguments: list[str]) -> str:
  """The argument that names the config file; '' where none does."""
  return next((a for a in arguments if a.lstrip('-').startswith('config=')), '')


def _told_by_ml_collections(error: BaseException) -> BaseException | None:
  """What a config file raised and ml_collections raised anew, its traceback in
  the message; None where that is not so."""
  link: BaseException | None = error
  while link is not None:
    under = link.__cause__ or link.__context__
    if str(link).startswith(_RAISED_ANEW):
      return under
    link = under
  return None


def _config_mistake(error: BaseException, arguments: list[str]) -> str:
  """What is wrong, and the line of the config file where it happened."""
  config = _config_flag(arguments)
  path = pathlib.Path(config.partition('=')[2].partition(':')[0])
  said = _plain(str(error))
  if not isinstance(error, UserError):
    said = f'{type(error).__name__}: {said}'
  elif path == _JSON_LOADER:
    return said  # names the file
  where = ''
  for frame in traceback.extract_tb(error.__traceback__):
    if config and pathlib.Path(frame.filename).resolve() == path.resolve():
      where = f'{path} line {frame.lineno}'
  if not where and isinstance(error, AttributeError | KeyError):
    told = _override_mistake(str(error), arguments)
    if told is not None:
      return told
  return f'{where or config}: {said}'


def _override_mistake(message: str, arguments: list[str]) -> str | None:
  """What is said of the override that names a field which is not there.

  Args:
    message: of ml_collections, which starts with the name it has not found, or
      ends with the path of a field that it looked for in a value.
    arguments: of the command line.
  """
  said = _plain(message)
  missing = _LOOKED_UP.search(said) or re.match(r'[\w.]+', said)
  if missing is None:
    return None
  name = missing.group()
  named = [a for a in arguments if f'.{name}.' in f'.{_field_of(a)}.']
  if len(named) > 1:  # the others name a field that ends alike
    from fer_jax.config import FIELDS

    named = [a for a in named if _field_of(a) not in FIELDS]
  if not named:
    return None
  suggested = _SUGGESTED.search(said)
  meant = repr(suggested[1]) if suggested else _fields_meant(name)
  hint = f'did you mean {meant}?' if meant else _LISTS_FIELDS
  return f'{" or ".join(named)}: there is no field {name!r}; {hint}'


def _field_of(argument: str) -> str:
  """The dotted name of the field that an override sets; '' of another flag."""
  flag, _, field = argument.partition('=')[0].lstrip('-').partition('.')
  return field if flag == 'config' else ''


def _fields_meant(name: str) -> str:
  """The overrides of fields that a name may stand for; '' where none is."""
  from fer_jax import config as config_lib

  known = config_lib.flatten(config_lib.get_base())
  meant = [f for f, _ in known if f'.{f}'.endswith(f'.{name}')]
  return ', '.join(f'--config.{field}' for field in meant)


def _plain(message: str) -> str:
  """A message of ml_collections, which quotes some of them several times and
  lists every field there is between name and suggestion."""
  with contextlib.suppress(ValueError, SyntaxError):
    while isinstance(inner := ast.literal_eval(message), str):
      message = inner
  message = re.sub(' Other fields present: .*', '', message)
  return re.sub(r"^'(\w+)'\nDid you mean", r'\1; did you mean', message)


def _use_compilation_cache() -> None:
  """Keeps compiled programs between processes unless the user chose a place."""
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(
      pathlib.Path(cache) / 'fer_jax' / 'xla'
    )
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')


def _move_compilation_cache(place: str | None) -> None:
  """Follows --compile_cache, which is read after JAX may have been imported."""
  if place is None:
    return
  import jax

  place = os.path.expanduser(place)
  jax.config.update('jax_enable_compilation_cache', bool(place))
  if place:
    jax.config.update('jax_compilation_cache_dir', place)
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'true' if place else 'false'
  os.environ['JAX_COMPILATION_CACHE_DIR'] = place


def main(argv: list[str]) -> int:
  """Runs a verb.

  Args:
    argv: the program's name, the verb, its flags and arguments.

  Returns:
    The exit status, as docs/faults.md lists them.
  """
  if len(argv) < 2 or argv[1] in ('-h', '--help', 'help'):
    print(_list_verbs())
    return 0
  verb = argv[1]
  if verb not in verbs():
    return _complain(
      f'unknown verb {verb!r}; expected one of {", ".join(verbs())}'
      f'{nearest(verb, verbs())}'
    )
  logging.basicConfig(level=logging.WARNING, format='%(message)s')
  _use_compilation_cache()
  module = importlib.import_module(f'fer_jax.commands.{verb}')
  module.define_flags()
  flags.DEFINE_string(
    'compile_cache',
    None,
    "Folder that keeps compiled programs between processes; '' keeps none. "
    'The default is JAX_COMPILATION_CACHE_DIR, else ~/.cache/fer_jax/xla.',
    module_name=module.__name__,
  )
  if any(a in ('-h', '--help') for a in argv):
    print(f'{module.SUMMARY}\n\nusage: python -m fer_jax {verb} [flags]\n')
    print(flags.FLAGS.module_help(module.__name__))
    print(f'\n{STATUSES}')
    return 0
  try:
    arguments = _joined(argv[2:])
    arguments = [f'fer_jax {verb}', *map(_config_argument, arguments)]
    # config_flags reads the overrides from sys.argv.
    sys.argv = arguments
    remaining = _parse(arguments)
    _move_compilation_cache(flags.FLAGS.compile_cache)
    return module.main([verb, *remaining[1:]]) or 0
  except UserError as error:
    return _complain(error, error.status)
  except flags.UnrecognizedFlagError as error:
    meant = 'config' in flags.FLAGS and _fields_meant(error.flagname)
    return _complain(f'{error}. Did you mean: {meant} ?' if meant else error)
  except flags.Error as error:
    return _complain(error)
  except OSError as error:
    where = f'{error.filename}: ' if error.filename else ''
    return _complain(f'{where}{error.strerror or error}')
  except RuntimeError as error:  # JAX's own, where it was imported, is one
    told = exhaustion(error, TAKES_LESS)
    if told is None:
      raise
    return _complain(told)
  except KeyboardInterrupt:
    return _complain('interrupted', INTERRUPTED)


def run() -> None:
  """The console script."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    # A result is worth more than its dashes, where the encoding has none.
    sys.stdout.reconfigure(errors='replace')
  try:
    status = main(sys.argv)
  except Exception:
    traceback.print_exc()
    status = 1
  # Imported by the verbs that several processes run together.
  if hosts := sys.modules.get('fer_jax.hosts'):
    hosts.leave(status)
  sys.exit(status)


if __name__ == '__main__':
  run()
