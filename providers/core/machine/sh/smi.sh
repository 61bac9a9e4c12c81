# shellcheck shell=sh
# What this machine's drivers tell of its GPUs: lines `nvidia ...` or `amd ...`, then `nvidia-exit CODE` or `amd-exit CODE`.
# A driver in trouble answers after minutes or never, hence the timeout; what is longer than 64 KB is no answer.
ask() {
    if command -v timeout >/dev/null; then set -- timeout 40 "$@"; fi
    { "$@" 2>&1; echo "exit $?"; } | head -c 65536
}
told() { printf '%s\n' "$answer" | sed "s/^exit \\([0-9]*\\)\$/$1-exit \\1/; t
s/^/$1 /"; }
if command -v nvidia-smi >/dev/null; then
    answer=$(ask nvidia-smi --format=csv,noheader \
        --query-gpu=index,uuid,name,memory.total,driver_version,pci.bus_id,ecc.errors.uncorrected.volatile.total)
    # A driver too old for one of the fields refuses the whole question.
    case $answer in *"not a valid field"*)
        answer=$(ask nvidia-smi --format=csv,noheader --query-gpu=index,uuid,name,memory.total,driver_version)
        ;;
    esac
    told nvidia
elif command -v rocm-smi >/dev/null; then
    answer=$(ask rocm-smi --showproductname --showmeminfo vram --showdriverversion --json)
    told amd
fi
