#!/usr/bin/env bash
# A cluster of two nodes on this machine: up, ranks on both that train over its network, down, and nothing is left. Not run (77)
# where namespaces or CPU shares cannot be had. Argument: the program.
set -uo pipefail
shoal=$1
cluster=$(cd "$(dirname "$0")/../.." && pwd)/launch/virtual-cluster
name=test$$
work=$(mktemp -d)
trap '"$cluster" down --name $name >/dev/null 2>&1; rm -rf "$work"' EXIT
fail() { echo "$*"; exit 1; }
if ! "$cluster" up --nodes 2 --ranks_per_node 1 --rate 1gbit --name $name >"$work/up" 2>&1; then
  echo "not run: $(cat "$work/up")"
  exit 77 # shown as skipped
fi
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
"$cluster" down --name $name >/dev/null || fail "down failed"
! ip netns list | grep -q "$name" || fail "namespaces are left: $(ip netns list)"
"$cluster" status --name $name >/dev/null 2>&1 && fail "the cluster is still there"
echo "ranks sent $moved bytes from node0 over the cluster's network"
