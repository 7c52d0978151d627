#!/usr/bin/env bash
# A cluster of two nodes on this machine: up, ranks on both that train over its network, a cable pulled and a node stopped, a run killed,
# down, and nothing is left; and what is refused. Not run (77) where namespaces or CPU shares cannot be had. Argument: the program.
set -uo pipefail
shoal=$1
cluster=$(cd "$(dirname "$0")/../.." && pwd)/launch/virtual-cluster
name=test$$
work=$(mktemp -d)
trap '"$cluster" down --name $name >/dev/null 2>&1; rm -rf "$work"' EXIT
fail() { echo "FAILED: $*"; exit 1; }
# refused EXIT TEXT VERB...: exits with EXIT and says TEXT.
refused() {
  local want=$1 text=$2 verb=$3 code
  shift 3
  "$cluster" "$verb" --name $name "$@" >"$work/refused" 2>&1
  code=$?
  [ $code -eq "$want" ] && grep -qF -- "$text" "$work/refused" || fail "$verb $*: exit $code (wanted $want, and '$text'): $(cat "$work/refused")"
}
# within SECONDS COMMAND...: it succeeds by then.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}
host_links() { ip -brief link | cut -d' ' -f1; }

read -r cores most share < <(python3 -c 'import os; n = len(os.sched_getaffinity(0)); print(n, f"{0.9 * n:g}", 0.48 * n)')
refused 2 "the nodes' shares are $(python3 -c "print(f'{2 * $share:g}')") cores together; $most of this host's $cores is the most" \
  up --nodes 2 --rate 1gbit --cpu_share "$share"
refused 7 "no cluster '$name' is up" run -- hostname
refused 7 "no cluster '$name' is up" down
links_before=$(host_links)
if ! "$cluster" up --nodes 2 --ranks_per_node 1 --rate 1gbit --name $name >"$work/up" 2>&1; then
  echo "not run: $(cat "$work/up")"
  exit 77 # shown as skipped
fi
refused 7 "cluster '$name' is up already" up --nodes 2 --rate 1gbit
refused 2 "no node '2' in cluster '$name'; it has 0 to 1" cut 2

# Everything that `up` made, by the mark that it leaves on processes and by its own state.
folder=$(cat /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | sed -n "s|^SHOAL_VIRTUAL_CLUSTER=\(.*/$name\)$|\1|p" | head -1)
marked() {
  local file
  for file in /proc/[0-9]*/environ; do
    tr '\0' '\n' 2>/dev/null <"$file" | grep -qxF "SHOAL_VIRTUAL_CLUSTER=$folder" && basename "$(dirname "$file")"
  done 2>/dev/null
}
networks=$(for pid in $(marked); do readlink "/proc/$pid/ns/net"; done | sort -u | grep -vxF "$(readlink /proc/self/ns/net)")
group=$(sed -n 's/^ "group": "\(.*\)",$/\1/p' "$folder/state.json")
# What there is of it now, a kind a line.
remains() {
  [ -z "$(marked)" ] || echo processes
  ! grep -qF "$networks" <(readlink /proc/[0-9]*/ns/net) /proc/self/mountinfo || echo networks # and with them bridge and links
  [ ! -e "$group" ] || echo groups
  [ ! -e "$folder" ] || echo state
  [ "$(host_links)" = "$links_before" ] || echo "links of the host"
}
[ "$(remains | xargs)" = "processes networks groups state" ] || fail "up made: $(remains | xargs)"
[ "$(wc -l <<<"$networks")" = 3 ] || fail "networks of the head and two nodes: $networks"

[ "$("$cluster" run --name $name -- hostname | sort | xargs)" = "node0 node1" ] || fail "ranks are not one on each node"
sent() { "$cluster" status --name $name | sed -n 's/.*node0 .* \([0-9]*\) bytes sent.*/\1/p'; }
before=$(sent)
seq 1 20000 >"$work/text"
"$shoal" data build --out "$work/d" "$work/text" >/dev/null
echo 'model { transformer { layers: 1 width: 32 heads: 2 } } data { dataset { path: "'"$work"'/d" } max_tokens: 32 held_out: 0 }
global_batch { tokens: 128 } duration { steps: 20 } comm { deadline_seconds: 20 }' >"$work/job"
"$cluster" run --name $name -- "$shoal" train "$work/job" --run_dir "$work/run" >"$work/log" 2>&1 || { cat "$work/log"; fail "training failed"; }
grep -q "finished at step 20" "$work/log" || { cat "$work/log"; fail "training did not finish"; }
moved=$(($(sent) - before))
[ "$moved" -gt 500000 ] || fail "node0 sent $moved bytes for 20 steps: gradients do not cross the network"

# node1 is there if its own kernel refuses a connection to a port on which nobody listens.
there() { grep -q 'Connection refused' <("$cluster" exec --name $name 0 timeout 1 bash -c '</dev/tcp/node1/9' 2>&1); }
there || fail "node1 does not answer"
"$cluster" cut --name $name 1 || fail "cut failed"
there && fail "node1 answers over a cut link"
"$cluster" status --name $name | grep -q 'node1 .* link cut' || fail "status does not say that the link is cut"
"$cluster" heal --name $name 1 || fail "heal failed"
within 5 there || fail "node1 does not answer over a healed link"

# A run that a stopped node holds up, and that goes on with it.
"$cluster" run --name $name -- "$shoal" train "$work/job" --run_dir "$work/long" --set duration.steps=1000000 --set log.every_steps=1000 >"$work/log" 2>&1 &
run=$!
steps() { wc -l <"$work/long/metrics.jsonl"; }
more_than() { [ "$(steps)" -gt "$1" ]; }
within 15 test -s "$work/long/metrics.jsonl" || { cat "$work/log"; fail "a long run does not train"; }
# The states of the ranks on node1, as its own network tells them from others.
states() {
  local pid
  for pid in $(marked); do
    [ "$(readlink "/proc/$pid/ns/net")" = "$node1" ] && grep -qzx train "/proc/$pid/cmdline" && ! grep -qz mpirun "/proc/$pid/cmdline" && sed 's/.*) \(.\).*/\1/' "/proc/$pid/stat"
  done 2>/dev/null
}
node1=$("$cluster" exec --name $name 1 readlink /proc/self/ns/net)
[ "$(states | wc -w)" = 1 ] || fail "node1 has $(states | wc -w) ranks"
stopped() { [ "$(states)" = T ]; }
going() { [[ $(states) == [RSD] ]]; }
going || fail "the rank on node1 is in state '$(states)' before stop"
"$cluster" stop --name $name 1 || fail "stop failed"
within 3 stopped || fail "the rank on node1 is in state '$(states)' after stop"
stopped_at=$(steps)
sleep 0.5
[ "$(steps)" -le $((stopped_at + 1)) ] || fail "training goes on without node1, from $stopped_at to $(steps) steps"
"$cluster" status --name $name | grep -q 'node1 .* processes (stopped)' || fail "status does not say that node1 is stopped"
"$cluster" cont --name $name 1 || fail "cont failed"
within 3 going || fail "the rank on node1 is in state '$(states)' after cont"
within 5 more_than $((stopped_at + 1)) || fail "training does not go on after cont"

kill -KILL $run
wait $run 2>/dev/null
"$cluster" down --name $name >/dev/null || fail "down failed"
[ -z "$(remains)" ] || fail "after down there are left: $(remains | xargs)"
"$cluster" status --name $name >/dev/null 2>&1 && fail "the cluster is still there"
echo "ranks sent $moved bytes from node0 over the cluster's network"
