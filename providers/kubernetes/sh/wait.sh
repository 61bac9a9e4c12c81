# shellcheck shell=sh
# What a pod's container runs: it waits until the lease ends or it is told to go.
# $1: the lease's end in seconds since the epoch. $2: the pod's name, for whoever asks whether the pod is ours.
# `activeDeadlineSeconds` counts from when the pod starts, which may be long after it was ordered: so the clock is looked at as well,
# where the image has `date`.
trap 'exit 0' TERM INT
while :; do
  now=$(date +%s 2>/dev/null) || now=0
  left=$(($1 - now))
  [ "$left" -gt 0 ] || exit 0
  [ "$left" -lt 3600 ] || left=3600
  sleep "$left" &
  wait $!
done
