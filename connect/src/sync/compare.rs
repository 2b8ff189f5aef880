//! Compares the two ends of a sync, whatever databases they are.
//!
//! Two databases order keys differently, so rows are matched by the hash of their key: a pass over the source remembers
//! what each row should be in the target, a pass over the target strikes off what it finds. Tables of many rows are
//! compared a share of the keys at a time, so that memory stays bounded.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

use super::file::SyncSpec;
use crate::{
    Result,
    change::{Row, StoredValue, TableSchema, Value},
    connector::TableReader,
    converter::TopicSchema,
    diff::{TableDiff, What, key_text},
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
    source: TableSchema,
    target: TableSchema,
    translation: Translation,
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

    fn pair(&self, table: &TableSchema) -> Pair {
        let translation = Translation::new(&TopicSchema::draft(&self.sync, self.from, table), self.to);
        Pair { source: table.clone(), target: translation.table().clone(), translation }
    }

    /// The names of columns that only one side has: the source's, then the target's. `None` without a table in the target.
    pub(super) async fn only_columns(&mut self, table: &TableSchema) -> Result<Option<[Vec<String>; 2]>> {
        let wanted = self.pair(table).target;
        let Some(found) = self.target.table(wanted.schema.as_deref(), &wanted.name).await? else { return Ok(None) };
        let only = |a: &TableSchema, b: &TableSchema| -> Vec<String> {
            let other = |name: &str| b.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
            a.columns.iter().map(|column| column.name.clone()).filter(|name| !other(name)).collect()
        };
        Ok(Some([only(&wanted, &found), only(&found, &wanted)]))
    }

    /// Compares a table. A target without the table counts as empty.
    pub(super) async fn compare(&mut self, table: &TableSchema) -> Result<TableDiff> {
        let pair = self.pair(table);
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
                            diff.note(What::Differing, key);
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
                            diff.note(What::Extra, key);
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
                    diff.note(what, key);
                }
            }
        }
        // What is left was deleted in the source since.
        Ok(())
    }

    /// Of the listed keys, those whose rows still differ, and how. Use it after the target had time to catch up.
    pub(super) async fn recheck(&mut self, table: &TableSchema, diff: &TableDiff) -> Result<TableDiff> {
        let pair = self.pair(table);
        let mut still = TableDiff { rows: diff.rows, ..TableDiff::default() };
        if self.target.table(pair.target.schema.as_deref(), &pair.target.name).await?.is_none() {
            return self.compare(table).await;
        }
        let keys: Vec<Row> = [&diff.missing, &diff.differing].into_iter().flatten().cloned().collect();
        // A key that the target cannot hold is not there; its own stands for it, and finds nothing.
        let own = |key: &Row| pair.translation.key(key.clone()).unwrap_or_else(|_| vec![Value::Null; key.len()]);
        let target_keys: Vec<Row> = keys.iter().map(own).collect();
        let sources = self.source.find(&pair.source, &keys).await?;
        let targets = self.target.find(&pair.target, &target_keys).await?;
        for ((key, source), target) in keys.into_iter().zip(sources).zip(targets) {
            let Ok(source) = source.map(|row| pair.wanted(row)).transpose() else {
                still.note(What::Differing, key);
                continue;
            };
            let target = target.map(|row| pair.translation.comparable(row));
            match (source, target) {
                (Some(a), Some(b)) if hash_row(&a) != hash_row(&b) => still.note(What::Differing, key),
                (Some(_), None) => still.note(What::Missing, key),
                (None, Some(_)) => still.note(What::Extra, pair.translation.key(key)?),
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
        extra.into_values().for_each(|key| still.note(What::Extra, key));
        Ok(still)
    }
}

impl Pair {
    /// The row that the target should have, as [`Translation::comparable`] spells it.
    fn wanted(&self, row: Row) -> Result<Row> {
        let key = self.source.key_of(&row);
        let row = self.translation.row(row).map_err(|error| error.context(key_text(&self.source, &key)))?;
        Ok(self.translation.comparable(row))
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
