# The development set: its ports, its databases, its keys and tokens, and the four services.
# shellcheck shell=bash disable=SC2034,SC2154 # names are shared between the parts of deploy/dev

services='namespace identity issuer projector'

set_ports() {
  local base=$1
  [[ $base =~ ^[1-9][0-9]{3,4}$ && $base -ge 1024 && $base -le 65522 ]] ||
    die "THARSIS_DEV_PORT=$base is not a port" 'it is the first of fourteen ports in a row, between 1024 and 65522; the default is 7100'
  idp_port=$base namespace_port=$((base + 1)) identity_port=$((base + 2)) issuer_port=$((base + 3)) projector_port=$((base + 4))
  issuer_http_port=$((base + 5)) postgres_port=$((base + 6)) nats_port=$((base + 7))
  namespace_metrics_port=$((base + 8)) identity_metrics_port=$((base + 9)) issuer_metrics_port=$((base + 10)) projector_metrics_port=$((base + 11))
  clouds_port=$((base + 12)) clouds_tls_port=$((base + 13))
}

port_of() { local name=$1_port && printf '%s' "${!name}"; }

# What the services, `tharsis-dev` and a person's own clients need to find the set; see the README for each.
export_addresses() {
  export THARSIS_NAMESPACE_URL=http://127.0.0.1:$namespace_port THARSIS_IDENTITY_URL=http://127.0.0.1:$identity_port
  export THARSIS_ISSUER_GRPC_URL=http://127.0.0.1:$issuer_port THARSIS_PROJECTOR_URL=http://127.0.0.1:$projector_port
  export THARSIS_ISSUER_URL=http://127.0.0.1:$issuer_http_port THARSIS_NATS_URL=nats://127.0.0.1:$nats_port
  # A trust policy may name the callers' issuer, which is on this machine.
  export THARSIS_TRUSTED_ISSUER_NETWORKS=127.0.0.1/32
  export THARSIS_DEV_IDP_URL=http://127.0.0.1:$idp_port THARSIS_DEV_IDP_LISTEN=127.0.0.1:$idp_port
  export THARSIS_DEV_IDP_KEY_FILE=$bed/secrets/idp-key THARSIS_DEV_AUDIENCE=tharsis
  export THARSIS_OIDC_ISSUERS='[{"name":"dev","url":"'$THARSIS_DEV_IDP_URL'","audience":"tharsis"}]'
  export THARSIS_DEV_CLOUDS_LISTEN=127.0.0.1:$clouds_port THARSIS_DEV_CLOUDS_TLS_LISTEN=127.0.0.1:$clouds_tls_port
  export THARSIS_DEV_CLOUDS_CERTIFICATE=$bed/run/clouds.pem THARSIS_DEV_CLUSTERS=$bed/run/clusters.yaml
  export THARSIS_ADMINISTRATORS=dev/admin THARSIS_EVENT_READERS=dev/namespace,dev/identity,dev/issuer,dev/projector
}

need_binaries() {
  local name
  for name in dev exec $services; do
    [[ -x $target/debug/tharsis-$name ]] || die "cargo build left no tharsis-$name in $target/debug" 'this tree is not complete: is the binary declared in its Cargo.toml?'
  done
}

sql() { PGPASSWORD=$(password) "$postgres_bin/psql" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$postgres_port" -U postgres "$@"; }

# A database for each service, owned by a role of its own that can enter no other: what one service keeps, no other reads.
make_databases() {
  local name
  for name in $services; do
    [[ -z $(sql -d postgres -Atc "SELECT 1 FROM pg_database WHERE datname = 'tharsis_$name'") ]] || continue
    sql -d postgres >/dev/null <<END
SELECT 'CREATE ROLE tharsis_$name LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tharsis_$name') \\gexec
ALTER ROLE tharsis_$name PASSWORD '$(password)';
CREATE DATABASE tharsis_$name OWNER tharsis_$name;
REVOKE ALL ON DATABASE tharsis_$name FROM PUBLIC;
END
  done
}

start_servers() {
  step "starting PostgreSQL $postgres_major on port $postgres_port, and NATS on port $nats_port"
  start_postgres "$postgres_port" || { last_lines "$bed/log/postgres.log"; die 'PostgreSQL did not start'; }
  start_nats "$nats_port" || { last_lines "$bed/log/nats.log"; die 'nats-server did not start'; }
  make_databases
}

# What a service alone is told goes through the environment: the arguments of a process are for all users to read.
start_service() {
  local name=$1
  (umask 077 && "$target/debug/tharsis-dev" token --subject "$name" --ttl 720h >"$bed/secrets/$name-token") || die "tharsis-dev could not make a token for $name"
  local -x THARSIS_DATABASE_URL THARSIS_GRPC_LISTEN THARSIS_METRICS_LISTEN THARSIS_SERVICE_TOKEN_FILE=$bed/secrets/$name-token
  THARSIS_DATABASE_URL=postgres://tharsis_$name:$(password)@127.0.0.1:$postgres_port/tharsis_$name
  THARSIS_GRPC_LISTEN=127.0.0.1:$(port_of "$name")
  THARSIS_METRICS_LISTEN=127.0.0.1:$(port_of "${name}_metrics")
  spawn "$name" "$target/debug/tharsis-$name"
}

start_services() {
  local name kek=$bed/secrets/key-encryption-key
  [[ -s $kek ]] || (umask 077 && head -c 32 /dev/urandom | base64 >"$kek")
  step 'starting the development OIDC issuer, the stand-ins of the clouds and the four services'
  spawn idp "$target/debug/tharsis-dev" idp
  spawn clouds "$target/debug/tharsis-dev" clouds
  await "$THARSIS_DEV_IDP_URL/.well-known/openid-configuration"
  for name in $services; do
    case $name in
    issuer) THARSIS_HTTP_LISTEN=127.0.0.1:$issuer_http_port THARSIS_KEY_ENCRYPTION_KEY_FILE=$kek start_service issuer ;;
    *) start_service "$name" ;;
    esac
  done
  # shellcheck disable=SC2046
  await "$THARSIS_ISSUER_URL/.well-known/openid-configuration" $(for name in $services; do printf 'grpc://127.0.0.1:%s ' "$(port_of "$name")"; done)
}

# await URL...: until each answers (http: status 200; grpc: health SERVING), or one of ours has died.
await() {
  local waiting code=0
  set -m
  "$target/debug/tharsis-dev" wait --timeout 60s "$@" </dev/null &
  set +m
  waiting=$!
  child=$waiting
  while kill -0 "$waiting" 2>/dev/null; do
    mourn
    sleep 0.2
  done
  wait "$waiting" || code=$?
  child=''
  ((code == 0)) || die 'the set did not become ready within a minute (above: what is missing)' "look at: deploy/dev logs, in $bed/log"
}

# The services go on without NATS, and fill its streams again: so its death is no reason to end the set.
revive_nats() {
  warn 'nats stopped by itself; the services go on without it; it is started again in 5 seconds'
  attend sleep 5
  restart_nats
}

restart_nats() {
  start_nats "$nats_port" || { last_lines "$bed/log/nats.log"; die 'nats-server did not start'; }
  step "NATS is back on port $nats_port"
}

# mourn: ends the launcher if a member that was started has died by itself.
mourn() {
  local name code
  for name in $members; do
    [[ -e $bed/run/$name.pid ]] || continue
    alive "$name" && continue
    code=0
    wait "${pid:-0}" 2>/dev/null || code=$?
    last_lines "$bed/log/$name.log"
    if ((code != 127)); then die "$name stopped by itself, with exit code $code"; else die "$name stopped by itself"; fi
  done
}
