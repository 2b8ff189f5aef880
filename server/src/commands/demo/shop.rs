//! The demo's shop: a small SQLite database and a program that writes to it, knowing nothing of Tidemill.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rusqlite::{Connection, params};

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT);
    CREATE TABLE products (sku TEXT PRIMARY KEY, title TEXT NOT NULL, price REAL NOT NULL);
    CREATE TABLE orders (
        id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL, sku TEXT NOT NULL,
        quantity INTEGER NOT NULL, ordered_at TEXT NOT NULL
    );";
const CITIES: [&str; 5] = ["Lisbon", "Turku", "Kyoto", "Recife", "Galway"];
const PRODUCTS: [(&str, &str, f64); 5] = [
    ("TEA-01", "Green tea", 4.5),
    ("TEA-02", "Black tea", 3.9),
    ("CUP-01", "Stoneware cup", 12.0),
    ("POT-01", "Iron teapot", 48.0),
    ("TIN-01", "Tea tin", 7.25),
];
const PAUSE: Duration = Duration::from_millis(10);

/// What the writer has committed.
#[derive(Debug, Default)]
pub struct Written {
    pub inserts: AtomicU64,
    pub updates: AtomicU64,
    pub deletes: AtomicU64,
}

impl Written {
    pub fn counts(&self) -> (u64, u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.inserts), read(&self.updates), read(&self.deletes))
    }
}

/// Makes the shop with its first rows.
pub fn create(path: &Path) -> rusqlite::Result<()> {
    let mut conn = Connection::open(path)?;
    conn.execute_batch(SCHEMA)?;
    let tx = conn.transaction()?;
    for (sku, title, price) in PRODUCTS {
        tx.execute("INSERT INTO products VALUES (?1, ?2, ?3)", params![sku, title, price])?;
    }
    for id in 1..=200usize {
        let city = CITIES[id % CITIES.len()];
        tx.execute("INSERT INTO customers VALUES (?1, ?2, ?3)", params![id as i64, format!("Customer {id}"), city])?;
    }
    tx.commit()
}

/// Writes to the shop until told to stop: each round one order, now and then a changed customer or price, and a
/// customer who comes and goes.
pub fn write(path: &Path, written: &Written, stop: &Arc<AtomicBool>) -> rusqlite::Result<()> {
    let mut conn = Connection::open(path)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    let mut round = 0u64;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let (inserts, updates, deletes) = write_round(&mut conn, round)?;
        written.inserts.fetch_add(inserts, Ordering::Relaxed);
        written.updates.fetch_add(updates, Ordering::Relaxed);
        written.deletes.fetch_add(deletes, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn write_round(conn: &mut Connection, round: u64) -> rusqlite::Result<(u64, u64, u64)> {
    // A fixed sequence, well mixed: the demo looks alive and is the same every time.
    let mixed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    let tx = conn.transaction()?;
    let sku = PRODUCTS[(mixed % 5) as usize].0;
    tx.execute(
        "INSERT INTO orders (customer_id, sku, quantity, ordered_at) VALUES (?1, ?2, ?3, datetime('now'))",
        params![(mixed % 200 + 1) as i64, sku, (mixed % 3 + 1) as i64],
    )?;
    let (mut inserts, mut updates, mut deletes) = (1, 0, 0);
    if round.is_multiple_of(4) {
        let city = CITIES[(mixed / 7 % 5) as usize];
        updates +=
            tx.execute("UPDATE customers SET city = ?1 WHERE id = ?2", params![city, (mixed % 200 + 1) as i64])?;
    }
    if round.is_multiple_of(10) {
        updates += tx.execute("UPDATE products SET price = round(price * 1.01, 2) WHERE sku = ?1", params![sku])?;
    }
    if round.is_multiple_of(15) {
        inserts += tx.execute("INSERT INTO customers (name) VALUES ('Passer-by')", [])? as u64;
    }
    if round % 15 == 10 {
        deletes += tx.execute("DELETE FROM customers WHERE name = 'Passer-by'", [])?;
    }
    tx.commit()?;
    Ok((inserts, updates as u64, deletes as u64))
}
