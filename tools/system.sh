#!/bin/sh
# Install what comes from the system, on Debian or Ubuntu as root: docker, Chromium, and Python with venv; then see that a
# docker daemon answers. What is there already is left alone, and a second dockerd is never started: it would take the
# first one's network away.
set -eu

LOG=${CRDTCHAIN_DOCKERD_LOG:-/var/log/crdtchain-dockerd.log}
WAIT_S=60

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
answers() { have docker && timeout 15 docker info >/dev/null 2>&1; }
runs() { pgrep -x dockerd >/dev/null 2>&1; }

missing_packages() {
    have docker && { have dockerd || answers; } || printf ' docker.io'
    have iptables || answers || printf ' iptables'
    have chromium || have chromium-browser || have google-chrome || printf ' chromium'
    sh tools/find-python.sh >/dev/null 2>&1 || printf ' python3 python3-venv'
    have pgrep || printf ' procps'
    have git || printf ' git'
    [ -e /etc/ssl/certs/ca-certificates.crt ] || printf ' ca-certificates'
}

install_packages() {
    packages=$(missing_packages)
    if [ -z "$packages" ]; then
        say "Nothing to install."
        return
    fi
    have apt-get || fail "please install with your own package manager:$packages"
    [ "$(id -u)" = 0 ] || fail "installing$packages needs root: sudo make system"
    say "Installing:$packages …"
    apt_log=$(mktemp)
    # Debian's docker.io tries to start a daemon of its own; in a container that fails, or makes a second one.
    policy=/usr/sbin/policy-rc.d
    made_policy=no
    if [ ! -e "$policy" ] && [ ! -d /run/systemd/system ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made_policy=yes
    fi
    # shellcheck disable=SC2086  # a list of words
    if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages; } >"$apt_log" 2>&1; then
        tail -n 30 "$apt_log" >&2
        [ "$made_policy" = no ] || rm -f "$policy"
        fail "apt-get failed; its last words are above"
    fi
    [ "$made_policy" = no ] || rm -f "$policy"
    rm -f "$apt_log"
}

# Start a daemon with the given flags; succeed when it answers, fail when it ended by itself or the time is up.
start_with() {
    say "Starting dockerd $* …"
    # the soft limit of open files may be low, and raising it above the hard one is refused: take what there is
    ( ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
      exec setsid nohup dockerd "$@" >"$LOG" 2>&1 </dev/null ) &
    waited=0
    while [ "$waited" -lt "$WAIT_S" ]; do
        sleep 1
        waited=$((waited + 1))
        answers && return 0
        [ "$waited" -lt 3 ] || runs || return 1
    done
    return 1
}

start_daemon() {
    if answers; then
        say "Docker answers."
        return
    fi
    if runs; then
        say "A dockerd runs already; waiting until it answers …"
        waited=0
        while [ "$waited" -lt "$WAIT_S" ]; do
            sleep 1
            waited=$((waited + 1))
            if answers; then say "Docker answers."; return; fi
        done
        fail "the dockerd that runs does not answer; stop it, or see its log"
    fi
    [ "$(id -u)" = 0 ] || fail "no docker daemon answers, and starting one needs root: sudo make system"
    if [ -d /run/systemd/system ]; then
        systemctl start docker || true
        sleep 2
        if answers; then say "Docker answers."; return; fi
    fi
    rm -f /var/run/docker.pid /run/docker.pid    # left behind by a daemon that is gone: none runs
    if start_with; then say "Docker answers."; return; fi
    # Jobs run without any network, so a kernel without iptables (or with the other kind of it) is no obstacle.
    if ! runs && have iptables-legacy && have update-alternatives; then
        update-alternatives --set iptables "$(command -v iptables-legacy)" >/dev/null 2>&1 || true
        if start_with; then say "Docker answers (with iptables-legacy)."; return; fi
    fi
    if ! runs && start_with --iptables=false --ip6tables=false --bridge=none; then
        say "Docker answers (without networks for containers, which jobs don't use)."
        return
    fi
    if ! runs && start_with --iptables=false --bridge=none --storage-driver=vfs; then
        say "Docker answers (without container networks, storage on plain files)."
        return
    fi
    tail -n 15 "$LOG" >&2
    fail "dockerd does not start here; its last words are above. The wasm sandbox needs no docker: make demo ARGS='--runtime wasm'"
}

install_packages
start_daemon
