#!/bin/sh
# Installs what the project needs and this machine lacks: Debian packages (as root), and .venv from constraints.txt.
# Running it again changes nothing.
set -eu
cd "$(dirname "$0")/.."

PACKAGES="apache2-utils busybox-static catatonit conmon crun docker-registry iproute2 libc-bin nftables nginx-light
          openssl python3-venv runc"
POLICY=/usr/sbin/policy-rc.d

missing=
for package in $PACKAGES; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done

install_packages() {
    # The packages' services are no part of this project: none that is new here may run, now or after the next boot.
    services=
    for service in docker-registry nginx; do
        [ -e "/etc/init.d/$service" ] || services="$services $service"
    done
    if [ ! -e "$POLICY" ]; then
        trap 'rm -f "$POLICY"' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$POLICY"
        chmod 755 "$POLICY"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    apt-get install -qq -y --no-install-recommends $missing
    for service in $services; do
        if [ -e "/etc/init.d/$service" ]; then
            invoke-rc.d --quiet "$service" stop || true # where the machine's own policy let it start
            update-rc.d "$service" disable
            ! command -v systemctl >/dev/null || systemctl --quiet disable "$service" 2>/dev/null
        fi
    done
}

if [ -n "$missing" ]; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "cannot install the missing packages: become root on a Debian machine, or install them yourself:$missing" >&2
        exit 1
    fi
    echo "installing:$missing"
    (install_packages)
fi

if ! .venv/bin/python -c '' 2>/dev/null; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "cannot use $(command -v python3): Criw needs Python 3.11 or newer" >&2
        exit 1
    }
    python3 -m venv --clear .venv
fi
stamp=.venv/criw-setup
if ! cat pyproject.toml constraints.txt | cmp -s - "$stamp"; then
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
    cat pyproject.toml constraints.txt >"$stamp"
fi
