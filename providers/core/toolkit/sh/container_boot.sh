#!/bin/sh
# Makes any Linux image a machine that jobs can be sent to by SSH; see container_boot.py for the variables.
set -u
umask 077
say() { echo "prefect-gpu $*"; }
never() {
    say "failed: $*"
    exit 1
}
[ "$(id -u)" = 0 ] || never 'the image does not run as root, and jobs are sent to root'
folder=/run/prefect-gpu
mkdir -p "$folder" /run/sshd 2>/dev/null || folder=$(mktemp -d)

# The end of the lease, on the clock that nobody can set: the wall clock is read once, and one that is behind gives no more
# than the whole lease. One that is ahead cannot be told from a container that is started again.
up() { cut -d. -f1 /proc/uptime; }
left=$((PREFECT_GPU_ENDS - $(date +%s)))
[ "$left" -le "$PREFECT_GPU_LASTS" ] || left=$PREFECT_GPU_LASTS
end=$(($(up) + left))
(
    while [ "$(up)" -lt "$end" ]; do sleep 10; done
    say 'the lease is over'
    while :; do
        [ -z "$PREFECT_GPU_GIVE_BACK" ] || sh -c "$PREFECT_GPU_GIVE_BACK"
        [ -n "$PREFECT_GPU_GIVE_BACK" ] || kill -TERM $$
        sleep 20
    done
) &

sshd=$(PATH="$PATH:/usr/sbin:/sbin" command -v sshd)
for try in 1 2 3; do
    [ -z "$sshd" ] || break
    [ "$try" = 1 ] || sleep 5
    if command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openssh-server
    elif command -v apk >/dev/null; then
        apk add --no-cache openssh-server openssh-keygen
    elif command -v microdnf >/dev/null; then
        microdnf install -y openssh-server
    elif command -v dnf >/dev/null; then
        dnf install -y openssh-server
    elif command -v yum >/dev/null; then
        yum install -y openssh-server
    elif command -v zypper >/dev/null; then
        zypper --non-interactive install openssh-server
    fi >"$folder/install" 2>&1
    sshd=$(PATH="$PATH:/usr/sbin:/sbin" command -v sshd)
done
if [ -z "$sshd" ]; then
    tail -n 5 "$folder/install"
    never 'the image has no OpenSSH server, and none can be installed'
fi
mkdir -p /run/sshd

printf '%s\n' "$PREFECT_GPU_KEY" >"$folder/authorized_keys"
rm -f "$folder/host_key" "$folder/host_key.pub"
ssh-keygen -q -t ed25519 -N '' -C '' -f "$folder/host_key" || never 'the image has no ssh-keygen that works'
sed -i 's/^root:!*:/root:*:/' /etc/shadow 2>/dev/null # sshd lets nobody in whose account is locked

# What the image and the vendor set, jobs see too; of a value of several lines only the first.
home=$(cd ~ && pwd)
mkdir -p "$home/.ssh"
env | grep -E '^[A-Za-z_][A-Za-z0-9_]*=' |
    grep -vE '^(PREFECT_GPU_[A-Z_]*|HOME|PWD|OLDPWD|SHLVL|HOSTNAME|TERM|_)=' >"$home/.ssh/environment"

set -- -D -e -f /dev/null -p "$PREFECT_GPU_PORT" -h "$folder/host_key" \
    -o "AuthorizedKeysFile=$folder/authorized_keys" -o StrictModes=no -o PasswordAuthentication=no \
    -o KbdInteractiveAuthentication=no -o PermitRootLogin=prohibit-password -o PermitUserEnvironment=yes \
    -o PidFile=none -o LogLevel=ERROR -o UseDNS=no -o MaxStartups=100 -o MaxSessions=100
trouble=$("$sshd" -t "$@" 2>&1) || never "its SSH server does not start: $(echo "$trouble" | tail -n 1)"
say "host key $PREFECT_GPU_NONCE $(cut -d' ' -f1,2 "$folder/host_key.pub")"
exec "$sshd" "$@"
