# sqlx's offline query data: what `cargo sqlx prepare` makes, without another tool to install, and with a database for
# each crate, because each has a schema of its own: the event log's tables, and those of its own migrations beside them.
# shellcheck shell=bash disable=SC2034,SC2154 # names are shared between the parts of deploy/dev

package_in() { sed -n 's/^name *= *"\([^"]*\)".*/\1/p' "$1/Cargo.toml" | head -n 1; }

# querying_crates [PACKAGE]...: sets crates to the folders of those that may ask a database; all of them without names.
querying_crates() {
  local manifest crate
  crates=()
  for manifest in services/*/Cargo.toml services/lib/*/Cargo.toml; do
    grep -q '^sqlx' "$manifest" || continue
    crate=${manifest%/Cargo.toml}
    [[ $# -gt 0 && " $* " != *" $(package_in "$crate") "* ]] || crates+=("$crate")
  done
  ((${#crates[@]} > 0)) || die "no crate with queries${*:+ is called $*}"
}

# schema DATABASE FOLDER...: makes the database and applies the folders' migrations in order.
schema() {
  local database=$1 folder file
  shift
  sql -d postgres -c "CREATE DATABASE $database"
  for folder in "$@"; do
    for file in "$folder"/*.sql; do
      [[ -e $file && $file != *.down.sql ]] || continue
      sql -d "$database" --single-transaction -f "$file" >/dev/null || die "$file does not apply to PostgreSQL $postgres_major"
    done
  done
}

# fresh_data SELECTION...: leaves each crate's data in "$THARSIS_SQLX_DIR/PACKAGE/data". SELECTION is what cargo compiles.
fresh_data() {
  local crate package own postgres_port
  on_a_free_port postgres start_postgres fsync=off synchronous_commit=off full_page_writes=off
  postgres_port=$port
  for crate in "${crates[@]}"; do
    package=$(package_in "$crate")
    own=$crate/migrations
    [[ $crate != services/lib/eventlog ]] || own=''
    schema "$package" services/lib/eventlog/migrations ${own:+"$own"}
    mkdir -p "$THARSIS_SQLX_DIR/$package/data"
    printf 'postgres://postgres:%s@127.0.0.1:%s/%s\n' "$(password)" "$postgres_port" "$package" >"$THARSIS_SQLX_DIR/$package/url"
    # The macros run only in a crate that is compiled again.
    find "$crate" -name '*.rs' -exec touch {} +
  done
  step "asking PostgreSQL $postgres_major about the queries"
  RUSTC_WORKSPACE_WRAPPER=$repo/deploy/lib/sqlx-rustc attend cargo check --locked --all-targets "$@" ||
    die 'the crates do not compile against their databases'
}

refresh_queries() {
  local crate fresh
  for crate in "${crates[@]}"; do
    fresh=$THARSIS_SQLX_DIR/$(package_in "$crate")/data
    rm -rf "$crate/.sqlx"
    rmdir "$fresh" 2>/dev/null || cp -R "$fresh" "$crate/.sqlx"
    say "  $crate: $(find "$crate/.sqlx" -name '*.json' 2>/dev/null | wc -l | tr -d ' ') queries"
  done
}

compare_queries() {
  local crate fresh stale=''
  mkdir "$THARSIS_SQLX_DIR/none"
  for crate in "${crates[@]}"; do
    fresh=$THARSIS_SQLX_DIR/$(package_in "$crate")/data
    if [[ -d $crate/.sqlx ]]; then
      diff -r "$crate/.sqlx" "$fresh" >&2 || stale+=" $crate"
    else
      diff -rq "$THARSIS_SQLX_DIR/none" "$fresh" >&2 || stale+=" $crate"
    fi
  done
  [[ -z $stale ]] || die "the query data in git are not those of the queries in:$stale" 'refresh them with: deploy/dev sqlx'
  say 'the query data are those of the queries'
}
