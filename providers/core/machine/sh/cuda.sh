# shellcheck shell=sh
# `cuda VERSION`: up to which the driver runs; after smi.sh.
command -v nvidia-smi >/dev/null && ask nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Za-z ]*Version: *\([0-9.]*\).*/cuda \1/p'
