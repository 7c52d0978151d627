#!/usr/bin/env bash
# Two nodes (network namespaces joined by a veth pair), one rank on each over TCP; then the link is cut: the survivor names
# the other within the deadline + 5 s and ends with exit 4 by itself. Needs root for the namespaces. Argument: the program.
set -uo pipefail
shoal=$1
if [ "$(id -u)" != 0 ] || ! command -v ip >/dev/null || ! ip netns add shoal-probe-$$ 2>/dev/null; then
  echo "not run: network namespaces need root and iproute2"
  exit 77 # shown as skipped
fi
ip netns del shoal-probe-$$
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
a=shoal-a-$$ b=shoal-b-$$
finish() {
  for pid in $(ip netns pids $a 2>/dev/null) $(ip netns pids $b 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
  ip netns del $a 2>/dev/null
  ip netns del $b 2>/dev/null
  rm -rf "$work"
}
trap finish EXIT
ip netns add $a && ip netns add $b
ip -n $a link add eth0 type veth peer name eth0 netns $b
for node in "$a 10.213.7.1" "$b 10.213.7.2"; do
  read -r name address <<<"$node"
  ip -n "$name" addr add "$address/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up
done
# What mpirun takes for ssh: the other node's namespace.
printf '#!/usr/bin/env bash\nshift\nexec ip netns exec %s bash -c "$*"\n' $b >"$work/agent"
chmod +x "$work/agent"

seq 1 20000 >"$work/text"
"$shoal" data build --out "$work/d" "$work/text" >/dev/null
echo 'model { transformer { layers: 1 width: 32 heads: 2 } } data { dataset { path: "'"$work"'/d" } max_tokens: 32 held_out: 0 }
global_batch { tokens: 128 } duration { steps: 1000000 } comm { deadline_seconds: 3 } log { every_steps: 1000 }' >"$work/job"
ip netns exec $a mpirun --host 10.213.7.1,10.213.7.2 -n 2 --bind-to none --mca plm_rsh_agent "$work/agent" --mca btl tcp,self \
  --mca btl_tcp_if_include 10.213.7.0/24 --mca oob_tcp_if_include 10.213.7.0/24 "$shoal" train "$work/job" --run_dir "$work/run" >"$work/log" 2>&1 &
mpirun=$!
for _ in $(seq 150); do
  [ -s "$work/run/metrics.jsonl" ] && break
  sleep 0.1
done
[ -s "$work/run/metrics.jsonl" ] || { echo "FAILED: the two nodes do not train"; cat "$work/log"; exit 1; }
survivor=$(ip netns pids $a | while read -r pid; do grep -qz '^train$' "/proc/$pid/cmdline" 2>/dev/null && ! grep -qz mpirun "/proc/$pid/cmdline" && echo "$pid"; done | head -1)
begin=$SECONDS
ip -n $b link set eth0 down
while kill -0 "$survivor" 2>/dev/null && [ $((SECONDS - begin)) -lt 30 ]; do sleep 0.1; done
seconds=$((SECONDS - begin))
state=$(cat "$work/run/state")
kill -KILL $mpirun 2>/dev/null
wait $mpirun 2>/dev/null
if [ $seconds -gt 8 ] || ! grep -q 'rank 1 never entered\|rank 1 entered and did not finish' <<<"$state"; then
  echo "FAILED: the survivor ended after $seconds s, state: $state"
  cat "$work/log"
  exit 1
fi
echo "cut link: the survivor named rank 1 after $seconds s"
