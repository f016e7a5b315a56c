# The machine below: ports, room on the disk, and the user that PostgreSQL runs as.
# shellcheck shell=bash disable=SC2034,SC2154 # names are shared between the parts of deploy/dev

busy() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# holder PORT: who listens there, as far as can be told.
holder() {
  local inode fd pid
  if [[ -r /proc/net/tcp ]]; then
    inode=$(awk -v port="$(printf ':%04X' "$1")" '$4 == "0A" && substr($2, length($2) - 4) == port { print $10; exit }' \
      /proc/net/tcp /proc/net/tcp6 2>/dev/null) || true
    [[ -n $inode ]] || return 0
    fd=$(find /proc/[0-9]*/fd -lname "socket:\[$inode\]" 2>/dev/null | head -n 1) || true
    [[ -n $fd ]] || return 0
    pid=${fd#/proc/}
    pid=${pid%%/*}
    printf 'by %s (pid %s)' "$(tr -d '\0' <"/proc/$pid/comm")" "$pid"
  elif command -v lsof >/dev/null; then
    lsof -nP -iTCP:"$1" -sTCP:LISTEN -Fcp 2>/dev/null |
      awk '/^p/ { pid = substr($0, 2) } /^c/ { printf "by %s (pid %s)", substr($0, 2), pid; exit }'
  fi
}

need_ports() {
  local port
  for port in "$@"; do
    busy "$port" || continue
    die "port $port is taken $(holder "$port")" \
      "the set needs ports $1 to ${!#} on 127.0.0.1; to move the block: THARSIS_DEV_PORT=$(($1 + 1000)) deploy/dev …"
  done
}

# A port that nobody listens on, below the range from which systems give out ports by themselves.
# Another may still take it first: who starts a server there tries again.
free_port() {
  local tries=100
  while ((tries-- > 0)); do
    port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    busy "$port" || return 0
  done
  die 'found no free port between 20000 and 32000'
}

# need_room FOLDER MIB PURPOSE
need_room() {
  local folder=$1 free
  while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
  free=$(($(df -Pk "$folder" | awk 'NR == 2 { print $4 }') / 1024))
  ((free >= $2)) || die "$3 needs $2 MiB, and only $free MiB are free where $1 is" 'make room there, or name another place (THARSIS_DEV_DIR, CARGO_TARGET_DIR)'
}

random_hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

# PostgreSQL refuses to run as root, so there it runs as another user, whose files lie where that user can reach them.
postgres_user=''
if ((EUID == 0)); then
  for user in postgres nobody; do
    if id -u "$user" >/dev/null 2>&1; then postgres_user=$user && break; fi
  done
fi

as_postgres() {
  if [[ -z $postgres_user ]]; then
    "$@"
  elif setpriv --reuid="$postgres_user" --clear-groups true 2>/dev/null; then
    (cd / && HOME=/ exec setpriv --reuid="$postgres_user" --regid="$(id -g "$postgres_user")" --clear-groups -- "$@")
  elif command -v runuser >/dev/null; then
    (cd / && HOME=/ exec runuser -u "$postgres_user" -- "$@")
  else
    (cd / && exec su -s /bin/sh "$postgres_user" -c '"$@"' -- sh "$@")
  fi
}
