//! Anomalies of transactions: Adya's G0 and G1c.
//!
//! Two kinds of edges. One that wrote before another, in one partition: only between those placed at once, for writes of
//! Kafka's transactions may mix. One that read what the other wrote. A cycle of the first alone is G0, one with both G1c.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Anomaly, Finding, History, Kind, Outcome, checker::finding};

pub fn check(history: &History) -> Vec<Finding> {
    let ops = &history.ops;
    let mut offsets = HashMap::new();
    for poll in ops.iter().flat_map(|op| &op.polls) {
        offsets.extend(poll.records.iter().map(|(offset, value)| (*value, *offset)));
    }
    let happened = |i: usize| match ops[i].outcome {
        Outcome::Ok => true,
        Outcome::Failed => false,
        Outcome::Unknown => ops[i].sends.iter().any(|send| offsets.contains_key(&send.value)),
    };
    let (mut orders, mut writers) = (BTreeMap::<_, BTreeMap<_, _>>::new(), HashMap::new());
    for i in (0..ops.len()).filter(|i| happened(*i)) {
        for send in &ops[i].sends {
            writers.insert(send.value, i);
            let offset = send.offset.or_else(|| offsets.get(&send.value).copied());
            if let (Kind::AtOnce, Some(offset)) = (ops[i].kind, offset) {
                orders.entry(send.partition).or_default().insert(offset, i);
            }
        }
    }
    let (mut writes, mut reads) = (vec![BTreeSet::new(); ops.len()], BTreeSet::new());
    for order in orders.values() {
        for (before, after) in order.values().zip(order.values().skip(1)) {
            if before != after {
                writes[*before].insert(*after);
            }
        }
    }
    for i in (0..ops.len()).filter(|i| happened(*i) && !ops[*i].sends.is_empty()) {
        for (_, value) in ops[i].polls.iter().flat_map(|poll| &poll.records) {
            if let Some(writer) = writers.get(value).filter(|writer| **writer != i) {
                reads.insert((*writer, i));
            }
        }
    }
    let (parts, _) = components(&writes);
    let mut findings: Vec<_> = parts.iter().filter(|part| part.len() > 1).map(|part| told(Anomaly::G0, part)).collect();
    for (writer, reader) in &reads {
        writes[*writer].insert(*reader);
    }
    let (parts, part_of) = components(&writes);
    let with_reads: BTreeSet<_> =
        reads.iter().filter(|(w, r)| part_of[*w] == part_of[*r]).map(|(w, _)| part_of[*w]).collect();
    findings.extend(with_reads.into_iter().map(|part| told(Anomaly::G1c, &parts[part])));
    findings
}

fn told(anomaly: Anomaly, part: &[usize]) -> Finding {
    finding(anomaly, format!("a cycle of {} operations", part.len()), part)
}

/// Tarjan's strongly connected components, without recursion; and of each node, which one it is in.
fn components(edges: &[BTreeSet<usize>]) -> (Vec<Vec<usize>>, Vec<usize>) {
    const NONE: usize = usize::MAX;
    let (mut index, mut low) = (vec![NONE; edges.len()], vec![0; edges.len()]);
    let (mut part_of, mut parts) = (vec![NONE; edges.len()], Vec::new());
    let (mut stack, mut next) = (Vec::new(), 0);
    for root in 0..edges.len() {
        if index[root] != NONE {
            continue;
        }
        let mut path = vec![(root, edges[root].iter())];
        (index[root], low[root]) = (next, next);
        next += 1;
        stack.push(root);
        while let Some((node, rest)) = path.last_mut() {
            let node = *node;
            match rest.next() {
                Some(&to) if index[to] == NONE => {
                    (index[to], low[to]) = (next, next);
                    next += 1;
                    stack.push(to);
                    path.push((to, edges[to].iter()));
                }
                Some(&to) if part_of[to] == NONE => low[node] = low[node].min(index[to]),
                Some(_) => {}
                None => {
                    path.pop();
                    if let Some((parent, _)) = path.last() {
                        low[*parent] = low[*parent].min(low[node]);
                    }
                    if low[node] == index[node] {
                        let from = stack.iter().rposition(|n| *n == node).expect("it is on the stack");
                        let part = stack.split_off(from);
                        part.iter().for_each(|n| part_of[*n] = parts.len());
                        parts.push(part);
                    }
                }
            }
        }
    }
    (parts, part_of)
}
