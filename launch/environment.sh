# Sourced by the scripts beside it: finds or makes a Python environment with
# this package in it, and leaves its interpreter in $python.
#
#   FER_JAX_VENV   where the environment is or shall be (default: .venv)
#   PYTHON         interpreter that makes it (default: the first of python3,
#                  python3.13, python3.12, python3.11 that is new enough)
#
# An active environment ($VIRTUAL_ENV) is used as it is, unless FER_JAX_VENV
# names another one.

# Paths that the user gave from where they stood, before any cd.
absolute() {
  case "$1" in
    '' | /*) echo "$1" ;;
    *) echo "$PWD/$1" ;;
  esac
}
for name in FER2013_CSV FER_JAX_DATA FER_JAX_VENV; do
  [ -z "${!name:-}" ] || export "$name=$(absolute "${!name}")"
done

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

interpreter() {
  if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a program"
    new_enough "$PYTHON" ||
      fail "PYTHON=$PYTHON is $("$PYTHON" -V 2>&1), 3.11 or newer is needed"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or newer found; name one: PYTHON=/path/to/python3"
}

# prepare_environment EXTRAS: e.g. '[test]', or '' for none.
prepare_environment() {
  local venv="${FER_JAX_VENV:-${VIRTUAL_ENV:-.venv}}"
  if [ ! -x "$venv/bin/python" ]; then
    local base
    base="$(interpreter)" || exit 1
    echo "making $venv with $("$base" -V)"
    "$base" -m venv "$venv" || fail \
      "could not make $venv: is the venv module of $base installed (package" \
      "python3-venv on Debian and Ubuntu)?"
  fi
  python="$venv/bin/python"
  new_enough "$python" ||
    fail "$python is $("$python" -V 2>&1), 3.11 or newer is needed"
  # Installing again is the way to be sure, and takes seconds when all is there.
  echo "installing .$1 into $venv"
  "$python" -m pip install --quiet --disable-pip-version-check -e ".$1" ||
    fail "pip could not install .$1; its message is above"
}
