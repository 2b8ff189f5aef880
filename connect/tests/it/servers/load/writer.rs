//! Makes the transactions: the same seed, the same statements.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::super::judge::{Cell, Class, normal};
use super::Settings;
use super::dialect::{Column, Dialect, TABLES};
use super::ledger::{Change, Op, Row};

/// Longer than what PostgreSQL keeps in the row, and random enough not to be pressed below it.
const BIG_BYTES: std::ops::Range<usize> = 8_200..20_000;
/// Traps for whoever quotes, cuts, folds or trims.
const WORDS: &[&str] = &[
    "word",
    "Word",
    "žluť",
    "鍵",
    "🌊🧪",
    "it's",
    "back\\slash",
    "\\N",
    "NULL",
    "a\nb",
    "tab\t",
    "\"q\"",
    "%s:x;--",
    "e\u{301}",
];

/// One transaction that ends in a commit, as the client is to run it.
pub struct Transaction {
    pub number: u64,
    pub script: String,
    pub changes: Vec<Change>,
}

pub struct Writer {
    random: StdRng,
    dialect: Dialect,
    prefix: String,
    rows: usize,
    number: u64,
    model: Vec<BTreeMap<Vec<String>, Row>>,
    /// Statements and changes of the transaction that is being made.
    script: String,
    changes: Vec<(usize, Change)>,
}

impl Writer {
    /// The change that the making of the tables is comes with it.
    pub fn new(settings: &Settings, dialect: Dialect) -> (Self, Vec<Change>) {
        let mut writer = Self {
            random: StdRng::seed_from_u64(settings.seed),
            dialect,
            prefix: settings.prefix.clone(),
            rows: settings.rows,
            number: 0,
            model: TABLES.iter().map(|_| BTreeMap::new()).collect(),
            script: String::new(),
            changes: Vec::new(),
        };
        writer.record(TABLES.len() - 1, None, Some(vec![Some("1".into()), Some("0".into())]), false);
        let first = writer.changes.drain(..).map(|(_, change)| change).collect();
        (writer, first)
    }

    /// The next transaction that commits, with those before it that are rolled back.
    pub fn transaction(&mut self) -> Transaction {
        self.number += 1;
        self.script.clear();
        while self.random.random_bool(0.1) {
            self.script += self.dialect.begin();
            self.acts();
            self.undo(0);
            self.script += "rollback;\n";
        }
        self.script += self.dialect.begin();
        self.acts();
        if self.random.random_bool(0.2) {
            self.savepoint();
            self.acts();
        }
        let last = TABLES.len() - 1;
        let (key, row) = self.model[last].first_key_value().map(|(key, row)| (key.clone(), row.clone())).unwrap();
        self.update(last, &key, &row, vec![key[0].clone().into(), Some(self.number.to_string())]);
        self.script += "commit;\n";
        let changes = self.changes.drain(..).map(|(_, change)| change).collect();
        Transaction { number: self.number, script: std::mem::take(&mut self.script), changes }
    }

    /// A part that may be taken back, and in it perhaps another.
    fn savepoint(&mut self) {
        let kept = self.changes.len();
        self.script += "savepoint outer_one;\n";
        self.acts();
        if self.random.random_bool(0.3) {
            let kept = self.changes.len();
            self.script += "savepoint inner_one;\n";
            self.acts();
            self.script += "rollback to savepoint inner_one;\n";
            self.undo(kept);
        }
        if self.random.random_bool(0.6) {
            self.script += "rollback to savepoint outer_one;\n";
            self.undo(kept);
        } else {
            self.script += "release savepoint outer_one;\n";
        }
    }

    /// Takes the changes after the first `kept` out of the model again.
    fn undo(&mut self, kept: usize) {
        for (table, change) in self.changes.drain(kept..).rev() {
            match change.before {
                Some(row) => self.model[table].insert(change.key, row),
                None => self.model[table].remove(&change.key),
            };
        }
    }

    fn acts(&mut self) {
        for _ in 0..self.random.random_range(1..6) {
            self.act();
        }
    }

    fn act(&mut self) {
        let table = self.random.random_range(0..TABLES.len() - 1);
        let count = self.model[table].len();
        let draw = self.random.random_range(0..100);
        // Fewer rows than wanted grow, more shrink.
        let grow = if count < self.rows { 45 } else { 15 };
        if count == 0 || draw < grow {
            let row = self.new_row(table);
            return self.insert(table, row);
        }
        let n = self.random.random_range(0..count);
        let (key, row) = self.model[table].iter().nth(n).map(|(key, row)| (key.clone(), row.clone())).unwrap();
        match draw {
            d if d < grow + 15 => self.delete(table, &key, row),
            d if d < grow + 22 => {
                let keyed = self.new_row(table);
                let columns = TABLES[table].1;
                let moved = columns.iter().zip(keyed.into_iter().zip(row.clone()));
                let moved = moved.map(|(column, (new, old))| if column.key { new } else { old }).collect();
                self.update(table, &key, &row, moved);
            }
            _ => {
                let changed = self.changed_row(table, &row);
                self.update(table, &key, &row, changed);
            }
        }
    }

    fn insert(&mut self, table: usize, row: Row) {
        let (name, columns) = (self.name(table), TABLES[table].1);
        let values: Vec<String> = columns.iter().zip(&row).map(|(c, cell)| self.dialect.literal(c, cell)).collect();
        self.script += &format!("insert into {name} values ({});\n", values.join(", "));
        self.record(table, None, Some(row), false);
    }

    fn delete(&mut self, table: usize, key: &[String], row: Row) {
        self.script += &format!("delete from {} where {};\n", self.name(table), self.condition(table, key));
        self.record(table, Some(row), None, false);
    }

    /// Names only what changes: the rest of the row, large values in it, is left as it is.
    fn update(&mut self, table: usize, key: &[String], before: &Row, after: Row) {
        let cells = TABLES[table].1.iter().zip(before.iter().zip(&after)).filter(|(_, (a, b))| a != b);
        let sets: Vec<String> =
            cells.map(|(c, (_, b))| format!("{} = {}", c.name, self.dialect.literal(c, b))).collect();
        assert!(!sets.is_empty(), "an update changes something");
        self.script +=
            &format!("update {} set {} where {};\n", self.name(table), sets.join(", "), self.condition(table, key));
        if key_of(table, &after) == key {
            self.record(table, Some(before.clone()), Some(after), false);
        } else {
            self.record(table, Some(before.clone()), None, true);
            self.record(table, None, Some(after), true);
        }
    }

    fn record(&mut self, table: usize, before: Option<Row>, after: Option<Row>, moved: bool) {
        let key = key_of(table, before.as_ref().or(after.as_ref()).expect("a change has a row"));
        let op = match (&before, &after) {
            (None, _) => Op::Insert,
            (_, None) => Op::Delete,
            _ => Op::Update,
        };
        match &after {
            Some(row) => self.model[table].insert(key.clone(), row.clone()),
            None => self.model[table].remove(&key),
        };
        let change = Change { transaction: self.number, table: self.name(table), op, key, before, after, moved };
        self.changes.push((table, change));
    }

    fn name(&self, table: usize) -> String {
        format!("{}_{}", self.prefix, TABLES[table].0)
    }

    fn condition(&self, table: usize, key: &[String]) -> String {
        let columns = TABLES[table].1.iter().filter(|column| column.key).zip(key);
        let parts = columns.map(|(c, text)| format!("{} = {}", c.name, self.dialect.literal(c, &Some(text.clone()))));
        parts.collect::<Vec<_>>().join(" and ")
    }

    /// A row whose key is not in the table. Keys come back: what was deleted is often inserted again.
    fn new_row(&mut self, table: usize) -> Row {
        loop {
            let row: Row = TABLES[table].1.iter().map(|column| self.cell(column)).collect();
            if !self.model[table].contains_key(&key_of(table, &row)) {
                return row;
            }
        }
    }

    /// The row with one or two cells changed; the large one seldom, so that it is mostly left alone by an update.
    fn changed_row(&mut self, table: usize, row: &Row) -> Row {
        let columns = TABLES[table].1;
        let mut changed = row.clone();
        while changed == *row {
            for _ in 0..self.random.random_range(1..3) {
                let n = self.random.random_range(0..columns.len());
                if !columns[n].key && (columns[n].name != "big" || self.random.random_bool(0.2)) {
                    changed[n] = self.cell(&columns[n]);
                }
            }
        }
        changed
    }

    fn cell(&mut self, column: &Column) -> Cell {
        let random = &mut self.random;
        if !column.key && random.random_bool(0.15) {
            return None;
        }
        let text = match column.class {
            Class::Number if column.name == "amount" => {
                format!(
                    "{}.{:06}",
                    random.random_range(-99_999_999_999i64..99_999_999_999),
                    random.random_range(0..1_000_000)
                )
            }
            Class::Number if column.key => random.random_range(0..4 * self.rows as i64).to_string(),
            Class::Number => random.random_range(i64::MIN + 1..i64::MAX).to_string(),
            Class::Bool => random.random_bool(0.5).to_string(),
            Class::Bytes => {
                let length = random.random_range(0..40);
                (0..length).map(|_| format!("{:02x}", random.random::<u8>())).collect()
            }
            Class::Timestamp => format!(
                "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06}",
                random.random_range(1971..2100),
                random.random_range(1..13),
                random.random_range(1..29),
                random.random_range(0..24),
                random.random_range(0..60),
                random.random_range(0..60),
                random.random_range(0..1_000_000),
            ),
            _ if column.name == "big" => {
                let length = random.random_range(BIG_BYTES);
                (0..length).map(|_| char::from(random.random_range(b'A'..=b'Z'))).collect()
            }
            _ => {
                let blank = if random.random_bool(0.1) { " " } else { "" };
                let word = WORDS.choose(random).expect("there are words");
                format!("{word}{}{blank}", random.random_range(0..20))
            }
        };
        let empty = !column.key && column.class == Class::Text && random.random_bool(0.05);
        Some(if empty { String::new() } else { normal(column.class, &text) })
    }
}

fn key_of(table: usize, row: &Row) -> Vec<String> {
    let keys = TABLES[table].1.iter().zip(row).filter(|(column, _)| column.key);
    keys.map(|(_, cell)| cell.clone().expect("a key is not null")).collect()
}
