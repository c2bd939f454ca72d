#!/usr/bin/env python
"""The lowest versions that pyproject.toml allows, as constraints of pip.

  python launch/lowest.py >lowest.txt
  pip install --constraint lowest.txt -e '.[test]'

Whatever else these packages need is as new as they allow.
"""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  extras = project['optional-dependencies']
  for requirement in (*project['dependencies'], *extras['test']):
    found = re.match(r'([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)', requirement)
    if found is None:
      raise SystemExit(f'pyproject.toml: no lower bound in {requirement!r}')
    print('=='.join(found.groups()))


if __name__ == '__main__':
  main()
