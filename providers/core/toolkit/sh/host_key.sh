#!/bin/sh
# Runs late in the boot: until now the machine showed a host key that its image or cloud-init made.
set -eu
umask 077
cat >/etc/ssh/new_host_key <<'END'
@PRIVATE@
END
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
mv /etc/ssh/new_host_key /etc/ssh/ssh_host_ed25519_key
printf '%s\n' '@PUBLIC@' >/etc/ssh/ssh_host_ed25519_key.pub
systemctl restart ssh
