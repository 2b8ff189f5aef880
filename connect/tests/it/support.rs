//! The Python process, temporary folders, and a follower that checks every chain.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tidemill_connect::change::{Change, Op, Row, TableSchema};
use tidemill_connect::sqlite::triggers::Variant;
use tidemill_connect::sqlite::value::{StoredValue, same_row};
use tidemill_connect::sqlite::{self, Capture, Fault, Position, Snapshot, SqliteSink};

/// The other program.
pub struct Python {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Python {
    pub fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/writer.py");
        let mut child = Command::new("python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is needed for these tests");
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    pub fn send(&mut self, command: &Json) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    pub fn answer(&mut self) -> Json {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let answer: Json = serde_json::from_str(&line).unwrap();
        assert!(answer.get("failed").is_none(), "python: {}", answer["failed"].as_str().unwrap_or_default());
        answer["ok"].clone()
    }

    pub fn call(&mut self, command: &Json) -> Json {
        self.send(command);
        self.answer()
    }

    /// Runs statements on the connection that stays open for this path; rows of the last one.
    pub fn sql(&mut self, path: &Path, statements: &[&str]) -> Vec<Vec<Json>> {
        let answer = self.call(&json!({"cmd": "sql", "path": path, "sql": statements}));
        assert!(answer.get("error").is_none(), "{statements:?}: {answer}");
        serde_json::from_value(answer["rows"].clone()).unwrap()
    }

    /// Runs a statement that must fail; its message.
    pub fn sql_error(&mut self, path: &Path, statement: &str) -> String {
        let answer = self.call(&json!({"cmd": "sql", "path": path, "sql": [statement]}));
        answer["error"].as_str().unwrap_or_else(|| panic!("{statement} did not fail")).to_owned()
    }

    /// What differs between the two files, judged by Python.
    pub fn difference(&mut self, source: &Path, target: &Path, tables: &[TableSchema]) -> Json {
        let names: Vec<&str> = tables.iter().map(|t| t.name.as_str()).collect();
        self.call(&json!({"cmd": "same", "source": source, "target": target, "names": names}))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder that goes when the test ends; in memory where that is possible.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let base = Path::new("/dev/shm");
        let base = if base.is_dir() { base.to_owned() } else { std::env::temp_dir() };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("tidemill-connect-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn tables_of(path: &Path) -> Vec<TableSchema> {
    sqlite::list_tables(&sqlite::open_source(path).unwrap()).unwrap()
}

/// A key as text that differs whenever its bits do.
pub fn key_text(key: &Row) -> String {
    serde_json::to_string(&key.iter().map(StoredValue::from).collect::<Vec<_>>()).unwrap()
}

pub type Rows = BTreeMap<String, Row>;

/// All rows of all tables, as they are now.
pub fn contents(path: &Path, tables: &[TableSchema]) -> Vec<Rows> {
    let snapshot = Snapshot::open(path, tables.to_vec()).unwrap();
    (0..tables.len())
        .map(|table| {
            let mut rows = Rows::new();
            let mut after = None;
            loop {
                let chunk = snapshot.next_chunk(table, after.as_ref(), Duration::from_secs(1)).unwrap();
                if chunk.is_empty() {
                    return rows;
                }
                for row in chunk {
                    let key = tables[table].key_of(&row);
                    rows.insert(key_text(&key), row);
                    after = Some(key);
                }
            }
        })
        .collect()
}

/// Follows a source as the worker would, and checks that each event continues its key's chain.
pub struct Follower {
    pub path: PathBuf,
    pub tables: Vec<TableSchema>,
    pub capture: Capture,
    /// Every row of the source as the events tell it.
    pub model: Vec<Rows>,
    /// Changes applied to the target only in part of the calls, to have batches of several reads.
    pending: Vec<Change>,
    pub events: usize,
    pub variant: Variant,
}

impl Follower {
    /// Installs a capture. The model begins with what the tables hold; nobody may write meanwhile.
    pub fn install(path: &Path, variant: Variant) -> Self {
        let tables = tables_of(path);
        let capture = Capture::open_variant(path, tables.clone(), None, &[], variant).unwrap();
        let model = contents(path, &tables);
        Self { path: path.to_owned(), tables, capture, model, pending: Vec::new(), events: 0, variant }
    }

    pub fn confirm(&mut self) {
        let position = self.capture.position().clone();
        self.capture.confirm(&position).unwrap();
    }

    /// Reads once, checks, keeps the changes; returns whether there is more.
    pub fn read(&mut self, budget: Duration, max_rows: usize) -> Result<bool, String> {
        let read = self.capture.read(budget, max_rows).map_err(|e| e.to_string())?;
        for change in &read.changes {
            self.check(change)?;
        }
        self.pending.extend(read.changes);
        Ok(read.more)
    }

    pub fn read_all(&mut self, max_rows: usize) -> Result<(), String> {
        while self.read(Duration::from_secs(5), max_rows)? {}
        Ok(())
    }

    fn check(&mut self, change: &Change) -> Result<(), String> {
        self.events += 1;
        let rows = &mut self.model[change.table];
        let key = key_text(&change.key);
        let known = rows.get(&key);
        let same = |a: Option<&Row>, b: Option<&Row>| match (a, b) {
            (Some(a), Some(b)) => same_row(a, b),
            (None, None) => true,
            _ => false,
        };
        let schema = &self.tables[change.table];
        for image in [&change.before, &change.after].into_iter().flatten() {
            if key_text(&schema.key_of(image)) != key {
                return Err(format!("an image has another key than its event: {change:?}"));
            }
        }
        let shape = (change.op, change.before.is_some(), change.after.is_some());
        let well = matches!(
            shape,
            (Op::Read | Op::Create, false, true) | (Op::Update, true, true) | (Op::Delete, true, false)
        );
        if !well {
            return Err(format!("an event with the wrong images: {change:?}"));
        }
        let expected = if change.op == Op::Read { change.after.as_ref() } else { change.before.as_ref() };
        if !same(known, expected) {
            return Err(format!("chain broken in {}: {change:?}, before it {known:?}", schema.name));
        }
        if change.op == Op::Update && same(change.before.as_ref(), change.after.as_ref()) {
            return Err(format!("an update that changes nothing: {change:?}"));
        }
        match &change.after {
            Some(row) => rows.insert(key, row.clone()),
            None => rows.remove(&key),
        };
        Ok(())
    }

    /// The events so far must tell exactly what the tables hold.
    pub fn check_contents(&self) -> Result<(), String> {
        let now = contents(&self.path, &self.tables);
        for ((table, model), now) in self.tables.iter().zip(&self.model).zip(&now) {
            let equal =
                model.len() == now.len() && model.iter().zip(now).all(|((a, x), (b, y))| a == b && same_row(x, y));
            if !equal {
                return Err(format!("{}: events lead to {model:?}, the table holds {now:?}", table.name));
            }
        }
        Ok(())
    }

    /// Hands what was read to the sink.
    pub fn apply(&mut self, sink: &mut SqliteSink) {
        let mut by_table: Vec<Vec<Change>> = vec![Vec::new(); self.tables.len()];
        for change in self.pending.drain(..) {
            by_table[change.table].push(change);
        }
        let names: Vec<String> = self.tables.iter().map(|t| format!("s.{}", t.name)).collect();
        let batch: Vec<_> = by_table
            .into_iter()
            .enumerate()
            .map(|(i, changes)| (names[i].as_str(), &self.tables[i], 1, changes))
            .collect();
        let offsets: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
        sink.apply(&batch, &offsets).unwrap();
    }

    /// What a crash leaves: the state at the last durable position, to be read again from there.
    pub fn save(&self) -> Saved {
        Saved {
            position: serde_json::to_string(self.capture.position()).unwrap(),
            model: self.model.clone(),
            pending: self.pending.clone(),
        }
    }

    /// Dies and comes back at the saved place.
    pub fn crash(&mut self, saved: Saved) -> Result<(), Fault> {
        let position: Position = serde_json::from_str(&saved.position).unwrap();
        self.capture = Capture::open_variant(&self.path, self.tables.clone(), Some(position), &[], self.variant)?;
        (self.model, self.pending) = (saved.model, saved.pending);
        Ok(())
    }
}

#[derive(Clone)]
pub struct Saved {
    position: String,
    model: Vec<Rows>,
    pending: Vec<Change>,
}
