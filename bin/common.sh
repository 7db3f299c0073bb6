# shellcheck shell=bash
# What bin/demo, bin/test and bin/bench share: packages, build, installing the extension's files,
# and private PostgreSQL clusters. Source it; it runs nothing by itself.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
TARGET=$(cd "$ROOT" && realpath -m "${CARGO_TARGET_DIR:-target}")

export LC_ALL=C.UTF-8
# RUSTFLAGS would replace the linker flags that the library needs; a server that inherits
# RUST_BACKTRACE puts stack traces into its clients' error details; and the caller's own
# connection settings must not reach the private clusters.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS RUST_BACKTRACE RUST_LIB_BACKTRACE
unset PGHOST PGHOSTADDR PGPORT PGUSER PGDATABASE PGPASSWORD PGDATA PGOPTIONS PGSERVICE

if [[ -t 1 ]]; then
    BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' PLAIN=$'\e[0m'
else
    BOLD='' DIM='' RED='' GREEN='' PLAIN=''
fi

# ---------------------------------------------------------------- talking

say() { printf '%s\n' "$*"; }
title() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
die() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 1
}

# elapsed SINCE: seconds since an earlier $EPOCHREALTIME, with one decimal
elapsed() {
    local us=$((${EPOCHREALTIME/./} - ${1/./}))
    printf '%d.%d' $((us / 1000000)) $((us / 100000 % 10))
}

# step LABEL COMMAND…: runs a function that leaves a one-line summary in RESULT, then shows both
step() {
    local label=$1 start=$EPOCHREALTIME
    shift
    RESULT=''
    "$@"
    printf '  %s%-16s%s %-62s %s%7s s%s\n' "$GREEN" "$label" "$PLAIN" "$RESULT" "$DIM" "$(elapsed "$start")" "$PLAIN"
}

# ---------------------------------------------------------------- settings

# toml_value TABLE KEY: one value from pgrx.toml (TABLE '' is the top of the file)
toml_value() {
    awk -v want="$1" -v key="$2" '
        /^[[:space:]]*(#|$)/ { next }
        /^[[:space:]]*\[/    { table = $0; gsub(/[][[:space:]]/, "", table); next }
        table == want {
            split($0, part, "=")
            gsub(/[[:space:]]/, "", part[1])
            if (part[1] != key) next
            value = substr($0, index($0, "=") + 1)
            sub(/[[:space:]]*#.*$/, "", value)
            gsub(/^[[:space:]]*"?|"?[[:space:]]*$/, "", value)
            print value
            exit
        }' "$ROOT/pgrx.toml"
}

# The first line `key = "…"` of Cargo.toml's [package]
crate_version() { sed -n 's/^version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml" | head -n 1; }

wanted_major() { printf '%s' "${PG_MAJOR:-$(toml_value pg_billing postgresql)}"; }

# default_port NAME: where the private cluster NAME listens if nobody else does
default_port() {
    local base
    base=$(toml_value pg_billing.ports "$1")
    [[ -n $base ]] || die "pgrx.toml names no port for the cluster '$1'"
    printf '%d' $((base + PG_VERSION_MAJOR))
}

# use_postgres: finds the PostgreSQL to work with and sets PG_CONFIG, PG_VERSION_MAJOR, PG_VERSION,
# PGBIN, PG_LIBDIR and PG_SHAREDIR
use_postgres() {
    local major
    major=$(wanted_major)
    if [[ -z $PG_CONFIG ]]; then
        PG_CONFIG=$(toml_value configs "pg$major")
        [[ -n $PG_CONFIG && -x $PG_CONFIG ]] || PG_CONFIG=$(command -v pg_config || true)
    fi
    [[ -n $PG_CONFIG && -x $PG_CONFIG ]] ||
        die "pg_config of PostgreSQL $major not found: install PostgreSQL with its server headers, or set PG_CONFIG"
    PG_VERSION=$("$PG_CONFIG" --version | awk '{ print $2 }')
    PG_VERSION_MAJOR=${PG_VERSION%%[!0-9]*}
    [[ -z ${PG_MAJOR:-} || $PG_MAJOR == "$PG_VERSION_MAJOR" ]] ||
        die "PG_MAJOR is $PG_MAJOR, but $PG_CONFIG belongs to PostgreSQL $PG_VERSION"
    ((PG_VERSION_MAJOR >= 15 && PG_VERSION_MAJOR <= 18)) ||
        die "$PG_CONFIG belongs to PostgreSQL $PG_VERSION; pg_billing works with 15 to 18"
    export PG_CONFIG
    PGBIN=$("$PG_CONFIG" --bindir)
    PG_LIBDIR=$("$PG_CONFIG" --pkglibdir)
    PG_SHAREDIR=$("$PG_CONFIG" --sharedir)
}

need_cargo() {
    command -v cargo >/dev/null || die "cargo not found: install Rust first (https://rustup.rs), then run this again"
}

# ---------------------------------------------------------------- rights

# as_root COMMAND…: directly when we are root, else by sudo
as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo. As root, run:  $*"
    fi
}

# ---------------------------------------------------------------- packages

ensure_demo_packages() {
    local major wanted=(build-essential pkg-config clang libclang-dev python3 python3-psycopg2)
    major=$(wanted_major)
    if ((!OWN_POSTGRES)); then
        wanted+=("postgresql-$major" "postgresql-server-dev-$major" "postgresql-$major-cron")
    fi
    ensure_packages "${wanted[@]}"
}

ensure_test_packages() {
    local major
    major=$(wanted_major)
    ensure_demo_packages
    if ((!OWN_POSTGRES)); then
        ensure_packages "postgresql-$major-pgtap" "postgresql-$major-plpgsql-check"
    fi
}

# With PG_CONFIG set, PostgreSQL with pg_cron and pgTAP is the caller's business.
PG_CONFIG=${PG_CONFIG:-}
OWN_POSTGRES=$((${#PG_CONFIG} > 0))

# ensure_packages NAME…: installs the Debian packages that are absent
ensure_packages() {
    local name missing=() installed
    if ! command -v dpkg-query >/dev/null; then
        RESULT='not a Debian system: what is missing is yours to install'
        return
    fi
    # dpkg-query fails when it knows one of the names nothing about; what it does know still counts.
    installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null || true)
    for name in "$@"; do
        grep -qx "$name installed" <<<"$installed" || missing+=("$name")
    done
    if ((${#missing[@]} == 0)); then
        RESULT='nothing to install'
        return
    fi
    if ((EUID != 0)); then
        die "these Debian packages are missing: ${missing[*]}
       As root, run:  apt-get install --no-install-recommends ${missing[*]}
       (and set create_main_cluster = false in /etc/postgresql-common/createcluster.conf beforehand
       if you do not want Debian's default cluster)"
    fi
    say "  installing ${missing[*]} (apt's own words go to ${TARGET#"$ROOT"/}/apt.log)"
    if ! apt-cache show "${missing[@]}" >/dev/null 2>&1; then
        apt_get update
    fi
    if [[ " ${missing[*]} " == *" postgresql-$(wanted_major) "* ]]; then
        keep_debian_from_creating_a_cluster
    fi
    # A package list that is too old points at files that are gone: fetch it again, once.
    apt_get install --no-install-recommends "${missing[@]}" || {
        apt_get update
        apt_get install --no-install-recommends "${missing[@]}"
    } || die "apt-get could not install: ${missing[*]}"
    RESULT="installed ${#missing[@]} packages"
}

# ensure_worker_packages: Node, and the npm packages of examples/worker as its package-lock.json names them
ensure_worker_packages() {
    local dir=$ROOT/examples/worker stamp=$TARGET/worker-packages wanted
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        ensure_packages nodejs npm
    fi
    [[ $(node -p 'process.versions.node.split(".")[0] >= 18' 2>/dev/null) == true ]] ||
        die "the worker in examples/worker needs Node 18 or newer"
    wanted="$dir $(sha256sum <"$dir/package-lock.json")"
    if [[ -d $dir/node_modules && $(cat "$stamp" 2>/dev/null) == "$wanted" ]]; then
        RESULT='nothing to install'
        return
    fi
    mkdir -p "$TARGET"
    rm -f "$stamp"
    (cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund) </dev/null >"$TARGET/npm.log" 2>&1 || {
        tail -n 15 "$TARGET/npm.log" >&2
        die "npm could not install what examples/worker needs (all of its words: $TARGET/npm.log)"
    }
    printf '%s' "$wanted" >"$stamp"
    RESULT="${dir#"$ROOT"/}/node_modules, as its package-lock.json says"
}

# ensure_python_packages: what tests/requirements.txt names, in target/python
ensure_python_packages() {
    local requirements=$ROOT/tests/requirements.txt dir=$TARGET/python
    if cmp -s "$requirements" "$dir/installed"; then
        RESULT='nothing to install'
        return
    fi
    if ! /usr/bin/python3 -m pip --version >/dev/null 2>&1; then
        ensure_packages python3-pip
    fi
    rm -rf "$dir"
    mkdir -p "$dir"
    # Without dependencies: all that is needed is named, with its hash.
    /usr/bin/python3 -m pip install --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
        --target "$dir" -r "$requirements" </dev/null >"$TARGET/pip.log" 2>&1 || {
        tail -n 15 "$TARGET/pip.log" >&2
        die "pip could not install what the tests need (all of its words: $TARGET/pip.log)"
    }
    cp "$requirements" "$dir/installed"
    RESULT="${dir#"$ROOT"/}, as tests/requirements.txt says"
}

apt_get() {
    mkdir -p "$TARGET"
    DEBIAN_FRONTEND=noninteractive apt-get -y -q "$@" </dev/null >>"$TARGET/apt.log" 2>&1 || {
        tail -n 15 "$TARGET/apt.log" >&2
        return 1
    }
}

# A server that nobody asked for, on the default port, would only be in the way.
keep_debian_from_creating_a_cluster() {
    local conf=/etc/postgresql-common/createcluster.conf
    apt_get install --no-install-recommends postgresql-common || return 0
    if [[ -f $conf ]]; then
        sed -ri 's/^#?[[:space:]]*create_main_cluster[[:space:]]*=.*/create_main_cluster = false/' "$conf"
    fi
}

# ---------------------------------------------------------------- build and install

# cargo_pg SUBCOMMAND …: cargo for the chosen PostgreSQL. One spelling of the pg_config path everywhere,
# or cargo would build the bindings anew each time it changes.
cargo_pg() {
    local subcommand=$1
    shift
    (cd "$ROOT" && PGRX_PG_CONFIG_PATH=$PG_CONFIG cargo "$subcommand" \
        --no-default-features --features "pg$PG_VERSION_MAJOR" "$@")
}

build_release() {
    cargo_pg build --release --lib || die "the build failed: see the compiler's messages above"
    RESULT="${TARGET#"$ROOT"/}/release/libpg_billing.so for PostgreSQL $PG_VERSION"
}

# install_extension: library, control file, install snapshots and upgrade scripts into PostgreSQL's folders
install_extension() {
    local version snapshot file changed=0
    version=$(crate_version)
    snapshot=$ROOT/sql/install/pg_billing--$version.sql
    [[ -f $snapshot ]] ||
        die "sql/install/pg_billing--$version.sql is missing; 'bin/test --update-snapshot snapshot' writes it"
    install_file 755 "$TARGET/release/libpg_billing.so" "$PG_LIBDIR/pg_billing.so"
    install_file 644 "$ROOT/pg_billing.control" "$PG_SHAREDIR/extension/pg_billing.control"
    for file in "$ROOT"/sql/install/pg_billing--*.sql "$ROOT"/sql/pg_billing--*--*.sql; do
        [[ ! -f $file ]] || install_file 644 "$file" "$PG_SHAREDIR/extension/${file##*/}"
    done
    if ((changed)); then
        RESULT="pg_billing $version into $PG_SHAREDIR/extension"
    else
        RESULT="pg_billing $version is up to date in $PG_SHAREDIR/extension"
    fi
}

# install_file MODE FROM TO: copies when the content differs. Under a new name first: a running server has
# the old library mapped, and writing into a mapped file crashes it.
install_file() {
    local mode=$1 from=$2 to=$3
    if cmp -s "$from" "$to"; then
        return
    fi
    if [[ -w ${to%/*} ]]; then
        install -m "$mode" "$from" "$to.new" && mv -f "$to.new" "$to"
    else
        as_root install -m "$mode" "$from" "$to.new" && as_root mv -f "$to.new" "$to"
    fi
    changed=1
}

# ---------------------------------------------------------------- private clusters

# PostgreSQL refuses to run as root: then the postgres user runs it.
if ((EUID == 0)); then
    RUNAS=(runuser -u postgres --)
else
    RUNAS=()
fi

# as_server COMMAND…: as the user that runs the clusters, from a folder that user can enter
as_server() { (cd / && "${RUNAS[@]}" "$@"); }

# clusters_dir: where the private clusters live. Normally target/pg; the postgres user may be unable to
# get there (a checkout in root's home), then a folder of our own in /var/tmp.
clusters_dir() {
    local dir=$TARGET/pg
    mkdir -p "$dir"
    if ! as_server test -x "$dir" 2>/dev/null; then
        dir=/var/tmp/pg_billing-$(path_hash)
        mkdir -p "$dir"
        [[ -O $dir && ! -L $dir ]] || die "$dir belongs to somebody else"
        chmod 755 "$dir"
    fi
    printf '%s' "$dir"
}

path_hash() { printf '%s' "$TARGET" | sha256sum | cut -c 1-8; }

# cluster_paths NAME: sets CLUSTER_DIR, CLUSTER_DATA, CLUSTER_SOCKETS, CLUSTER_LOG
cluster_paths() {
    CLUSTER_DIR=$(clusters_dir)/$1
    CLUSTER_DATA=$CLUSTER_DIR/data
    CLUSTER_LOG=$CLUSTER_DIR/log
    CLUSTER_SOCKETS=$CLUSTER_DIR
    # The path of a Unix socket may have 107 bytes, "/.s.PGSQL.12345.lock" included.
    if ((${#CLUSTER_SOCKETS} > 85)); then
        CLUSTER_SOCKETS=/var/tmp/pg_billing-$(path_hash)-$1
    fi
}

make_server_dir() {
    if [[ -e $1 ]]; then
        # Only a folder that we (or our server) made; /var/tmp is everybody's.
        [[ ! -L $1 && ($(stat -c %U "$1") == postgres || -O $1) ]] || die "$1 belongs to somebody else"
    fi
    if ((EUID == 0)); then
        install -d -o postgres -g postgres -m 755 "$1"
    else
        install -d -m 755 "$1"
    fi
}

cluster_running() {
    cluster_paths "$1"
    [[ -f $CLUSTER_DATA/postmaster.pid ]] && as_server "$PGBIN/pg_ctl" -D "$CLUSTER_DATA" status >/dev/null 2>&1
}

# cluster_stamp: what a running server must have been started with to be still the right one
cluster_stamp() {
    { cat "$CLUSTER_DATA/pg_billing.conf"; cat "$PG_LIBDIR/pg_billing.so" 2>/dev/null || true; } | sha256sum
}

# cluster_start NAME PORT [setting=value…]: a running private cluster, made first if need be.
# Sets CLUSTER_PORT beside the paths. A server that runs with other settings or an older library is restarted.
cluster_start() {
    local name=$1 port=$2 running=0
    shift 2
    cluster_paths "$name"
    make_server_dir "$CLUSTER_DIR"
    make_server_dir "$CLUSTER_SOCKETS"
    if cluster_running "$name"; then
        running=1
        port=$(sed -n 4p "$CLUSTER_DATA/postmaster.pid")
    fi
    if [[ -f $CLUSTER_DATA/PG_VERSION && $(<"$CLUSTER_DATA/PG_VERSION") != "$PG_VERSION_MAJOR" ]]; then
        say "  $CLUSTER_DATA was made by PostgreSQL $(<"$CLUSTER_DATA/PG_VERSION"): making it anew for $PG_VERSION_MAJOR"
        cluster_remove "$name"
        make_server_dir "$CLUSTER_DIR"
        running=0
    fi
    if [[ ! -f $CLUSTER_DATA/postgresql.conf ]]; then
        rm -rf "$CLUSTER_DATA"
        as_server "$PGBIN/initdb" -D "$CLUSTER_DATA" -U postgres --auth=trust \
            --encoding=UTF8 --locale=C.UTF-8 --no-sync >"$CLUSTER_DIR/initdb.log" 2>&1 || {
            tail -n 5 "$CLUSTER_DIR/initdb.log" >&2
            die "initdb failed (all of it in $CLUSTER_DIR/initdb.log)"
        }
        printf "include = 'pg_billing.conf'\n" >>"$CLUSTER_DATA/postgresql.conf"
    fi
    if ((!running)); then
        port=$(free_port "$port")
    fi
    CLUSTER_PORT=$port
    cluster_settings "$@" >"$CLUSTER_DATA/pg_billing.conf"
    if ((running)) && [[ $(cluster_stamp) == "$(cat "$CLUSTER_DIR/started-with" 2>/dev/null)" ]]; then
        RESULT="PostgreSQL $PG_VERSION was running on port $CLUSTER_PORT (${CLUSTER_DIR#"$ROOT"/})"
        return
    fi
    # The settings stand in a file, so that any `pg_ctl start` on this folder starts the same server.
    cluster_stamp >"$CLUSTER_DIR/started-with"
    cluster_restart "$name"
    RESULT="PostgreSQL $PG_VERSION on port $CLUSTER_PORT (${CLUSTER_DIR#"$ROOT"/})"
}

# cluster_restart NAME: also starts one that is not running
cluster_restart() {
    cluster_stop "$1"
    as_server "$PGBIN/pg_ctl" -D "$CLUSTER_DATA" -l "$CLUSTER_LOG" -w -t 120 start >"$CLUSTER_DIR/start.log" 2>&1 || {
        cat "$CLUSTER_DIR/start.log" >&2
        [[ ! -f $CLUSTER_LOG ]] || tail -n 15 "$CLUSTER_LOG" >&2
        die "PostgreSQL did not start (all of its log: $CLUSTER_LOG)"
    }
}

cluster_settings() {
    local setting
    cat <<SETTINGS
# Written by bin/common.sh at every start: changes made here are lost.
port = $CLUSTER_PORT
listen_addresses = '127.0.0.1'
unix_socket_directories = '$CLUSTER_SOCKETS'
max_connections = 250
max_worker_processes = 24
shared_buffers = '256MB'
max_wal_size = '2GB'
shared_preload_libraries = 'pg_cron'
cron.database_name = 'postgres'
cron.use_background_workers = on
log_line_prefix = '%m [%p] %d '
SETTINGS
    for setting in "$@"; do
        printf "%s = '%s'\n" "${setting%%=*}" "${setting#*=}"
    done
}

# free_port PORT: the first port from PORT on where nobody answers
free_port() {
    local port
    for ((port = $1; port < $1 + 100; port++)); do
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            printf '%d' "$port"
            return
        fi
    done
    die "no free port between $1 and $port"
}

cluster_stop() {
    if cluster_running "$1"; then
        as_server "$PGBIN/pg_ctl" -D "$CLUSTER_DATA" -m fast -w -t 120 stop >/dev/null
    fi
}

# cluster_remove NAME: stops it without ceremony and deletes its folder
cluster_remove() {
    if cluster_running "$1"; then
        as_server "$PGBIN/pg_ctl" -D "$CLUSTER_DATA" -m immediate -w stop >/dev/null
    fi
    cluster_paths "$1"
    rm -rf "$CLUSTER_DIR"
}

# cluster_env: lets psql, pg_regress and Python find the cluster that was started last
cluster_env() {
    export PGHOST=$CLUSTER_SOCKETS PGPORT=$CLUSTER_PORT PGUSER=postgres PGDATABASE=postgres
}

# cluster_psql DATABASE [psql arguments…]: quiet, without the user's psqlrc, stops at the first error
cluster_psql() {
    local database=$1
    shift
    "$PGBIN/psql" -X -q -P pager=off -v ON_ERROR_STOP=1 -h "$CLUSTER_SOCKETS" -p "$CLUSTER_PORT" -U postgres -d "$database" "$@"
}
