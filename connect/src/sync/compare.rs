//! Compares the two ends of a sync, whatever databases they are.
//!
//! Two databases order keys differently, so rows are matched by the hash of their key: a pass over the source remembers
//! what each row should be in the target, a pass over the target strikes off what it finds. Tables of many rows are
//! compared a share of the keys at a time, so that memory stays bounded.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

use super::{file::SyncSpec, parked::ParkedKey};
use crate::{
    Error, ErrorKind, Result,
    change::{Column, Row, StoredValue, TableSchema, Value},
    connector::TableReader,
    converter::{TopicSchema, decode_value},
    diff::{TableDiff, What, key_text},
    target::POSITIONS,
    translate::Translation,
    types::Dialect,
};

/// Rows read at a time.
const CHUNK_ROWS: usize = 5_000;
/// So many rows are remembered in one pass: some 60 MB.
const ROWS_A_PASS: u64 = 1_000_000;

/// The two databases of a sync, opened for reading.
pub(super) struct Sides {
    sync: String,
    from: Dialect,
    to: Dialect,
    source: Box<dyn TableReader>,
    target: Box<dyn TableReader>,
    rows_a_pass: u64,
}

/// One table and what the target should make of it.
struct Pair {
    draft: TopicSchema,
    source: TableSchema,
    target: TableSchema,
    translation: Translation,
    /// Hashes of the keys that the target refused; where it cannot even hold the key, of the source's.
    parked: HashSet<u128>,
}

impl Sides {
    pub(super) async fn open(spec: &SyncSpec) -> Result<Self> {
        let (from, to) = (spec.from.source()?, spec.to.sink()?);
        Ok(Self {
            sync: spec.name.clone(),
            from: from.dialect(),
            to: to.dialect(),
            source: from.reader().await?,
            target: to.reader().await?,
            rows_a_pass: ROWS_A_PASS,
        })
    }

    fn pair(&self, table: &TableSchema, parked: &[ParkedKey]) -> Pair {
        let draft = TopicSchema::draft(&self.sync, self.from, table);
        let translation = Translation::new(&draft, self.to);
        let (source, target) = (table.clone(), translation.table().clone());
        let mut pair = Pair { draft, source, target, translation, parked: HashSet::new() };
        let parked = parked.iter().filter(|parked| parked.topic == pair.draft.topic);
        pair.parked = parked.filter_map(|parked| Some(pair.hash_of_key(&pair.decode_key(&parked.key)?))).collect();
        pair
    }

    /// What is passed over where a table is compared.
    pub(super) fn normalised(&self, table: &TableSchema) -> Vec<String> {
        self.pair(table, &[]).translation.normalised()
    }

    /// Whether the target has the table.
    pub(super) async fn exists(&mut self, table: &TableSchema) -> Result<bool> {
        let wanted = self.pair(table, &[]).target;
        Ok(self.target.table(wanted.schema.as_deref(), &wanted.name).await?.is_some())
    }

    /// The next offset of each topic of the sync, as the target has them.
    pub(super) async fn applied(&mut self) -> Result<BTreeMap<String, i64>> {
        let (mut applied, mut after) = (BTreeMap::new(), None);
        let table = match (self.to, self.target.table(None, POSITIONS).await?) {
            (_, Some(table)) => table,
            // A list of its tables leaves ours out.
            (Dialect::Postgres, None) => positions_in_postgres(),
            _ => return Ok(applied),
        };
        let malformed = || Error::corrupt(format!("table {POSITIONS} of the target is malformed"));
        let column = |name: &str| table.columns.iter().position(|column| column.name == name).ok_or_else(malformed);
        let (sync, topic, next) = (column("sync")?, column("topic")?, column("next_offset")?);
        loop {
            let rows = match chunk(&mut *self.target, &table, &mut after).await {
                // There is none before the sync's first transaction.
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                other => match other? {
                    Some(rows) => rows,
                    None => break,
                },
            };
            for row in rows {
                match (&row[sync], &row[topic], &row[next]) {
                    (Value::Text(sync), ..) if *sync != self.sync => {}
                    (_, Value::Text(topic), Value::Integer(next)) => drop(applied.insert(topic.clone(), *next)),
                    _ => return Err(malformed()),
                }
            }
        }
        Ok(applied)
    }

    /// The names of columns that only one side has: the source's, then the target's. `None` without a table in the target.
    pub(super) async fn only_columns(&mut self, table: &TableSchema) -> Result<Option<[Vec<String>; 2]>> {
        let wanted = self.pair(table, &[]).target;
        let Some(found) = self.target.table(wanted.schema.as_deref(), &wanted.name).await? else { return Ok(None) };
        let only = |a: &TableSchema, b: &TableSchema| -> Vec<String> {
            let other = |name: &str| b.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
            a.columns.iter().map(|column| column.name.clone()).filter(|name| !other(name)).collect()
        };
        Ok(Some([only(&wanted, &found), only(&found, &wanted)]))
    }

    /// Compares a table. A target without the table counts as empty. Rows that are parked are counted, not listed.
    pub(super) async fn compare(&mut self, table: &TableSchema, parked: &[ParkedKey]) -> Result<TableDiff> {
        let pair = self.pair(table, parked);
        let exists = self.target.table(pair.target.schema.as_deref(), &pair.target.name).await?.is_some();
        let mut diff = TableDiff::default();
        let (mut share, mut shares) = (0, 1);
        while share < shares {
            let mut wanted: HashMap<u128, u64> = HashMap::new();
            let mut after = None;
            while let Some(rows) = chunk(&mut *self.source, &pair.source, &mut after).await? {
                for row in rows {
                    let key = pair.source.key_of(&row);
                    let row = match pair.wanted(row) {
                        Ok(row) => row,
                        // The target cannot hold it: whatever stands there is something else.
                        Err(_) if share > 0 => continue,
                        Err(_) => {
                            diff.rows += 1;
                            pair.note(&mut diff, What::Differing, key);
                            continue;
                        }
                    };
                    let hash = hash_row(&pair.target.key_of(&row));
                    if hash % shares == share {
                        wanted.insert(hash, hash_row(&row) as u64);
                    }
                }
                if share == 0 && wanted.len() as u64 > self.rows_a_pass {
                    shares *= 2;
                    wanted.retain(|hash, _| hash % shares == 0);
                }
            }
            diff.rows += wanted.len() as u64;
            let mut differing = Vec::new();
            let mut after = None;
            while exists && let Some(rows) = chunk(&mut *self.target, &pair.target, &mut after).await? {
                for row in rows {
                    let row = pair.translation.comparable(row);
                    let key = pair.target.key_of(&row);
                    let hash = hash_row(&key);
                    match wanted.remove(&hash) {
                        _ if hash % shares != share => {}
                        None => {
                            diff.rows += 1;
                            pair.note_extra(&mut diff, key);
                        }
                        Some(other) if other != hash_row(&row) as u64 => differing.push(hash),
                        Some(_) => {}
                    }
                }
            }
            let missing = wanted.into_keys().map(|hash| (hash, What::Missing));
            let found = missing.chain(differing.into_iter().map(|hash| (hash, What::Differing))).collect();
            self.name_keys(&pair, found, &mut diff).await?;
            share += 1;
        }
        Ok(diff)
    }

    /// Finds the source's keys of rows that are known by their hashes.
    async fn name_keys(&mut self, pair: &Pair, mut found: HashMap<u128, What>, diff: &mut TableDiff) -> Result<()> {
        let mut after = None;
        while !found.is_empty()
            && let Some(rows) = chunk(&mut *self.source, &pair.source, &mut after).await?
        {
            for row in rows {
                let key = pair.source.key_of(&row);
                let Ok(row) = pair.wanted(row) else { continue };
                if let Some(what) = found.remove(&hash_row(&pair.target.key_of(&row))) {
                    pair.note(diff, what, key);
                }
            }
        }
        // What is left was deleted in the source since.
        Ok(())
    }

    /// Of the listed keys, those whose rows still differ, and how. Use it after the target had time to catch up.
    pub(super) async fn recheck(
        &mut self,
        table: &TableSchema,
        diff: &TableDiff,
        parked: &[ParkedKey],
    ) -> Result<TableDiff> {
        let pair = self.pair(table, parked);
        let mut still = TableDiff { rows: diff.rows, parked_rows: diff.parked_rows, ..TableDiff::default() };
        if self.target.table(pair.target.schema.as_deref(), &pair.target.name).await?.is_none() {
            return self.compare(table, parked).await;
        }
        let keys: Vec<Row> = [&diff.missing, &diff.differing].into_iter().flatten().cloned().collect();
        // A key that the target cannot hold is not there; its own stands for it, and finds nothing.
        let own = |key: &Row| pair.translation.key(key.clone()).unwrap_or_else(|_| vec![Value::Null; key.len()]);
        let target_keys: Vec<Row> = keys.iter().map(own).collect();
        let sources = self.source.find(&pair.source, &keys).await?;
        let targets = self.target.find(&pair.target, &target_keys).await?;
        for ((key, source), target) in keys.into_iter().zip(sources).zip(targets) {
            let Ok(source) = source.map(|row| pair.wanted(row)).transpose() else {
                pair.note(&mut still, What::Differing, key);
                continue;
            };
            let target = target.map(|row| pair.translation.comparable(row));
            match (source, target) {
                (Some(a), Some(b)) if hash_row(&a) != hash_row(&b) => pair.note(&mut still, What::Differing, key),
                (Some(_), None) => pair.note(&mut still, What::Missing, key),
                (None, Some(_)) => pair.note_extra(&mut still, pair.translation.key(key)?),
                _ => {}
            }
        }
        let present = self.target.find(&pair.target, &diff.extra).await?;
        let extra = diff.extra.iter().zip(present).filter(|(_, row)| row.is_some());
        let mut extra: HashMap<u128, Row> = extra.map(|(key, _)| (hash_row(key), key.clone())).collect();
        let mut after = None;
        while !extra.is_empty()
            && let Some(rows) = chunk(&mut *self.source, &pair.source, &mut after).await?
        {
            for row in rows {
                let Ok(row) = pair.wanted(row) else { continue };
                extra.remove(&hash_row(&pair.target.key_of(&row)));
            }
        }
        extra.into_values().for_each(|key| pair.note_extra(&mut still, key));
        Ok(still)
    }
}

/// The table of positions in PostgreSQL, as far as it is read here.
fn positions_in_postgres() -> TableSchema {
    let column = |name: &str, declared_type: &str, key| Column {
        name: name.to_owned(),
        declared_type: declared_type.to_owned(),
        not_null: true,
        key,
    };
    let columns =
        vec![column("sync", "text", Some(0)), column("topic", "text", Some(1)), column("next_offset", "bigint", None)];
    TableSchema { schema: Some("public".to_owned()), name: POSITIONS.to_owned(), columns }
}

impl Pair {
    /// The row that the target should have, as [`Translation::comparable`] spells it.
    fn wanted(&self, row: Row) -> Result<Row> {
        let key = self.source.key_of(&row);
        let row = self.translation.row(row).map_err(|error| error.context(key_text(&self.source, &key)))?;
        Ok(self.translation.comparable(row))
    }

    /// Notes a row that has this key in the source.
    fn note(&self, diff: &mut TableDiff, what: What, key: Row) {
        match !self.parked.is_empty() && self.parked.contains(&self.hash_of_key(&key)) {
            true => diff.parked_rows += 1,
            false => diff.note(what, key),
        }
    }

    /// Notes a row that only the target has, by its key there.
    fn note_extra(&self, diff: &mut TableDiff, key: Row) {
        match self.parked.contains(&hash_row(&key)) {
            true => diff.parked_rows += 1,
            false => diff.note(What::Extra, key),
        }
    }

    /// A key of the source as the target's rows have it; its own where the target cannot hold it.
    fn hash_of_key(&self, key: &Row) -> u128 {
        let mut row = vec![Value::Null; self.source.columns.len()];
        for (at, value) in self.source.key_columns().into_iter().zip(key) {
            row[at] = value.clone();
        }
        match self.wanted(row) {
            Ok(row) => hash_row(&self.target.key_of(&row)),
            Err(_) => hash_row(key),
        }
    }

    /// A key as records carry it.
    fn decode_key(&self, text: &str) -> Option<Row> {
        let mut values: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
        let columns = self.source.key_columns().into_iter().map(|at| &self.source.columns[at].name);
        columns.map(|name| decode_value(values.remove(name)?).ok()).collect()
    }
}

/// The next rows of a table; `after` goes on with them. `None` at its end.
async fn chunk(reader: &mut dyn TableReader, table: &TableSchema, after: &mut Option<Row>) -> Result<Option<Vec<Row>>> {
    let rows = reader.rows(table, after.as_ref(), CHUNK_ROWS).await?;
    let Some(last) = rows.last() else { return Ok(None) };
    *after = Some(table.key_of(last));
    Ok(Some(rows))
}

fn hash_row(row: &[Value]) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        for value in row {
            StoredValue::from(value).hash(&mut hasher);
        }
        hasher.finish()
    };
    u128::from(half(1)) << 64 | u128::from(half(2))
}
