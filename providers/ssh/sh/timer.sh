# shellcheck shell=sh
# $1 is `NAME:GPUS`: gives the claim back at its deadline. $PREFECT_GPU_LEASE marks the process.
# shellcheck disable=SC2154 # what is used here comes from claims.sh
name=${1%%:*}
while find_claim "$name" && [ "$c_left" -gt 0 ]; do
    sleep $((c_left < 10 ? c_left : 10))
done
unset PREFECT_GPU_LEASE
find_claim "$name" && release "$name"
