//! What the window operator costs beside a loop written by hand for the one job. Prints its settings.
//! Run by `make bench`: `cargo test --release -p tidemill-streams --test it speed -- --ignored --nocapture`.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use tidemill_streams::{
    agg::{Count, Sum},
    chunk::Chunk,
    key::{KeyBy, KeyByRef},
    window::{Tumbling, WindowAggregate},
};

const ROWS: usize = 4_000_000;
const CHUNK: usize = 4096;
const ROUNDS: usize = 7;
const SIZE_MS: i64 = 10_000;
/// Rows a second of event time: a window has 200,000 rows.
const RATE: i64 = 20;

#[derive(Clone)]
struct Order {
    at: i64,
    customer: u64,
    sku: String,
    cents: i64,
}

fn orders(keys: u64, disorder_ms: i64) -> Vec<Chunk<Vec<Order>>> {
    let mut state = 7u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let order = |i: usize| {
        let customer = next() % keys;
        let at = i as i64 / RATE + next() as i64 % (disorder_ms + 1);
        Order { at, customer, sku: format!("SKU-{customer:06}"), cents: (next() % 10_000) as i64 }
    };
    let all: Vec<Order> = (0..ROWS).map(order).collect();
    all.chunks(CHUNK).map(|rows| Chunk::inserts(rows.iter().map(|o| o.at).collect(), rows.to_vec())).collect()
}

/// Groups and total of all closed windows: the check that both sides did the same work.
type Answer = (usize, i64, i64);

fn by_hand<K, Q>(chunks: &[Chunk<Vec<Order>>], key: impl Fn(&Order) -> &Q, own: impl Fn(&Q) -> K) -> Answer
where
    K: std::hash::Hash + Eq + std::borrow::Borrow<Q>,
    Q: std::hash::Hash + Eq + ?Sized,
{
    let mut open: std::collections::BTreeMap<i64, HashMap<K, (i64, i64)>> = Default::default();
    let (mut answer, mut watermark) = ((0, 0, 0), i64::MIN);
    for chunk in chunks {
        for order in &chunk.data {
            let start = order.at.div_euclid(SIZE_MS) * SIZE_MS;
            watermark = watermark.max(order.at - 1000);
            let groups = open.entry(start).or_default();
            match groups.get_mut(key(order)) {
                Some(group) => {
                    group.0 += 1;
                    group.1 += order.cents;
                }
                None => {
                    groups.insert(own(key(order)), (1, order.cents));
                }
            }
        }
        while let Some(first) = open.first_entry().filter(|first| first.key() + SIZE_MS <= watermark) {
            emit(&mut answer, first.remove());
        }
    }
    open.into_values().for_each(|groups| emit(&mut answer, groups));
    answer
}

/// Results are rows with their keys, as the operator's are.
fn emit<K>(answer: &mut Answer, groups: HashMap<K, (i64, i64)>) {
    let rows: Vec<(K, (i64, i64))> = groups.into_iter().collect();
    add(answer, black_box(rows).into_iter().map(|(_, value)| value));
}

fn add(answer: &mut Answer, groups: impl Iterator<Item = (i64, i64)>) {
    for (count, sum) in groups {
        *answer = (answer.0 + 1, answer.1 + count, answer.2 + sum);
    }
}

fn by_operator<K>(chunks: &[Chunk<Vec<Order>>], keyer: K) -> Answer
where
    K: tidemill_streams::key::Keyer<Vec<Order>>,
{
    let windows = Tumbling::of(Duration::from_millis(SIZE_MS as u64));
    let mut operator = WindowAggregate::new(windows, keyer, (Count::default(), Sum::of(|o: &Order| o.cents)), false);
    let (mut answer, mut late, mut watermark) = ((0, 0, 0), Vec::new(), i64::MIN);
    for chunk in chunks {
        operator.push(chunk, &mut late).unwrap();
        watermark = watermark.max(chunk.time.iter().max().unwrap() - 1000);
        for closed in operator.advance(watermark).unwrap() {
            add(&mut answer, black_box(closed).values.into_iter());
        }
    }
    for closed in operator.advance(i64::MAX).unwrap() {
        add(&mut answer, closed.values.into_iter());
    }
    assert!(late.is_empty());
    answer
}

fn best(mut run: impl FnMut() -> Answer) -> (f64, Answer) {
    let started = Instant::now();
    let answer = black_box(run());
    (ROWS as f64 / started.elapsed().as_secs_f64() / 1e6, answer)
}

fn compare(name: &str, mut hand: impl FnMut() -> Answer, mut operator: impl FnMut() -> Answer) -> f64 {
    let (mut by_hand, mut by_operator) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (rate, expected) = best(&mut hand);
        by_hand.push(rate);
        let (rate, answer) = best(&mut operator);
        by_operator.push(rate);
        assert_eq!(answer, expected);
    }
    by_hand.sort_by(f64::total_cmp);
    by_operator.sort_by(f64::total_cmp);
    let (hand, operator) = (by_hand[ROUNDS / 2], by_operator[ROUNDS / 2]);
    println!(
        "{name}: by hand {hand:.1} (best {:.1}), operator {operator:.1} (best {:.1}) million rows/s, ratio {:.2}",
        by_hand[ROUNDS - 1],
        by_operator[ROUNDS - 1],
        operator / hand
    );
    operator / hand
}

#[test]
#[ignore = "speed: make bench"]
fn the_operator_is_near_a_loop_by_hand() {
    println!("{ROWS} rows in chunks of {CHUNK}, windows of {SIZE_MS} ms, count and sum of i64, median of {ROUNDS}");
    for keys in [5, 1_000, 100_000] {
        for disorder_ms in [0, 500] {
            let chunks = orders(keys, disorder_ms);
            let name = |key: &str| format!("{keys} keys, disorder {disorder_ms} ms, key {key}");
            compare(
                &name("u64"),
                || by_hand(&chunks, |o| &o.customer, |q| *q),
                || by_operator(&chunks, KeyBy::new(|o: &Order| o.customer)),
            );
            compare(
                &name("&str"),
                || by_hand(&chunks, |o| o.sku.as_str(), str::to_owned),
                || by_operator(&chunks, KeyByRef::new(|o: &Order| o.sku.as_str())),
            );
        }
    }
}
