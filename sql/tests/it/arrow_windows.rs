//! The window operator of `streams` over Arrow: the same code as for typed rows, with a keyer and aggregates of columns. The
//! proof that its interfaces carry both, as live queries will need; what it costs beside a loop by hand is printed by
//! `make bench`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    hash::BuildHasher,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use datafusion::arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringViewArray, UInt32Array},
    compute::{concat_batches, take_record_batch},
    datatypes::Int64Type,
};
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use tidemill_streams::{
    Result,
    agg::Agg,
    chunk::{Chunk, Rows, Selection},
    key::Keyer,
    state::{Changes, State},
    window::{Tumbling, WindowAggregate},
};

/// A record batch as rows of a stream.
#[derive(Clone, Debug, PartialEq)]
struct Arrow(RecordBatch);

impl Arrow {
    fn of(columns: Vec<(&str, ArrayRef)>) -> Self {
        Self(RecordBatch::try_from_iter(columns).unwrap())
    }

    fn ints(&self, column: usize) -> &[i64] {
        self.0.column(column).as_primitive::<Int64Type>().values()
    }
}

impl Rows for Arrow {
    fn len(&self) -> usize {
        self.0.num_rows()
    }

    fn take(&self, rows: &[u32]) -> Self {
        Self(take_record_batch(&self.0, &UInt32Array::from(rows.to_vec())).unwrap())
    }

    fn concat(parts: Vec<Self>) -> Self {
        let batches: Vec<RecordBatch> = parts.into_iter().map(|part| part.0).collect();
        Self(concat_batches(&batches[0].schema(), &batches).unwrap())
    }
}

/// Numbers the texts of a column. Their bytes lie one after another.
struct TextKey {
    column: usize,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl TextKey {
    fn new(column: usize) -> Self {
        let (bytes, ends, numbers) = (Vec::new(), vec![0], HashTable::new());
        Self { column, bytes, ends, numbers, hasher: DefaultHashBuilder::default() }
    }

    fn text(&self, group: u32) -> &[u8] {
        &self.bytes[self.ends[group as usize]..self.ends[group as usize + 1]]
    }

    #[inline(always)]
    fn number(&mut self, text: &[u8]) -> u32 {
        let hash = self.hasher.hash_one(text);
        match self.numbers.find(hash, |number| self.text(*number) == text) {
            Some(number) => *number,
            None => self.add(hash, text),
        }
    }

    #[inline(never)]
    fn add(&mut self, hash: u64, text: &[u8]) -> u32 {
        let number = self.ends.len() as u32 - 1;
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len());
        let (bytes, ends, hasher) = (&self.bytes, &self.ends, &self.hasher);
        let text_of = |number: &u32| &bytes[ends[*number as usize]..ends[*number as usize + 1]];
        self.numbers.insert_unique(hash, number, |number| hasher.hash_one(text_of(number)));
        number
    }
}

impl Keyer<Arrow> for TextKey {
    type Keys = Arrow;

    fn fresh(&self) -> Self {
        Self { hasher: self.hasher.clone(), ..Self::new(self.column) }
    }

    fn len(&self) -> usize {
        self.ends.len() - 1
    }

    fn groups(&mut self, data: &Arrow, rows: Selection<'_>, groups: &mut Vec<u32>) {
        let texts = data.0.column(self.column).as_string_view();
        match rows {
            Selection::All(n) => groups.extend((0..n).map(|row| self.number(texts.value(row).as_bytes()))),
            Selection::Rows(rows) => {
                groups.extend(rows.iter().map(|row| self.number(texts.value(*row as usize).as_bytes())));
            }
        }
    }

    fn keys(&self, groups: &[u32]) -> Arrow {
        let texts = groups.iter().map(|group| std::str::from_utf8(self.text(*group)).unwrap());
        Arrow::of(vec![("key", Arc::new(StringViewArray::from_iter_values(texts)))])
    }

    fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        serde_json::to_writer(out, std::str::from_utf8(self.text(group)).unwrap()).unwrap();
        Ok(())
    }

    fn decode(&mut self, key: &str) -> Result<u32> {
        let text: String = serde_json::from_str(key).unwrap();
        Ok(self.number(text.as_bytes()))
    }
}

/// Number of rows, and the sum of an integer column.
struct CountAndSum {
    column: usize,
    counts: Vec<i64>,
    sums: Vec<i64>,
}

impl CountAndSum {
    fn new(column: usize) -> Self {
        Self { column, counts: Vec::new(), sums: Vec::new() }
    }

    fn add(&mut self, data: &Arrow, rows: Selection<'_>, groups: &[u32], sign: i64) {
        groups.iter().for_each(|group| self.counts[*group as usize] += sign);
        let (values, sums) = (data.ints(self.column), &mut self.sums);
        match rows {
            Selection::All(n) => {
                groups.iter().zip(&values[..n]).for_each(|(group, value)| sums[*group as usize] += sign * value);
            }
            Selection::Rows(rows) => {
                groups.iter().zip(rows).for_each(|(group, row)| sums[*group as usize] += sign * values[*row as usize]);
            }
        }
    }
}

impl Agg<Arrow> for CountAndSum {
    type Out = Arrow;

    fn fresh(&self) -> Self {
        Self::new(self.column)
    }

    fn name(&self) -> String {
        "count, sum".into()
    }

    fn retracts(&self) -> bool {
        true
    }

    fn grow(&mut self, groups: usize) {
        self.counts.resize(groups, 0);
        self.sums.resize(groups, 0);
    }

    fn update(&mut self, data: &Arrow, rows: Selection<'_>, groups: &[u32]) -> Result<()> {
        self.add(data, rows, groups, 1);
        Ok(())
    }

    fn retract(&mut self, data: &Arrow, rows: Selection<'_>, groups: &[u32]) -> Result<()> {
        self.add(data, rows, groups, -1);
        Ok(())
    }

    fn merge(&mut self, into: u32, from: &Self, group: u32) -> Result<()> {
        self.counts[into as usize] += from.counts[group as usize];
        self.sums[into as usize] += from.sums[group as usize];
        Ok(())
    }

    fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        serde_json::to_writer(out, &(self.counts[group as usize], self.sums[group as usize])).unwrap();
        Ok(())
    }

    fn decode(&mut self, group: u32, state: &str) -> Result<()> {
        (self.counts[group as usize], self.sums[group as usize]) = serde_json::from_str(state).unwrap();
        Ok(())
    }

    fn emit(&self, groups: &[u32]) -> Result<Arrow> {
        let column = |values: &[i64]| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(groups.iter().map(|group| values[*group as usize])))
        };
        Ok(Arrow::of(vec![("count", column(&self.counts)), ("sum", column(&self.sums))]))
    }
}

const SIZE_MS: i64 = 10_000;

/// Columns: time, key, cents; `per_ms` rows have one time before they are disordered.
fn orders(rows: usize, per_ms: usize, chunk: usize, keys: u64, disorder_ms: i64) -> Vec<Chunk<Arrow>> {
    let mut state = 7u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let batch = |from: usize| {
        let rows = from..(from + chunk).min(rows);
        let times: Vec<i64> = rows.clone().map(|i| (i / per_ms) as i64 + next() as i64 % (disorder_ms + 1)).collect();
        let texts: Vec<String> = rows.clone().map(|_| format!("SKU-{:06}", next() % keys)).collect();
        let cents: Vec<i64> = rows.map(|_| (next() % 10_000) as i64).collect();
        let time: ArrayRef = Arc::new(Int64Array::from(times.clone()));
        let text: ArrayRef = Arc::new(StringViewArray::from_iter_values(&texts));
        let cents: ArrayRef = Arc::new(Int64Array::from(cents));
        Chunk::inserts(times, Arrow::of(vec![("time", time), ("sku", text), ("cents", cents)]))
    };
    (0..rows).step_by(chunk).map(batch).collect()
}

type Results = BTreeMap<(i64, String), (i64, i64)>;
/// Groups, rows and total.
type Answer = (usize, i64, i64);

fn by_hand(chunks: &[Chunk<Arrow>], mut closed: impl FnMut(i64, HashMap<String, (i64, i64)>)) {
    let mut open: BTreeMap<i64, HashMap<String, (i64, i64)>> = BTreeMap::new();
    let mut watermark = i64::MIN;
    for chunk in chunks {
        let (times, texts, cents) = (chunk.data.ints(0), chunk.data.0.column(1).as_string_view(), chunk.data.ints(2));
        for row in 0..times.len() {
            let start = times[row].div_euclid(SIZE_MS) * SIZE_MS;
            watermark = watermark.max(times[row] - 1000);
            let groups = open.entry(start).or_default();
            match groups.get_mut(texts.value(row)) {
                Some(group) => *group = (group.0 + 1, group.1 + cents[row]),
                None => drop(groups.insert(texts.value(row).to_owned(), (1, cents[row]))),
            }
        }
        while let Some(first) = open.first_entry().filter(|first| first.key() + SIZE_MS <= watermark) {
            let (start, groups) = first.remove_entry();
            closed(start, groups);
        }
    }
    open.into_iter().for_each(|(start, groups)| closed(start, groups));
}

fn operator() -> WindowAggregate<Arrow, TextKey, CountAndSum> {
    let windows = Tumbling::of(Duration::from_millis(SIZE_MS as u64));
    WindowAggregate::new(windows, TextKey::new(1), CountAndSum::new(2), false)
}

fn by_operator(chunks: &[Chunk<Arrow>], mut closed: impl FnMut(i64, Arrow, Arrow)) {
    let (mut operator, mut late, mut watermark) = (operator(), Vec::new(), i64::MIN);
    for chunk in chunks {
        operator.push(chunk, &mut late).unwrap();
        watermark = watermark.max(chunk.time.iter().max().unwrap() - 1000);
        for groups in operator.advance(watermark).unwrap() {
            closed(groups.window.start, groups.keys, groups.values);
        }
    }
    for groups in operator.advance(i64::MAX).unwrap() {
        closed(groups.window.start, groups.keys, groups.values);
    }
    assert!(late.is_empty());
}

fn named(results: &mut Results, start: i64, keys: &Arrow, values: &Arrow) {
    for row in 0..keys.len() {
        let key = keys.0.column(0).as_string_view().value(row).to_owned();
        let doubled = results.insert((start, key), (values.ints(0)[row], values.ints(1)[row]));
        assert_eq!(doubled, None);
    }
}

#[test]
fn windows_over_arrow_are_those_of_a_loop() {
    let chunks = orders(30_000, 1, 700, 40, 900);
    let (mut expected, mut found) = (Results::new(), Results::new());
    by_hand(&chunks, |start, groups| expected.extend(groups.into_iter().map(|(key, value)| ((start, key), value))));
    by_operator(&chunks, |start, keys, values| named(&mut found, start, &keys, &values));
    assert_eq!(found, expected);
    assert!(expected.len() > 40, "more than one window: {}", expected.len());
}

#[test]
fn state_over_arrow_comes_back_from_its_changelog() {
    let chunks = orders(15_000, 1, 500, 40, 900);
    let (half, mut late) = (chunks.len() / 2, Vec::new());
    let mut whole = operator();
    let mut changes = Changes::default();
    for chunk in &chunks[..half] {
        whole.push(chunk, &mut late).unwrap();
        whole.barrier(&mut changes).unwrap();
    }
    let mut restored = operator();
    let newest: BTreeMap<_, _> = changes.entries.into_iter().collect();
    for (key, value) in newest {
        restored.restore(&key, &value.unwrap()).unwrap();
    }
    let mut end = |mut operator: WindowAggregate<Arrow, TextKey, CountAndSum>| {
        let mut results = Results::new();
        chunks[half..].iter().for_each(|chunk| operator.push(chunk, &mut late).unwrap());
        for groups in operator.advance(i64::MAX).unwrap() {
            named(&mut results, groups.window.start, &groups.keys, &groups.values);
        }
        results
    };
    assert_eq!(end(restored), end(whole));
}

#[test]
#[ignore = "speed: make bench"]
fn the_operator_over_arrow_is_near_a_loop_by_hand() {
    const ROWS: usize = 4_000_000;
    const CHUNK: usize = 4096;
    const ROUNDS: usize = 7;
    println!(
        "{ROWS} rows in batches of {CHUNK}, windows of {SIZE_MS} ms, text keys, count and sum, median of {ROUNDS}"
    );
    for keys in [5, 1_000, 100_000] {
        for disorder_ms in [0, 500] {
            let chunks = orders(ROWS, 20, CHUNK, keys, disorder_ms);
            let (mut hand, mut operator) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let (rate, expected) = timed(|answer| {
                    by_hand(&chunks, |_, groups| {
                        groups
                            .into_values()
                            .for_each(|(n, sum)| *answer = (answer.0 + 1, answer.1 + n, answer.2 + sum));
                    });
                });
                hand.push(rate * ROWS as f64);
                let (rate, found) = timed(|answer| {
                    by_operator(&chunks, |_, keys, values| {
                        black_box(&keys);
                        let add = |values: &[i64]| values.iter().sum::<i64>();
                        *answer =
                            (answer.0 + keys.len(), answer.1 + add(values.ints(0)), answer.2 + add(values.ints(1)));
                    });
                });
                operator.push(rate * ROWS as f64);
                assert_eq!(found, expected);
            }
            hand.sort_by(f64::total_cmp);
            operator.sort_by(f64::total_cmp);
            let (hand, operator) = (hand[ROUNDS / 2] / 1e6, operator[ROUNDS / 2] / 1e6);
            println!(
                "{keys} keys, disorder {disorder_ms} ms: by hand {hand:.1}, operator {operator:.1} million rows/s, ratio {:.2}",
                operator / hand
            );
        }
    }
}

/// Runs a second, and the answer.
fn timed(run: impl FnOnce(&mut Answer)) -> (f64, Answer) {
    let (mut answer, started) = ((0, 0, 0), Instant::now());
    run(&mut answer);
    (1.0 / started.elapsed().as_secs_f64(), answer)
}
