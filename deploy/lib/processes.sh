# Processes that outlive the command that started them: each leaves `run/NAME.pid` in its bed (see servers.sh).
# A pid alone may have passed to a stranger since, so it is kept with the moment at which its process was born,
# and nothing is signalled before both agree.
# shellcheck shell=bash disable=SC2034,SC2154 # names are shared between the parts of deploy/dev

boot=''
if [[ -r /proc/sys/kernel/random/boot_id ]]; then read -r boot </proc/sys/kernel/random/boot_id; fi

# born PID: sets born_at; false for a process that is gone, or only waits to be reaped.
born() {
  local stat
  born_at=''
  if [[ -n $boot ]]; then
    { IFS= read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # The command's name stands in parentheses and may hold anything; the state follows it, the start time 19 words on.
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    [[ $1 != [ZX] ]] || return 1
    born_at=$boot/${20}
  else
    stat=$(LC_ALL=C ps -o stat= -o lstart= -p "$1" 2>/dev/null) || return 1
    [[ -n $stat && $stat != Z* ]] || return 1
    born_at=${stat#* }
  fi
}

# remember NAME PID
remember() {
  born "$2" || true
  printf '%s %s\n' "$2" "$born_at" >"$bed/run/$1.pid"
}

# alive NAME: true while the process that was remembered runs; sets pid.
alive() {
  local born_then
  pid=''
  { read -r pid born_then <"$bed/run/$1.pid"; } 2>/dev/null || return 1
  [[ $pid == [1-9]* && -n $born_then ]] && born "$pid" && [[ $born_at == "$born_then" ]]
}

# spawn NAME COMMAND...: in the background, in a process group of its own, so that Ctrl-C reaches only the launcher,
# which then stops things in their order.
spawn() {
  local name=$1 log=$bed/log/$1.log
  shift
  [[ ! -e $log ]] || mv -f "$log" "$log.1"
  set -m
  nohup "$@" >"$log" 2>&1 </dev/null &
  set +m
  remember "$name" $!
}

# halt NAME...: asks all of them to end, then waits for each, 15 seconds for all together.
# PostgreSQL understands other signals than the rest: INT is its "fast", QUIT its "immediate".
halt() {
  local name gentle hard patience=150
  for name in "$@"; do
    gentle=TERM
    [[ $name != postgres ]] || gentle=INT
    if alive "$name"; then kill -"$gentle" "$pid" 2>/dev/null || true; fi
  done
  for name in "$@"; do
    hard=KILL
    [[ $name != postgres ]] || hard=QUIT
    while alive "$name"; do
      if ((patience-- <= 0)); then
        warn "$name (pid $pid) did not end when asked to: sending $hard"
        kill -"$hard" "$pid" 2>/dev/null || true
        sleep 0.4
      fi
      sleep 0.1
    done
    rm -f "$bed/run/$name.pid"
  done
}

child=''

# attend COMMAND...: runs it to its end, yet lets a signal through at once; `dismiss` then ends it with all its children.
attend() {
  local code=0
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  wait "$child" || code=$?
  child=''
  return "$code"
}

dismiss() {
  local tries
  [[ -n $child ]] || return 0
  # What Ctrl-C would have sent: pg_ctl takes back the server it is just starting only then.
  kill -INT -- "-$child" 2>/dev/null || true
  for ((tries = 0; tries < 150; tries++)); do
    kill -0 -- "-$child" 2>/dev/null || break
    case $tries in
    50) kill -TERM -- "-$child" 2>/dev/null || true ;;
    100) kill -KILL -- "-$child" 2>/dev/null || true ;;
    esac
    sleep 0.1
  done
  child=''
}
