# A bed is a folder with a private PostgreSQL and a private NATS in it: one for the development set, and one for each
# run of tests or benchmarks. It belongs to the launcher in `run/launcher.pid`, or to nobody if `run/detached` is there.
# shellcheck shell=bash disable=SC2034,SC2154 # names are shared between the parts of deploy/dev

# All that may run in a bed, in the order in which it is stopped. `launcher` is not in the list: it stops the others.
members='projector issuer identity namespace clouds idp nats postgres'

make_bed() {
  bed=$1 postgres_home=$2
  mkdir -p "$bed/run" "$bed/log" "$bed/secrets"
  chmod 0700 "$bed/secrets"
}

# A bed in a temporary folder, found again by a link in "$dev/beds" should its launcher be killed.
temporary_bed() {
  local folder=${TMPDIR:-/tmp}
  as_postgres test -x "$folder" || folder=/tmp
  need_room "$folder" 1024 'a private PostgreSQL and NATS'
  folder=$(mktemp -d "${folder%/}/tharsis-$1.XXXXXX")
  chmod 0711 "$folder"
  make_bed "$folder" "$folder/postgres"
  remember launcher $$
  closing=yes
  ln -s "$folder" "$dev/beds/${folder##*/}"
}

remove_temporary_bed() {
  [[ ${bed##*/} == tharsis-*.?????? && $bed != "$dev" ]] || return 0
  rm -rf "$bed" "$dev/beds/${bed##*/}"
}

anyone_alive() {
  local name
  for name in $members; do if alive "$name"; then return 0; fi; done
  return 1
}

close_bed() {
  adopt_postgres
  # shellcheck disable=SC2086
  halt ${members%nats postgres}
  halt nats
  halt postgres
  rm -f "$bed/run/detached" "$bed/run/launcher.pid"
}

# inside FOLDER COMMAND...: with another temporary bed for the time of the command.
inside() {
  local bed=$1 postgres_home=$1/postgres
  shift
  "$@"
}

# sweep_beds [all]: what killed launchers left behind; with `all` also the bed that `deploy/dev env` leaves on purpose.
sweep_beds() {
  local link
  for link in "$dev"/beds/*; do
    [[ -L $link ]] || continue
    if [[ -d $link/run ]]; then inside "$(readlink "$link")" sweep "${1:-}"; else rm -f "$link"; fi
  done
}

sweep() {
  if alive launcher || [[ -e $bed/run/detached && $1 != all ]]; then return 0; fi
  step "removing the test servers in $bed"
  close_bed
  remove_temporary_bed
}

bed_serves() { alive postgres && alive nats; }

# A launcher killed between starting PostgreSQL and writing its pid down leaves a server that only its folder can name.
adopt_postgres() {
  local pid
  # In a trap, a bare `return` would give the status from before the trap.
  if alive postgres; then return 0; fi
  { read -r pid <"$postgres_home/data/postmaster.pid"; } 2>/dev/null || return 0
  case $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" || ps -o command= -p "$pid" 2>/dev/null) in
  *"$postgres_home/data"*) remember postgres "$pid" ;;
  esac
}

password() { cat "$bed/secrets/postgres"; }

# How a cluster that is made asks for its password, in the words of pg_hba.conf.
postgres_auth=scram-sha-256

# Made beside its place and moved there when whole, so that an interrupted one is never taken for a database.
make_cluster() {
  if [[ -d $postgres_home/data ]]; then
    warn "the database in $postgres_home is of a development folder that was deleted, and its passwords and keys with it: making a new one"
    rm -rf "$postgres_home/data"
  fi
  step "making a PostgreSQL $postgres_major database in $postgres_home"
  (umask 077 && random_hex 24 >"$bed/secrets/postgres")
  mkdir -p "$postgres_home"
  chmod 0700 "$postgres_home"
  [[ -z $postgres_user ]] || chown "$postgres_user" "$postgres_home"
  rm -rf "$postgres_home/data.new" "$bed/nats"
  # shellcheck disable=SC2016
  password | as_postgres sh -c 'umask 077 && cat >"$1"' sh "$postgres_home/password"
  # Loopback belongs to every user of the machine: a password is asked for. The stream's positions are the log's, so
  # a new log begins with an empty NATS (removed above).
  attend as_postgres "$postgres_bin/initdb" --pgdata="$postgres_home/data.new" --username=postgres --pwfile="$postgres_home/password" \
    --auth="$postgres_auth" --encoding=UTF8 --no-locale --no-instructions --no-sync >"$bed/log/initdb.log" 2>&1 ||
    { last_lines "$bed/log/initdb.log"; die 'initdb failed'; }
  as_postgres rm "$postgres_home/password"
  as_postgres mv "$postgres_home/data.new" "$postgres_home/data"
}

# start_postgres PORT [OPTION=VALUE]...: false if the server does not come up.
start_postgres() {
  local port=$1 major option options
  shift
  # As root the data lie outside of the bed, and outlive it when it is deleted by hand.
  [[ -e $postgres_home/data/PG_VERSION && -s $bed/secrets/postgres ]] || make_cluster
  read -r major <"$postgres_home/data/PG_VERSION"
  ((major == postgres_major)) ||
    die "the data in $postgres_home are of PostgreSQL $major, and the PostgreSQL found is $postgres_major ($postgres_bin)" \
      'to use that one, delete the data: deploy/dev reset; or name the other: THARSIS_POSTGRES_BIN=… deploy/dev up'
  options="-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=400"
  for option in "$@"; do options+=" -c $option"; done
  ln -sf "$postgres_home/postgres.log" "$bed/log/postgres.log"
  as_postgres rm -f "$postgres_home/postgres.log"
  attend as_postgres "$postgres_bin/pg_ctl" start --wait --timeout=60 --pgdata="$postgres_home/data" \
    --log="$postgres_home/postgres.log" --options="$options" >"$bed/log/pg_ctl.log" 2>&1 || return 1
  adopt_postgres
}

# start_nats PORT: false if the server does not come up.
start_nats() {
  local port=$1 name tries=300
  name=tharsis-$(random_hex 6)
  (umask 077 && mkdir -p "$bed/nats")
  cat >"$bed/nats.conf" <<END
server_name: "$name"
listen: "127.0.0.1:$port"
jetstream { store_dir: "$bed/nats", max_memory_store: 256MB, max_file_store: 8GB }
END
  spawn nats "$nats_server" -c "$bed/nats.conf"
  # It greets with its name: so it is ours, and not a stranger who took the port meanwhile.
  until greeting "$port" | grep -q "\"server_name\":\"$name\".*\"jetstream\":true"; do
    if ((tries-- == 0)) || ! alive nats; then return 1; fi
    sleep 0.1
  done
}

greeting() { (exec 3<>"/dev/tcp/127.0.0.1/$1" && read -r -t 2 line <&3 && printf '%s\n' "$line") 2>/dev/null; }

# start_test_servers [OPTION=VALUE]...: both servers of the bed on free ports, with settings for PostgreSQL.
start_test_servers() {
  local port
  # Tests make thousands of connections, and SCRAM's hashing takes a client built for development 20 ms each time. A
  # later PostgreSQL may be without md5, which 18 has deprecated.
  if ((postgres_major <= 18)); then postgres_auth=md5; fi
  on_a_free_port postgres start_postgres "$@"
  THARSIS_TEST_POSTGRES_URL=postgres://postgres:$(password)@127.0.0.1:$port/postgres
  on_a_free_port nats start_nats
  THARSIS_TEST_NATS_URL=nats://127.0.0.1:$port THARSIS_TEST_NATS_SERVER=$nats_server
  export THARSIS_TEST_POSTGRES_URL THARSIS_TEST_NATS_URL THARSIS_TEST_NATS_SERVER
}

# on_a_free_port NAME FUNCTION [ARGUMENT]...: tries again when somebody else took the port first; sets port.
on_a_free_port() {
  local name=$1 start=$2 tries=5
  shift 2
  while ((tries-- > 0)); do
    free_port
    if "$start" "$port" "$@"; then return 0; fi
    grep -qi 'address already in use' "$bed/log/$name.log" 2>/dev/null || break
  done
  last_lines "$bed/log/$name.log"
  die "$name did not start"
}
