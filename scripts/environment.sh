# Sourced by the other scripts: a virtual environment beside the checkout's files, made once and used again.
# use_environment EXTRAS activates it with the package installed, for example use_environment "[test]".

use_environment() {
    local extras="$1" folder=".venv" python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "Python 3.11 or newer is needed; PYTHON=/path/to/python3.12 bash $0 chooses one." >&2
        exit 5
    fi
    if ! "$folder/bin/python" -m pip --version > /dev/null 2>&1; then  # missing, or its making was cut off
        echo "== Making a virtual environment in $folder"
        "$python" -m venv --clear "$folder"
    fi
    # shellcheck disable=SC1091
    source "$folder/bin/activate"
    local wanted installed
    wanted="$extras $(cat setup.py ssd_tf/VERSION | cksum)"
    installed="$(cat "$folder/.installed$extras" 2>/dev/null || true)"
    if [ "$wanted" != "$installed" ]; then
        echo "== Installing ssd_tf$extras and what it needs (TensorFlow is large: a few minutes on a slow line)"
        python -m pip install --quiet --disable-pip-version-check -e ".$extras"
        echo "$wanted" > "$folder/.installed$extras"
    fi
}
